"""Facts from files: the known-facts format of the ROME paper, or plain JSON and JSONL."""

from pathlib import Path

from ..errors import RomeError
from ..facts import Fact
from .files import read_json

_FIELDS = ("prompt", "subject", "attribute")


def read_facts(path: str | Path, limit: int | None = None) -> list[Fact]:
    """The first `limit` facts of a JSON list or JSONL file of records.

    A record has "prompt" and "subject", and "attribute" where the answer is known. A prompt with
    `{}` is taken as it is; in another the subject is looked up. The published "template" is not
    read: in many records of the known facts it is not the template of the prompt.
    Raises RomeError for a file of something else, and names a bad record by its index.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise RomeError(f"{str(path)!r} has no facts; give a list of records with prompt and "
                        "subject")
    if limit is not None and limit < 1:
        raise RomeError(f"the limit is {limit}; give 1 or more")
    return [_fact(record, f"record {i} of {str(path)!r}")
            for i, record in enumerate(records[:limit])]


def _fact(record, where: str) -> Fact:
    if not isinstance(record, dict):
        raise RomeError(f"{where} is not a record with prompt and subject; mend it")
    prompt, subject, attribute = (record.get(name) for name in _FIELDS)
    for name, value in zip(_FIELDS, (prompt, subject, attribute or ""), strict=True):
        if not isinstance(value, str):
            raise RomeError(f"{where} has no {name} that is a text; mend it")
    try:
        if "{}" in prompt:
            return Fact(prompt, subject, attribute)
        return Fact.from_text(prompt, subject, attribute)
    except RomeError as error:
        raise RomeError(f"{where}: {error}") from error
