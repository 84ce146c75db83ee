"""What the explorer's pages share: one model, and the edits made or given since it started."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...editing.adapter import check_destination
from ...editing.edit import Edit
from ...editing.layer_choice import layer_to_edit
from ...editing.methods import ROME
from ...errors import RomeError
from ...models.decoder import Decoder
from ...models.loading import describe
from ...models.probabilities import chat_text
from ...moments.lookup import at_hand
from ...tracing.corruption import corruption

_NAME = re.compile(r"\w[\w .+-]*")  # of a directory, on every system
_CONVERTED = re.compile(r"-v\d+-[0-9a-f]{16}$")  # what a GGUF file's copy in the cache adds


@dataclass
class Held:
    """An edit of the session; where: the directory it was read from or saved in."""

    edit: Edit
    where: str | None = None

    def to_json(self) -> dict:
        requests = [{"text": r.text, "subject": r.subject, "target_new": r.target_new}
                    for r in self.edit.requests]
        return {"id": self.edit.digest, "requests": requests, "method": self.edit.method,
                "layers": self.edit.layers, "where": self.where}


class Session:
    """One model and its edits. Between two calls the model is as it was loaded: whoever asks says
    which edits are to be on.

    seed: of everything sampled; output: the directory that edits are saved in; counted: layers
    whose C is at hand. Made, and used where the model is, in the thread that loaded the model.
    """

    def __init__(self, model, tokenizer, *, seed: int = 0, output: str | Path = "."):
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.output, self.decoder = Path(output), Decoder(model)
        self.noise = corruption(self.decoder, tokenizer)
        self.choice = layer_to_edit(self.decoder, ROME)
        self.counted = set(at_hand(self.decoder, tokenizer, self.decoder.dense_layers))
        self.edits: dict[str, Held] = {}  # by digest
        self._about = self._described()

    def to_json(self) -> dict:
        """What a page has to know when it opens. Asks nothing of the model."""
        return {**self._about, "counted": sorted(self.counted),
                "edits": [held.to_json() for held in list(self.edits.values())]}

    def _described(self) -> dict:
        about = describe(self.model, self.tokenizer)
        name = Path(about["path"] or about["type"]).name
        return {"model": _CONVERTED.sub("", name), "type": about["type"],
                "dtype": about["dtype"], "layers": len(self.decoder.layers),
                "dense": self.decoder.dense_layers, "choice": self.choice.to_json(),
                "chat": chat_text(self.tokenizer, "?") is not None}

    def hold(self, edit: Edit, where: str | None = None) -> Held:
        """Keep an edit, once. Raises RomeError where it is of another model."""
        with edit.applied(self.model):
            pass
        return self.edits.setdefault(edit.digest, Held(edit, where))

    def held(self, digest: str) -> Held:
        if digest not in self.edits:
            raise RomeError("this edit is not here any more: the explorer was started again; load "
                            "the page anew")
        return self.edits[digest]

    @contextmanager
    def edited(self, digests: Sequence[str]) -> Iterator[None]:
        """The model with these edits on, inside."""
        with ExitStack() as stack:
            for digest in digests:
                stack.enter_context(self.held(digest).edit.applied(self.model))
            yield

    def save(self, digest: str, name: str) -> Held:
        """Save an edit as `name` in the session's directory. Raises RomeError for a name that is
        more than a name, and where something is there already."""
        held, name = self.held(digest), name.strip()
        if not _NAME.fullmatch(name):
            raise RomeError(f"{name!r} is not a plain name; give one without slashes that begins "
                            "with a letter or digit, such as 'louvre'")
        path = self.output / name
        if path.exists() or path.is_symlink():
            raise RomeError(f"there is a {name!r} in {str(self.output.resolve())!r} already; "
                            "choose another name")
        held.edit.save(check_destination(path))
        held.where = str(path)
        return held
