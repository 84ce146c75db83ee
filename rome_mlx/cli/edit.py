"""Locate the layer that decides a fact, edit it, trace again, and show what changed.

  rome-mlx edit --prompt "{} is located in the city of" --subject "The Eiffel Tower" \\
      --target-new Rome --save-path edits/eiffel --report eiffel.html
"""

import argparse
import sys
import time
from dataclasses import replace

from ..errors import RomeError
from .common import (
    add_model_arguments,
    add_moments_arguments,
    check_file,
    check_moments_corpus,
    given_hyperparameters,
    load_model,
    positive,
    read_json,
    tell_health,
    tokens_about,
    write_json,
)


def layer_choice(text: str):
    """argparse type: auto or a layer's number."""
    if text == "auto":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a layer's number")
    return int(text)


def add_arguments(parser) -> None:
    parser.add_argument("--prompt", help="with {} where the subject goes")
    parser.add_argument("--subject")
    parser.add_argument("--target-new", help="what the model should say")
    parser.add_argument("--requests", metavar="FILE",
                        help="JSON or JSONL of many requests: written at once by methods of many "
                             "facts, one after the other by rome, r-rome and p-rome")
    parser.add_argument("--batch", type=positive, metavar="B",
                        help="write --requests one batch after the other, without tracing or "
                             "verifying each; with --save-path a run that is stopped goes on")
    parser.add_argument("--method",
                        help="rome, r-rome, p-rome, memit, emmet, alphaedit, ultraedit, ft, ft-l "
                             "or lora (default rome, with --batch memit)")
    parser.add_argument("--hyperparameters", metavar="published|PRESET|FILE",
                        help="published, a preset such as gpt-j, or a JSON file of some of them")
    parser.add_argument("--layer", type=layer_choice, default="auto",
                        help="a number, or auto (default): what calibration or a preset says of "
                             "this model, else the layer that decides in it, else by depth")
    add_moments_arguments(parser)
    parser.add_argument("--paraphrase", action="append", default=[], metavar="P",
                        help="another way to ask; may be given again")
    parser.add_argument("--neighbor", action="append", default=[], metavar="P",
                        help="a prompt that should not change; may be given again")
    parser.add_argument("--no-verify", action="store_true",
                        help="write the edit and measure nothing; no trace either")
    parser.add_argument("--save-path", metavar="DIR", help="save the edit as an mlx-lm adapter")
    parser.add_argument("--bits", choices=["keep"],
                        help="keep: save it as changes of a quantized model's own codes, not as an "
                             "adapter")
    parser.add_argument("--report", metavar="FILE.html",
                        help="write a page: maps, layer, losses, before and after")
    parser.add_argument("--json", metavar="FILE", help="write the result")
    add_model_arguments(parser, dry_run=True)


def sizes(args) -> dict:
    requests = [request for request, _, _ in _cases(args)]
    return {"method": args.method or ("rome" if args.batch is None else "memit"),
            "layers": args.layer, "cases": len(requests),
            "moments": args.moments, "verification": not args.no_verify and args.batch is None,
            **tokens_about(requests)}


def run(args) -> int:
    from ..editing.adapter import check_destination
    from ..editing.methods import find_method
    from ..editing.requests import check_requests
    from ..evaluation.collapse import Guard
    from ..models.decoder import Decoder

    if args.no_verify and args.report is not None:
        raise RomeError("--report shows what --no-verify leaves out; give one or the other")
    cases = _cases(args)
    args.method = args.method or ("rome" if args.batch is None else "memit")
    editor = find_method(args.method)
    if args.batch is None:
        check_requests(request for request, _, _ in cases)
    given = given_hyperparameters(args.hyperparameters, args.method)
    editor.resolve(given)  # refused before the model is read
    check_moments_corpus(args)
    check_file(args.json)
    check_file(args.report)
    if args.save_path is not None:
        check_destination(args.save_path)
    stored = _stored(args, editor) if args.bits else None
    if args.batch is not None:
        from . import sequence

        return sequence.write(args, [request for request, _, _ in cases], given)
    model, tokenizer = load_model(args)
    hp = editor.resolve(given, Decoder(model))
    groups = [[case] for case in cases] if editor.one_by_one else [cases]
    templates = editor.kept_templates(model, tokenizer, args.seed, hp)  # before any edit
    guard = Guard(model, tokenizer) if len(cases) > 1 else None
    results, edits, found, started = [], [], [], time.monotonic()
    try:
        for group in groups:
            begun = time.monotonic()
            written = _edit(model, tokenizer, group, args, given, hp, templates)
            seconds = (time.monotonic() - begun) / len(group)
            results += [{**result.to_json(), "seconds": seconds, "adapter": args.save_path}
                        for result in written]
            found += written
            edits.append(written[0].edit)
            if len(cases) > 1:
                edits[-1].apply(model)
        health = guard and tell_health(guard)
    finally:
        for edit in reversed(edits):
            if edit.is_applied(model):
                edit.revert(model)
    _save(args, edits, stored)
    if args.report is not None:
        from ..view.report import edit_report

        edit_report(found, args.report, adapter=args.save_path)
        print(f"\nReport in {args.report}")
    write_json(args.json, results[0] if args.requests is None else
               {"edits": results, "health": health and health.to_json(),
                "seconds": time.monotonic() - started})
    return _tell_missed(found)


