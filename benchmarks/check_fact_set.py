"""Is our set of public facts in order, and how many questions of several hops does it make?

  python benchmarks/check_fact_set.py [--data data/facts.json]

Prints a table of the relations and the totals. A chain is two or three facts, each of which begins
with the entity, and the kind of entity, that the one before it ends with; no entity comes twice in
it. Exit status 1, and a line for every problem, where the file is not in order.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

FACTS = Path(__file__).parent.parent / "data" / "facts.json"
FEWEST = {"relations": 25, "facts": 1200, "texts": 4, "facts of a relation": 20, "objects": 3}


def triples(data) -> list[tuple[str, str, str]]:
    """(relation, subject, object) of every fact."""
    return [(name, *fact) for name, facts in data["facts"].items() for fact in facts]


def kinds(data) -> dict[str, set[str]]:
    """{entity: the kinds that it is used as}."""
    found = defaultdict(set)
    for name, subject, obj in triples(data):
        if about := data["relations"].get(name):
            found[subject].add(about["subject"])
            found[obj].add(about["object"])
    return found


def chains(data, hops: int) -> list[tuple[str, ...]]:
    """(entity, relation, entity, ...) of every chain of that many facts."""
    facts, starts = triples(data), defaultdict(list)
    for name, subject, obj in facts:
        starts[data["relations"][name]["subject"], subject].append((name, obj))
    found = [(subject, name, obj) for name, subject, obj in facts]
    for _ in range(hops - 1):
        found = [(*chain, name, obj) for chain in found
                 for name, obj in starts[data["relations"][chain[-2]]["object"], chain[-1]]
                 if obj not in chain[::2]]
    return found


def fewer(what: str, count: int, of: str = "") -> list[str]:
    """A line where there are too few of something."""
    fewest = FEWEST[what]
    return [f"{of}{count} {what}, fewer than {fewest}"] if count < fewest else []


def relation_problems(name: str, about, facts) -> list[str]:
    """What is wrong with the texts of a relation, or with how many facts it has."""
    texts = about["texts"]
    out = [*fewer("texts", len(texts), f"{name}: "),
           *fewer("facts of a relation", len(facts), f"{name}: "),
           *fewer("objects", len({obj for _, obj in facts}), f"{name}: ")]
    out += [f"{name}: text twice: {text!r}" for text, times in Counter(texts).items() if times > 1]
    for text in [*texts, about["question"]]:
        if text.count("{}") != 1:
            out.append(f"{name}: not one {{}} in {text!r}")
        if text != " ".join(text.split()):
            out.append(f"{name}: spaces to spare in {text!r}")
    return out


def problems(data) -> list[str]:
    """A line for everything in the file that is not as it should be."""
    facts, out = triples(data), []
    out += fewer("relations", len(data["relations"])) + fewer("facts", len(facts))
    out += [f"{name}: facts of an unknown relation"
            for name in data["facts"] if name not in data["relations"]]
    for name, about in data["relations"].items():
        out += relation_problems(name, about, data["facts"].get(name, []))
    out += [f"{name}: fact twice: {subject} - {obj}"
            for (name, subject, obj), times in Counter(facts).items() if times > 1]
    answers = defaultdict(set)
    for name, subject, obj in facts:
        answers[name, subject].add(obj)
    out += [f"{name}: several objects for {subject}: {', '.join(sorted(objects))}"
            for (name, subject), objects in answers.items() if len(objects) > 1]
    for entity, used in kinds(data).items():
        if not entity or entity != " ".join(entity.split()):
            out.append(f"spaces to spare in the entity {entity!r}")
        if len(used) > 1:
            out.append(f"{entity} is used as several kinds: {', '.join(sorted(used))}")
    return out


def print_table(data) -> None:
    """A line for each relation, then the totals."""
    print(f"{'relation':20} {'facts':>5} {'objects':>7}  example")
    for name, about in data["relations"].items():
        facts = data["facts"][name]
        subject, obj = facts[0]
        print(f"{name:20} {len(facts):5} {len({obj for _, obj in facts}):7}  "
              f"{about['texts'][0].format(subject)} {obj}")
    print(f"\n{len(data['relations'])} relations, {len(triples(data))} facts, "
          f"{len(kinds(data))} entities")
    for hops in (2, 3):
        found = chains(data, hops)
        print(f"{len(found)} chains of {hops} hops, "
              f"along {len({chain[1::2] for chain in found})} sequences of relations")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE", type=Path, default=FACTS)
    args = parser.parse_args()
    data = json.loads(args.data.read_text("utf-8"))
    found = problems(data)
    if not found:
        print_table(data)
    print("\n".join(found) or "every fact is in order")
    sys.exit(bool(found))
