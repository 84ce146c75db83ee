"""Seconds that a person waits for a command: a new process each time, the default model.

`rome-mlx edit` with a paraphrase and two neighbors: a fact that was edited before, whose trace and
answers by the unedited model are kept, and one that is new, after others.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import seconds

EDIT = ["edit", "--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower",
        "--target-new", "Rome", "--paraphrase", "How do I get to the Eiffel Tower? It is in",
        "--neighbor", "The Louvre is located in the city of",
        "--neighbor", "The Colosseum is located in the city of"]


def rows(full: bool, repeats: int) -> list[dict]:
    """A row a command; full changes nothing."""
    with tempfile.TemporaryDirectory() as cache:
        used, new = Path(cache, "used"), Path(cache, "new")

        def call(*arguments: str) -> None:
            subprocess.run([sys.executable, "-m", "rome_mlx", *arguments], check=True,
                           capture_output=True, env={**os.environ, "ROME_MLX_CACHE": str(used)})

        def new_fact() -> None:
            shutil.rmtree(used)
            shutil.copytree(new, used)
            call(*EDIT)

        # another fact makes all that does not hang on the fact
        call("edit", "--prompt", "The mother tongue of {} is", "--subject", "Danielle Darrieux",
             "--target-new", "English")
        shutil.copytree(used, new)
        timed = {"edit, a new fact": seconds(new_fact, repeats),
                 "edit": seconds(lambda: call(*EDIT), repeats),
                 "edit --no-verify": seconds(lambda: call(*EDIT, "--no-verify"), repeats),
                 "--version": seconds(lambda: call("--version"), repeats),
                 "--help": seconds(lambda: call("--help"), repeats)}
    for name, took in timed.items():
        print(f"{name}: {took:.2f} s", file=sys.stderr)
    return [{"name": name, "ours_s": took} for name, took in timed.items()]