def _edit(model, tokenizer, cases, args, given, hp, templates) -> list:
    from ..pipeline import locate_then_edit_all
    from ..view.story import Story

    story = Story(cases[0][0], hp.v_num_grad_steps if hasattr(hp, "v_num_grad_steps")
                  else hp.steps + 1)
    found = locate_then_edit_all(
        model, tokenizer, cases, layer=args.layer, method=args.method, moments=args.moments,
        corpus=args.corpus, hyperparameters=given, context_templates=templates, seed=args.seed,
        progress=story.tell, verification=not args.no_verify)
    for result in found:
        story.end(result)
    return found


def _tell_missed(found) -> int:
    """Name the requests that the edited model does not prefer; the exit status."""
    missed = [result.request.text for result in found
              if result.verification and not result.verification.written]
    if missed:
        print(f"rome-mlx: {len(missed)} of {len(found)} requests not written: the old answer is "
              f"still likelier at {', '.join(map(repr, missed[:3]))}"
              f"{' …' if len(missed) > 3 else ''}", file=sys.stderr)
    return 1 if missed else 0


def _stored(args, editor):
    """(model, tokenizer) as stored, whose codes are to change. Raises RomeError where that cannot
    be, before any work."""
    from ..models.codes import check_codes
    from ..models.decoder import Decoder
    from ..models.loading import load

    if args.save_path is None or args.batch is not None or not editor.needs_moments:
        raise RomeError("--bits keep saves an edit of rome, memit or another that needs moments; "
                        "give --save-path, and no --batch")
    model, tokenizer = load(args.model, dtype="stored")
    decoder = Decoder(model)
    layer = decoder.dense_layers[0]
    check_codes(decoder.module(layer, "down"), decoder.path(layer, "down"))
    return model, tokenizer


def _save(args, edits, stored) -> None:
    from ..editing.edit import stack
    from ..evaluation.remeasure import measured_again

    if args.save_path is None:
        return
    edit = edits[0] if len(edits) == 1 else stack(edits)
    if stored is not None:
        measured = edit.numbers  # of the edit in float
        edit = edit.quantized(*stored, moments=args.moments)
        edit.numbers = measured and measured_again(*stored, replace(edit, numbers=measured))
        edit.save(args.save_path)
        changed = ", ".join(f"{delta.share:.1%} of {path}" for path, delta in edit.deltas.items())
        print(f"\nSaved in {args.save_path}: changed codes, {changed}.\nWrite the whole model, as "
              f"large as it was, with\n  rome-mlx edits fuse {args.save_path} --save-path MODEL")
        return
    edit.save(args.save_path)
    print(f"\nSaved in {args.save_path}. Use it, or leave it out to be without it:\n"
          f"  mlx_lm.generate --model MODEL --adapter-path {args.save_path} \\\n"
          f"    --ignore-chat-template --prompt {edit.request.text!r}\n"
          f"MODEL is the \"path\" in {args.save_path}/edit.json. In Python: "
          "edit.revert(model)")


def _cases(args) -> list[tuple]:
    """[(request, paraphrases, neighbors)] from the flags or the file."""
    from ..facts import EditRequest

    if args.batch is not None and (args.requests is None or args.report is not None):
        raise RomeError("--batch is of --requests, and leaves no --report; give --requests FILE, "
                        "or one fact without --batch")
    flags = {"--prompt": args.prompt, "--subject": args.subject, "--target-new": args.target_new}
    if args.requests is None:
        if missing := [flag for flag, value in flags.items() if value is None]:
            raise RomeError(f"{', '.join(missing)} missing; give --prompt, --subject and "
                            "--target-new, or --requests FILE")
        return [(EditRequest(args.prompt, args.subject, args.target_new), args.paraphrase,
                 args.neighbor)]
    if any(value is not None for value in flags.values()) or args.paraphrase or args.neighbor:
        raise RomeError("--requests FILE comes instead of --prompt, --subject, --target-new, "
                        "--paraphrase and --neighbor; give one or the other")
    records = read_json(args.requests)
    if not isinstance(records, list) or not records:
        raise RomeError(f"{args.requests!r} holds no list of requests; see rome-mlx edit --help")
    return [_case(args.requests, i, record) for i, record in enumerate(records)]


def _case(path: str, index: int, record) -> tuple:
    from ..facts import EditRequest, Fact

    try:
        if "requested_rewrite" in record:  # CounterFact
            rewrite = record["requested_rewrite"]
            return (EditRequest(rewrite["prompt"], rewrite["subject"],
                                rewrite["target_new"]["str"], rewrite["target_true"]["str"]),
                    record.get("paraphrase_prompts", []), record.get("neighborhood_prompts", []))
        prompt = record["prompt"]
        if "{}" not in prompt:  # EasyEdit's: the subject stands in it
            prompt = Fact.from_text(prompt, record["subject"]).prompt
        return (EditRequest(prompt, record["subject"], record["target_new"],
                            record.get("target_true", record.get("ground_truth"))),
                record.get("paraphrases", []), record.get("neighbors", []))
    except (KeyError, TypeError, AttributeError) as error:
        raise RomeError(f"{path!r}, record {index}: needs prompt, subject and target_new "
                        f"({type(error).__name__}: {error})") from error
    except RomeError as error:
        raise RomeError(f"{path!r}, record {index}: {error}") from error
