"""What a model gives, computed once, kept in the cache and shared by every run and command."""

import hashlib
import json
from collections.abc import Callable, Sequence

import mlx.core as mx

from ..errors import RomeError
from ..storage.places import cache_directory
from ..storage.run_store import Item, Run
from .identity import Identity
from .loading import describe, versions
from .tokens import encode


class Kept:
    """Values of one model in ROME_MLX_CACHE/kept: a run's directory for each model, number format,
    device and version, one small JSON file per value.

        kept = Kept(model, tokenizer)
        templates = kept.get("templates", {"seed": 0}, "", lambda: sampled(model, tokenizer, 0))

    The model is the one that it is when this is made, with its adapters and applied edits.
    """

    def __init__(self, model, tokenizer):
        self.tokenizer, identity = tokenizer, Identity.of(model)
        settings = {**describe(model, tokenizer), "versions": versions(),
                    "device": str(mx.default_device())}
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        directory = cache_directory() / "kept" / f"{identity.digest}-{name}"
        try:
            self.run = Run(directory, settings, identity)
        except RomeError:  # a cache that cannot be used is no reason to fail
            self.run = Run(None, settings)

    def get(self, what: str, about: dict, text: str, compute: Callable):
        """compute(), or what it gave before.

        about: all that the value depends on beside the model, a dict that JSON can hold; text:
        one whose tokens stand for the tokenizer.
        """
        return self.run.one(self._item(what, about, text), lambda: {"value": compute()})["value"]

    def several(self, what: str, asked: Sequence[tuple[dict, str]],
                compute: Callable[[list[int]], Sequence]) -> list:
        """As `get` for each (about, text); compute: indices of what is missing -> their values."""
        items = [self._item(what, *one) for one in asked]
        found = [self.run.cached(item) for item in items]
        missing = [i for i, result in enumerate(found) if result is None]
        for i, value in zip(missing, compute(missing) if missing else (), strict=True):
            found[i] = {"value": value}
            self.run.write(items[i], found[i])
        return [result["value"] for result in found]

    def _item(self, what: str, about: dict, text: str) -> Item:
        about = {"what": what, **about, "ids": encode(self.tokenizer, text).ids if text else []}
        return Item(hashlib.sha256(json.dumps(about).encode()).hexdigest(), {"about": about})
