"""An edit: changes of named weights, with where they come from, and a way back."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from ..errors import RomeError
from ..facts import EditRequest
from ..models import applied
from ..models.codes import CodeChange, check_change
from ..models.hooks import find_module
from ..models.identity import Identity, fingerprint, same
from ..models.loading import describe, versions
from .adapter import save_edit
from .lowrank import LowRank
from .quantized import quantized


@dataclass(eq=False)
class Edit:
    """What one call of an editor found. The model is not changed until `apply`.

    deltas: {module path: LowRank, or CodeChange of a quantized weight}; requests: what was
    written; layers; losses: one dict per step; fingerprints: {module path: of the original weight};
    model: {"path", "type", "dtype", "identity"}; moments: {layer: {"corpus", "tokens", "sha256"}}
    of the C that was used, None for methods without; numbers: what `verify` measured, kept when
    the edit is saved; details: what else a method says, as AlphaEdit {"null_space": [{"layer",
    "directions", "of", "energy"}]}; keys: {module path: (d_in, n)}, where MEMIT, EMMET and
    AlphaEdit wrote, and targets: {module path: (d_out, n)}, what they had to add there, float64;
    carries: digests of edits whose change is part of this one.
    """

    method: str
    requests: list[EditRequest]
    deltas: dict[str, LowRank | CodeChange]
    layers: list[int]
    hyperparameters: object | None = None
    context_templates: list[str] = field(default_factory=list, repr=False)
    losses: list[dict] = field(default_factory=list, repr=False)
    seed: int = 0
    fingerprints: dict[str, list[float]] = field(default_factory=dict, repr=False)
    model: dict = field(default_factory=dict)
    moments: dict | None = field(default=None, repr=False)
    versions: dict = field(default_factory=dict, repr=False)
    numbers: dict = field(default_factory=dict, repr=False)
    details: dict = field(default_factory=dict, repr=False)
    keys: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    targets: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    carries: frozenset[str] = field(default=frozenset(), repr=False)

    @cached_property
    def digest(self) -> str:
        """A hash of what it does: the same for a saved edit and its loaded copy."""
        digest = hashlib.sha256()
        for path, delta in sorted(self.deltas.items()):
            digest.update(path.encode())
            for part in delta.arrays:
                digest.update(part.tobytes())
        return digest.hexdigest()[:16]

    @property
    def in_codes(self) -> bool:
        """Whether it changes codes of quantized weights, and serves them alone."""
        return any(isinstance(delta, CodeChange) for delta in self.deltas.values())

    @property
    def request(self) -> EditRequest:
        return self.requests[0]

    @property
    def layer(self) -> int:
        return self.layers[0]

    def _only(self) -> LowRank:
        deltas = list(self.deltas.values())
        if len(deltas) != 1 or getattr(deltas[0], "rank", None) != 1:
            raise RomeError("this edit is not of rank one; read edit.deltas")
        return deltas[0]

    @property
    def left_vector(self) -> np.ndarray:
        """(d_in,) float64: ΔW = right leftᵀ."""
        return self._only().a[:, 0]

    @property
    def right_vector(self) -> np.ndarray:
        """(d_out,) float64."""
        return self._only().b[0]

    def apply(self, model, *, force: bool = False) -> None:
        """Write into float weights; put a side adapter on quantized ones, or change their codes.

        Raises RomeError when the edit is applied already, and, unless `force`, when a weight is
        not the one that it was computed for.
        """
        self._check(model, force)
        for path, delta in self.deltas.items():
            applied.add(model, path, self, delta)

    def revert(self, model) -> None:
        """Take the edit back. With all edits reverted, every array is the one before."""
        there = {path: applied.applied_copy(model, path, self) for path in self.deltas}
        if None in there.values():
            raise RomeError("this edit is not applied to this model; nothing to revert")
        for path, edit in there.items():
            applied.remove(model, path, edit)

    def is_applied(self, model) -> bool:
        """Whether it, a copy of it such as the saved one loaded again, or an `EditSequence` that
        it is part of, is on the model."""
        return (all(applied.applied_copy(model, path, self) for path in self.deltas)
                or any(self.digest in edit.carries for edit in applied.edits_of(model)))

    @contextmanager
    def applied(self, model, *, force: bool = False):
        """`with edit.applied(model):` the edit is there inside, and gone after."""
        self.apply(model, force=force)
        try:
            yield model
        finally:
            self.revert(model)

    def _check(self, model, force: bool) -> None:
        for path, delta in self.deltas.items():
            try:
                module = find_module(model, path)
                shape = applied.linear_shape(model, path)
            except RomeError as error:
                raise RomeError(f"the edit is of another model ({self.model.get('path')}): "
                                f"{error}") from error
            if applied.applied_copy(model, path, self) is not None:
                raise RomeError(f"this edit is applied to {path} already; revert it first")
            wanted = delta.shape
            if shape != wanted:
                raise RomeError(f"the edit is for a {wanted[0]} × {wanted[1]} weight "
                                f"of {self.model.get('path')}, but {path} here is "
                                f"{shape[0]} × {shape[1]}; load the edit's model")
            if isinstance(delta, CodeChange):
                check_change(delta, applied.original(model, path), path)
            expected = self.fingerprints.get(path)
            if not force and expected is not None and not same(fingerprint(module), expected):
                raise RomeError(f"the weight of {path} is not the one this edit was computed for "
                                f"({self.model.get('path')}); load that model, or pass "
                                "force=True")
        computed = self.model.get("identity")
        if not force and computed and not Identity.from_json(computed).same_base(
                Identity.of(model)):
            raise RomeError(f"the edit was computed for {self.model.get('path')}, and although the "
                            "weight that it changes is the same here, others of this model are "
                            "not; load that model, or pass force=True")

    def norm_change(self, model) -> dict[str, float]:
        """{module path: ‖ΔW‖ / ‖W‖}, Frobenius, W the original weight."""
        return {path: delta.norm / fingerprint(find_module(model, path))[2]
                for path, delta in self.deltas.items()}

    def quantized(self, model, tokenizer, *, moments=None) -> Edit:
        """The edit as changes of a quantized model's own codes, to apply, revert, stack and save
        as any: nothing is added to the model.

        model: as it is stored, with the edits on it that are to stay; moments: as the editor takes
        them. Raises RomeError where a weight is not quantized in steps of equal size, or is no down
        projection, and as `apply`.
        """
        return quantized(self, model, tokenizer, moments=moments)

    def save(self, directory) -> None:
        """Save as an mlx-lm adapter, or as changed codes, with edit.json. Raises RomeError if
        something else is there."""
        save_edit(self, directory)


def provenance(model, tokenizer, paths) -> dict:
    """The fields of an Edit that say what it was computed on."""
    about = {**describe(model, tokenizer), "identity": Identity.of(model).to_json()}
    return {"model": about, "versions": versions(),
            "fingerprints": {path: fingerprint(find_module(model, path)) for path in paths}}


def stack(edits) -> Edit:
    """One Edit that does what all of `edits` do together, and holds all their keys."""
    edits = list(edits)
    if not edits:
        raise RomeError("there is no edit to stack; give one or more")
    deltas: dict[str, LowRank | CodeChange] = {}
    fingerprints: dict[str, list[float]] = {}
    keys: dict[str, np.ndarray] = {}
    targets: dict[str, np.ndarray] = {}
    for edit in edits:
        for path, delta in edit.deltas.items():
            if path in deltas and type(deltas[path]) is not type(delta):
                raise RomeError(f"one edit changes the codes of {path}, another is beside it in "
                                "float; make both with edit.quantized")
            deltas[path] = deltas[path] + delta if path in deltas else delta
            found = edit.fingerprints.get(path)
            if found and not same(fingerprints.setdefault(path, found), found):
                raise RomeError(f"the edits were computed for different weights at {path}; "
                                "stack edits of one model")
        for joined, some in ((keys, edit.keys), (targets, edit.targets)):
            for path, found in some.items():
                joined[path] = np.concatenate([joined.get(path, found[:, :0]), found], axis=1)
    first = {f.name: getattr(edits[0], f.name) for f in fields(Edit)}
    methods = {edit.method for edit in edits}
    alike = len(methods) == 1 and all(edit.hyperparameters == edits[0].hyperparameters
                                      for edit in edits)
    return Edit(**{**first, "method": methods.pop() if len(methods) == 1 else "stack",
                   "hyperparameters": edits[0].hyperparameters if alike else None, "keys": keys,
                   "targets": targets,
                   "requests": [r for edit in edits for r in edit.requests], "deltas": deltas,
                   "layers": sorted({layer for edit in edits for layer in edit.layers}),
                   "losses": [], "numbers": {}, "details": {}, "fingerprints": fingerprints,
                   "moments": _merged([edit.moments for edit in edits])})


def _merged(moments: list[dict | None]) -> dict | None:
    """What several edits say of the C that they used, by layer, where they say the same."""
    found: dict = {}
    for layer, about in (pair for one in moments for pair in (one or {}).items()):
        if found.setdefault(layer, about) != about:
            found[layer] = {"corpus": "several", "tokens": None, "sha256": None}
    return found or None
