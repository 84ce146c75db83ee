"""What the unedited model gives, computed once, kept in the cache and shared by all runs."""

import hashlib
import json
from collections.abc import Callable

import mlx.core as mx

from ..editing.edit import versions
from ..errors import RomeError
from ..models.identity import Identity
from ..models.loading import describe
from ..models.tokens import encode
from ..storage.places import cache_directory
from ..storage.run_store import Item, Run


class Unedited:
    """Values of one model in ROME_MLX_CACHE/unedited, a run's directory for each model, number
    format, device and version, one small JSON file per value.

    "Unedited" is the model as it is when this is made, with its adapters and applied edits.
    """

    def __init__(self, model, tokenizer):
        self.tokenizer, identity = tokenizer, Identity.of(model)
        settings = {**describe(model, tokenizer), "versions": versions(),
                    "device": str(mx.default_device())}
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        directory = cache_directory() / "unedited" / f"{identity.digest}-{name}"
        try:
            self.run = Run(directory, settings, identity)
        except RomeError:  # a cache that cannot be used is no reason to fail
            self.run = Run(None, settings)

    def get(self, what: str, about: dict, text: str, compute: Callable):
        """compute(), or what it gave before; about: all that its value depends on beside the
        model; text: one whose tokens stand for the tokenizer."""
        about = {"what": what, **about, "ids": encode(self.tokenizer, text).ids}
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        return self.run.one(Item(name, {"about": about}), lambda: {"value": compute()})["value"]
