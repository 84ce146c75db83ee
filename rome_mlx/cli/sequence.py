"""What `rome-mlx edit --batch` and `rome-mlx edits withdraw` do: sequences kept in a directory."""

import time
from pathlib import Path

from ..errors import RomeError
from .common import load_model, tell_health, write_json

PLACE = "sequence"  # in the directory of the saved edit: what it takes to go on
_EVERY = 100  # requests between two lines, where batches are small
_CROWDED = 0.3  # requests for each dimension of the keys, above which there is a warning


def write(args, requests: list, given) -> int:
    """Write the requests of a file in batches, and save them as one edit."""
    from ..editing.layer_choice import layers_to_edit
    from ..editing.methods import find_method
    from ..editing.sequence import EditSequence
    from ..evaluation.collapse import Guard
    from ..models.decoder import Decoder
    from ..moments.lookup import ensure_moments

    began = time.monotonic()
    model, tokenizer = load_model(args)
    guard = Guard(model, tokenizer)
    method = find_method(args.method)
    where = layers_to_edit(Decoder(model), method, args.layer, given)
    moments = ensure_moments(model, tokenizer, where, args.moments, seed=args.seed,
                             corpus=args.corpus) if method.needs_moments else None
    directory = args.save_path and Path(args.save_path) / PLACE
    with EditSequence(model, tokenizer, method.write, where, directory=directory, moments=moments,
                      hyperparameters=given, seed=args.seed) as sequence:
        print(f"{len(requests):,} requests by {method.name}, {args.batch} a batch"
              f"{_load(sequence, requests)}")
        if there := len(sequence.requests):
            print(f"{there:,} of them are there already; going on")
        told = there
        for edit in sequence.write(requests, args.batch):
            done = len(sequence.requests)
            if args.batch >= _EVERY or done - told >= _EVERY or done >= len(requests):
                _tell(done, len(requests), edit, sequence.results[-1])
                _tell_cost(sequence, done, len(requests), first=told == there)
                told = done
        health = tell_health(guard)
        results = sequence.results
        if directory is not None:
            sequence.edit().save(args.save_path)
            print(f"Saved in {args.save_path}\nas one edit, for --adapter-path; edits withdraw "
                  "takes single facts back, and the\nsame command with more requests goes on.")
    write_json(args.json, {"edits": results, "health": health.to_json(),
                           "seconds": time.monotonic() - began})
    return 0


def withdraw(args) -> int:
    """Take facts out of a saved sequence, and save it again."""
    from ..editing.saved import load_edit
    from ..editing.sequence import EditSequence
    from ..models.loading import load

    place = Path(args.directory) / PLACE
    if not (place / "run.json").is_file():
        raise RomeError(f"{args.directory!r} holds no sequence; give a directory that rome-mlx "
                        "edit --batch saved")
    source = args.model or load_edit(args.directory).model.get("path")
    model, tokenizer = load(source, dtype=args.dtype)
    with EditSequence.reopened(model, tokenizer, place, moments=args.moments) as sequence:
        found = [one for one in sequence.requests if one.subject == args.subject
                 and args.prompt in (None, one.prompt)]
        if not found:
            raise RomeError(f"no fact of {args.subject!r} is in {args.directory!r}; see rome-mlx "
                            f"edits show {args.directory}")
        for request in found:
            sequence.withdraw(request)
            print(f"Withdrawn: {request.text} → {request.target_new.strip()}")
        sequence.edit().save(args.directory)
    print(f"{args.directory}: {len(sequence.requests):,} facts left")
    return 0


def _load(sequence, requests) -> str:
    """Where they go, and how many that is for each dimension of the keys."""
    from ..models.decoder import Decoder

    decoder = Decoder(sequence.model)
    width = decoder.key_width
    layers = [sequence.layer] if isinstance(sequence.layer, int) else sequence.layer
    where = f", at layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else ""
    crowded = len(requests) / width
    return (f"{where}\n  ({crowded:.2f} for each of the keys' {width:,} dimensions"
            + ("; 0.39 cost the default model a fifth\n  in perplexity, 0.70 two fifths"
               if crowded > _CROWDED else "") + ")")


def _tell(done: int, count: int, edit, result: dict) -> None:
    likelier = edit.numbers["likelier"]
    second = result["seconds"] / len(edit.requests)
    left = second * (count - done) / 60
    print(f"{done:>6,}  the batch: {edit.numbers['said']:3.0f} % said"
          + (f", {likelier:3.0f} % likelier than before" if likelier is not None else "")
          + f"; {second:.2f} s an edit, {left:.0f} min left", flush=True)


def _tell_cost(sequence, done: int, count: int, first: bool) -> None:
    """How far other text is moved, and, of the first batches, what that will be in the end: it
    grows with the number of edits (docs/sequences.md)."""
    if not (found := sequence.disturbance()):
        return
    now = 100 * max(one["share"] for one in found.values())
    print(f"        of what an edited layer gives for other text {now:.2g} % is the edits'"
          + (f",\n        at this rate {now * count / done:.2g} % after all {count:,}"
             if first and done < count else ""), flush=True)
