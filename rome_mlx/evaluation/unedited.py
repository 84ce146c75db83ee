"""What the unedited model gives, computed once, kept in the cache and shared by all runs."""

import hashlib
import json
from collections.abc import Callable

import mlx.core as mx

from ..editing.edit import versions
from ..errors import RomeError
from ..models.applied import edits_of
from ..models.decoder import Decoder
from ..models.identity import fingerprint
from ..models.loading import describe
from ..models.tokens import encode
from ..storage.files import read_json, write_json
from ..storage.places import cache_directory


class Unedited:
    """Values of one model in ROME_MLX_CACHE/unedited, one small JSON file each.

    They are found by the model's path, type and number format, the fingerprints of all its MLPs,
    the device, the versions and what was asked. A model with adapters or applied edits is not
    looked up: its values are computed for each run.
    """

    def __init__(self, model, tokenizer):
        decoder = Decoder(model)
        adapted = any("linear" in module for _, module in model.named_modules())
        self.plain = not adapted and not edits_of(model)
        self.directory = cache_directory() / "unedited"
        self.tokenizer = tokenizer
        self.model = {**describe(model, tokenizer), "versions": versions(),
                      "device": str(mx.default_device()), "weights": [
            [f"{x:.4g}" for x in fingerprint(decoder.module(i, "down"))]
            for i in decoder.dense_layers]}

    def get(self, what: str, about: dict, text: str, compute: Callable):
        """compute(), or what it gave before; about: all that its value depends on beside the
        model; text: one whose tokens stand for the tokenizer."""
        if not self.plain:
            return compute()
        key = json.dumps([what, about, encode(self.tokenizer, text).ids, self.model])
        path = self.directory / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        if path.exists():
            try:
                return read_json(path)
            except RomeError:
                path.unlink(missing_ok=True)
        value = compute()
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
        return value
