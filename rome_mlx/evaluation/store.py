"""A run's directory: run.json, what it was asked; one JSON file a case; summary.json."""

import json
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from ..errors import RomeError
from ..models.identity import same
from ..storage.files import check_writable, write_json


class RunDirectory:
    """Where one run is kept. Files are written whole, and hold nothing that two runs differ in."""

    def __init__(self, path: str | Path, settings: dict, group):
        """Make the directory, or check that what is there is the same run. Ranks that share a
        directory come one after the other, and all refuse when one does."""
        self.path, refusal = Path(path), None
        settings = json.loads(json.dumps(settings))  # as they are read back
        for rank in range(group.size()):
            if rank == group.rank():
                try:
                    self._begin(settings)
                except RomeError as error:
                    refusal = error
            refused = mx.distributed.all_sum(mx.array(int(refusal is not None)), stream=mx.cpu)
            if int(refused):
                raise refusal or RomeError(f"rank {rank} cannot use its {str(path)!r}")

    def _begin(self, settings: dict) -> None:
        output, path = self.path, self.path / "run.json"
        if output.exists() and not output.is_dir():
            raise RomeError(f"{str(output)!r} is not a directory; choose another --output")
        if not path.exists():
            if output.is_dir() and any(not p.name.startswith(".run.json-")
                                       for p in output.iterdir()):
                raise RomeError(f"{str(output)!r} holds other files; choose a new --output")
            check_writable(output)
            output.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            differing = [name for name, value in settings.items()
                         if name != "fingerprint" and found[name] != value]
            if not same(found["fingerprint"], settings["fingerprint"]):
                differing.append("model")
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise RomeError(f"{path} is damaged ({error}); choose a new --output") from error
        if differing:
            raise RomeError(f"{str(output)!r} holds a run with other settings "
                            f"({', '.join(differing)}); choose a new --output, or the same "
                            "settings to go on with it")

    def read(self, case, group: list[int], measures) -> dict | None:
        """A finished case's result; None where there is none.

        group: ids of the cases that are edited together; measures: (post, pre) -> numbers, which
        a damaged file does not give.
        """
        path = self._path(case)
        if not path.exists():
            return None
        try:
            result = json.loads(path.read_text("utf-8"))
            if result["request"] != asdict(case.request):
                raise RomeError(f"{path} is of another record; choose a new --output")
            if result["group"] != group:
                raise RomeError(f"{path} was measured among {len(result['group'])} cases, not "
                                f"these {len(group)}; choose a new --output, or a limit that "
                                "leaves groups whole")
            measures(result["post"], result["pre"])
            return result
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, RomeError):
                raise
            raise RomeError(f"{path} is damaged ({error}); remove it and run again") from error

    def write(self, case, result: dict) -> None:
        write_json(self._path(case), result)

    def finish(self, cases, results: list[dict], summary: dict) -> None:
        """Write the summary, and the cases that other machines measured; remove what processes
        that were killed while writing left."""
        for case, result in zip(cases, results, strict=True):
            if not self._path(case).exists():
                self.write(case, result)
        write_json(self.path / "summary.json", summary)
        for left in self.path.glob(".*.json-*"):
            left.unlink(missing_ok=True)

    def _path(self, case) -> Path:
        return self.path / f"case_{case.case_id}.json"
