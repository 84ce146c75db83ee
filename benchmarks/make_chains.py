"""Chains of our own facts that a model knows, as records of MQuAKE's format: data/chains.json.

  python benchmarks/make_chains.py --output data/chains.json

Every chain is two or three facts of data/facts.json, each of which begins with the entity that the
one before it ends with. The first fact is rewritten to another object of its relation, from which
the same relations lead to another end. Kept are chains of which the model gives every single step,
before and after the rewriting, and the end before it, as its first choice (each token, in one
phrasing or more): what is asked is whether the rewriting reaches the end, not whether the model
knows. At most 16 of the same relations.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.models.probabilities import token_scores  # noqa: E402
from rome_mlx.storage.fact_set import read_fact_set  # noqa: E402
from rome_mlx.storage.files import write_whole  # noqa: E402

MOST, TRIED, ASKED = 16, 60, 64  # chains of the same relations: kept, tried; asked at once
_KIND = re.compile(r"(the |The )?((American )?city|US state|country|company|river|work|island"
                   r"|film|band|airline) (of )?(?=\{\})|(the |The )(?=\{\})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="(default: the default model)")
    parser.add_argument("--output", required=True, metavar="FILE")
    args = parser.parse_args()
    model, tokenizer = rm.load(args.model)
    relations = {one.name: one for one in read_fact_set()}
    steps = known_steps(model, tokenizer, relations.values())
    print(f"{len(steps)} of {sum(len(one.facts) for one in relations.values())} facts are known")
    drafts = drafted(relations, steps)
    known = known_texts(model, tokenizer, [(draft["asked"], draft["answer"]) for draft in drafts])
    records = [draft for draft, text in zip(drafts, known, strict=True) if text is not None]
    records = few_of_each(records)
    records = [records[i] for i in np.random.RandomState(0).permutation(len(records))]
    for i, record in enumerate(records):
        record["case_id"] = i
        del record["relations"], record["asked"]
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    write_whole(args.output, f"[\n{lines}\n]\n")
    counts = Counter(len(record["new_single_hops"]) for record in records)
    print(f"{len(records)} of {len(drafts)} chains kept, by hops: {dict(sorted(counts.items()))}")


def known_steps(model, tokenizer, relations) -> dict[tuple[str, str], dict]:
    """{(relation, subject): the step as a record has it} of the facts that the model knows."""
    facts = [(one, *fact) for one in relations for fact in one.facts]
    texts = known_texts(model, tokenizer, [([text.replace("{}", subject) for text in one.texts],
                                            answer) for one, subject, answer in facts])
    return {(one.name, subject): {"question": one.question.replace("{}", subject), "cloze": text,
                                  "answer": answer}
            for (one, subject, answer), text in zip(facts, texts, strict=True) if text is not None}


def drafted(relations: dict, steps: dict) -> list[dict]:
    """Records of chains whose single steps are all known."""
    random, after = np.random.RandomState(0), defaultdict(list)
    for name, subject in steps:
        after[relations[name].subject, subject].append(name)
    found = defaultdict(list)
    for (name, subject), step in steps.items():
        for path in paths(relations, steps, after, name, subject):
            objects = [o for o in relations[name].objects if o != step["answer"] != subject]
            found[path].append((subject, [str(o) for o in random.permutation(objects)]))
    records = []
    for path, starts in found.items():
        made = (record(relations, steps, path, *starts[i]) for i in
                random.permutation(len(starts)))
        records += [one for one in made if one is not None][:TRIED]
    return records


def paths(relations, steps, after, name: str, subject: str) -> list[tuple[str, ...]]:
    """The relations of the chains of two and three known steps that begin with this one."""
    found, ends = [], [((name,), steps[name, subject]["answer"])]
    for _ in range(2):
        ends = [((*path, step), steps[step, entity]["answer"]) for path, entity in ends
                if relations[path[-1]].phrase for step in after[relations[path[-1]].object, entity]
                if step not in path]
        found += [path for path, _ in ends]
    return found


def followed(steps, path: tuple[str, ...], entity: str) -> list[dict] | None:
    """The steps along these relations, None where one is not known or an entity comes again."""
    out, seen = [], {entity}
    for name in path:
        if (name, entity) not in steps:
            return None
        out.append(steps[name, entity])
        entity = out[-1]["answer"]
        if entity in seen:
            return None
        seen.add(entity)
    return out


def record(relations, steps, path, subject: str, objects: list[str]) -> dict | None:
    """The chain with its first object replaced by the first that leads on to another end."""
    old = followed(steps, path, subject)
    if old is None:
        return None
    for new in objects:
        rest = followed(steps, path[1:], new)
        if rest is None or rest[-1]["answer"] == old[-1]["answer"] or subject in (
                one["answer"] for one in rest):
            continue
        first, last = relations[path[0]], relations[path[-1]]
        prompt = old[0]["cloze"].replace(subject, "{}", 1)
        phrase = lower(subject)
        for name in path[:-1]:
            phrase = relations[name].phrase.replace("{}", phrase)
        return {
            "relations": path, "case_id": 0,
            "requested_rewrite": [{
                "prompt": prompt, "relation_id": first.name, "subject": subject,
                "target_new": {"str": new}, "target_true": {"str": old[0]["answer"]},
                "question": old[0]["question"]}],
            "questions": [worded(last.question, phrase)],
            "asked": [worded(text, phrase) for text in last.texts],
            "clozes": [worded(text, phrase) for text in last.texts if "{}'s" not in text],
            "answer": old[-1]["answer"], "new_answer": rest[-1]["answer"], "single_hops": old,
            "new_single_hops": [{**old[0], "answer": new}, *rest]}
    return None


def lower(subject: str) -> str:
    return f"the {subject[4:]}" if subject.startswith("The ") else subject


def worded(text: str, phrase: str) -> str:
    """A relation's text with a phrase for its subject, which says the kind of thing itself."""
    text = _KIND.sub("", text).replace("{}", phrase)
    return text[0].upper() + text[1:]


def few_of_each(records: list[dict]) -> list[dict]:
    """At most MOST records of the same relations."""
    count: Counter = Counter()
    kept = []
    for one in records:
        count[one["relations"]] += 1
        if count[one["relations"]] <= MOST:
            kept.append(one)
    return kept


def known_texts(model, tokenizer, asked: list[tuple[list[str], str]]) -> list[str | None]:
    """Of each (texts, answer) the first text after which every token of the answer is the model's
    first choice; None where there is none."""
    found: list[str | None] = [None] * len(asked)
    for turn in range(max(len(texts) for texts, _ in asked)):
        left = [i for i, (texts, _) in enumerate(asked) if found[i] is None and turn < len(texts)]
        for at in tqdm(range(0, len(left), ASKED), desc=f"phrasing {turn + 1}"):
            some = left[at: at + ASKED]
            scores = token_scores(model, tokenizer, [(asked[i][0][turn], asked[i][1])
                                                     for i in some])
            for i, tokens in zip(some, scores, strict=True):
                if all(first for _, first in tokens):
                    found[i] = asked[i][0][turn]
    return found


if __name__ == "__main__":
    main()
