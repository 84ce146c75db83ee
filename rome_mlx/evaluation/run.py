"""Run the benchmark: one JSON file a case, each written whole, so that a run can be killed."""

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from ..decoder import Decoder
from ..editing.hyperparameters import hyperparameters as resolve
from ..editing.methods import WITHOUT_MOMENTS, layers_up_to, templates_of
from ..editing.methods import method as find_method
from ..errors import RomeError
from ..fingerprint import fingerprint, same
from ..json_files import write_json
from ..moments.lookup import ensure_moments
from ..pipeline import usual_layer
from .metrics import case_measures, case_scores
from .summary import ceiling_share, summarize


def evaluate(model, tokenizer, cases, *, output: str | Path, layer: int | None = None,
             method: str = "rome", hyperparameters=None, moments=None, seed: int = 0,
             templates=None, progress: bool = False) -> dict:
    """Edit, measure and take back every case; returns the summary, also in output/summary.json.

    layer: by default the model's preset's, or its profile's. Cases that have a file in `output`
    are not computed again. method "none" measures the unedited model only. Raises RomeError when
    `output` holds a run with other settings.
    """
    started, output = time.monotonic(), Path(output)
    editor = None if method == "none" else find_method(method)
    decoder = Decoder(model)
    layer = decoder.check_layer(usual_layer(decoder) if layer is None else layer)
    where = layer
    if editor is not None:
        hyperparameters = resolve(hyperparameters, method, decoder)
        where = layers_up_to(method, layer, hyperparameters)
        if method not in WITHOUT_MOMENTS:
            layers = [where] if isinstance(where, int) else where
            moments = ensure_moments(model, tokenizer, layers, moments, seed=seed,
                                     progress=progress)
        templates = templates or templates_of(method, model, tokenizer, seed,
                                              hyperparameters)
    settings = {"method": method, "layer": layer, "seed": seed, "context_templates": templates,
                "hyperparameters": repr(hyperparameters), "moments": _label(moments),
                "fingerprint": fingerprint(decoder.module(layer, "down"))}
    _begin(output, settings)
    results = []
    for case in tqdm(cases, disable=not progress, file=sys.stderr, unit="case"):
        path = output / f"case_{case.case_id}.json"
        result = _finished(path, case)
        if result is None:
            result = _one(model, tokenizer, case, editor, where, moments, templates,
                          hyperparameters, seed)
            write_json(str(path), result)
        results.append(result)
    edited = summarize([case_measures(r["post"], r["pre"]) for r in results])
    unedited = summarize([case_measures(r["pre"], r["pre"]) for r in results])
    summary = {"method": method, "cases": len(results), **edited, "unedited": unedited,
               "ceiling_share": ceiling_share(edited, unedited) if "score" in edited else None}
    write_json(str(output / "summary.json"), summary)
    return {**summary, "seconds": time.monotonic() - started}


def _one(model, tokenizer, case, editor, layer, moments, templates, hyperparameters, seed) -> dict:
    before = case_scores(model, tokenizer, case)
    after = before
    if editor is not None:
        edit = editor(model, tokenizer, case.request, layer, moments=moments, seed=seed,
                      context_templates=templates, hyperparameters=hyperparameters)
        with edit.applied(model):
            after = case_scores(model, tokenizer, case)
    return {"case_id": case.case_id, "request": vars(case.request), "pre": before, "post": after}


def _label(moments) -> str | None:
    return str(moments) if isinstance(moments, str | Path) else type(moments).__name__


def _begin(output: Path, settings: dict) -> None:
    """Make the directory, or check that what is there is the same run."""
    path = output / "run.json"
    if output.exists() and not output.is_dir():
        raise RomeError(f"{str(output)!r} is not a directory; choose another --output")
    if not path.exists():
        if output.is_dir() and any(output.iterdir()):
            raise RomeError(f"{str(output)!r} holds other files; choose a new --output")
        output.mkdir(parents=True, exist_ok=True)
        write_json(str(path), settings)
        return
    try:
        found = json.loads(path.read_text("utf-8"))
        differing = [name for name, value in settings.items()
                     if name != "fingerprint" and found[name] != value]
        if not same(found["fingerprint"], settings["fingerprint"]):
            differing.append("model")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RomeError(f"{path} is damaged ({error}); choose a new --output") from error
    if differing:
        raise RomeError(f"{str(output)!r} holds a run with another {', '.join(differing)}; choose "
                        "a new --output, or the same settings to go on with it")


def _finished(path: Path, case) -> dict | None:
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text("utf-8"))
        if result["request"] != vars(case.request):
            raise RomeError(f"{path} is of another record; choose a new --output")
        case_measures(result["post"], result["pre"])
        return result
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, RomeError):
            raise
        raise RomeError(f"{path} is damaged ({error}); remove it and run again") from error
