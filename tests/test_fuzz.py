"""Files of others, damaged in any way: a result or a RomeError that says what is wrong, never
another exception, and never code that runs."""

import copy
import json
import struct

import numpy as np
import pytest
from fakes import FakeTokenizer
from gguf_files import write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli.common import given_hyperparameters
from rome_mlx.cli.edit import _case
from rome_mlx.editing.methods.rome import ROME
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.mquake import read_mquake
from rome_mlx.evaluation.questions import read_qaedit, read_zsre
from rome_mlx.models.gguf.convert import convert
from rome_mlx.moments import store

FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["{}", "{} {}", "\x00", "../..", "a {} b", "rome"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=6) | st.just("str"), inner, max_size=3), max_leaves=6)

FACT = {"prompt": "{} is in", "subject": "Paris", "attribute": "France"}
REQUEST = {"prompt": "{} is in", "subject": "Paris", "target_new": "Rome", "target_true": "France",
           "paraphrases": ["Where?"], "neighbors": ["Lyon is in"]}
COUNTERFACT = {
    "case_id": 1, "paraphrase_prompts": ["Where is Paris? In"], "generation_prompts": ["Paris"],
    "neighborhood_prompts": ["Lyon is in"], "attribute_prompts": ["Nice is in"],
    "requested_rewrite": {"prompt": "{} is in", "subject": "Paris", "relation_id": "P1",
                          "target_new": {"str": "Italy", "id": "Q1"},
                          "target_true": {"str": "France", "id": "Q2"}}}
ZSRE = {"subject": "Paris", "src": "Where is Paris?", "pred": "x", "rephrase": "Paris is where?",
        "alt": "Italy", "answers": ["France"], "loc": "nq question: who?", "loc_ans": "he",
        "cond": "France >> Italy || Where is Paris?"}
QAEDIT = {"id": 1, "prompt": "who is ann", "subject": "ann", "target": "a cook",
          "rephrase": "tell me who ann is", "locality": [{"loc": "who is bob", "loc_ans": "he"}]}
MQUAKE = {"case_id": 1, "requested_rewrite": [COUNTERFACT["requested_rewrite"]],
          "questions": ["Where?"], "answer": "x", "answer_alias": [], "new_answer": "y",
          "new_answer_alias": ["z"], "new_single_hops": [
              {"question": "Where?", "cloze": "Paris is in", "answer": "y", "answer_alias": []}]}


@st.composite
def damaged(draw, value):
    """A JSON value with one to three of its parts replaced or left out."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        at = value
        while isinstance(at, dict | list) and at:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or draw(st.booleans()):
                if draw(st.booleans()):
                    at[key] = draw(VALUES)
                else:
                    del at[key]
                break
            at = at[key]
    return value


def damaged_bytes(whole: bytes):
    """Bytes with a few of them changed, most of these early on, where headers are; or cut off."""
    edits = st.lists(st.tuples(st.integers(0, len(whole) - 1) | st.integers(0, 200),
                               st.integers(0, 255)), max_size=4)
    return st.builds(_damage, st.just(whole), edits, st.integers(0, len(whole)) | st.none())


def _damage(whole: bytes, edits, length) -> bytes:
    out = bytearray(whole)
    for at, byte in edits:
        out[min(at, len(out) - 1)] = byte
    return bytes(out[:length])


def outcome(act):
    """None, or the RomeError; anything else is raised."""
    try:
        act()
    except rm.RomeError as error:
        assert str(error).strip()
        return error


def records(*examples):
    return st.one_of(*(damaged([example, example]) for example in examples), VALUES)


READERS = {
    "facts": (rm.read_facts, records(FACT)),
    "counterfact": (read_counterfact, records(COUNTERFACT)),
    "zsre": (read_zsre, records(ZSRE)),
    "qaedit": (read_qaedit, records(QAEDIT)),
    "mquake": (read_mquake, records(MQUAKE)),
    "requests": (lambda path: [_case("file", i, r) for i, r in
                               enumerate(json.loads(path.read_text()))], records(
                                   REQUEST, COUNTERFACT).filter(lambda x: isinstance(x, list))),
    "hyperparameters": (lambda path: ROME.resolve(given_hyperparameters(str(path), "rome")),
                        damaged({"v_lr": 0.5, "v_num_grad_steps": 20, "layer": 5}) | VALUES),
}


@pytest.mark.parametrize("reader, contents", READERS.values(), ids=READERS)
def test_records_of_any_kind_are_read_or_refused(reader, contents, tmp_path):
    @FUZZ
    @given(contents)
    def check(value):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(value))
        outcome(lambda: reader(path))

    check()


DEEP = [b"[" * 100_000, b'{"a":' * 50_000, b"[" + b"9" * 9000 + b"]", b"[1e999]", b"[NaN]",
        b"\xff\xfe", b"", b"{}", b"null"]


@pytest.mark.parametrize("content", DEEP, ids=range(len(DEEP)))
def test_what_is_not_a_list_of_records_is_refused(content, tmp_path):
    for name in ("file.json", "file.jsonl"):
        (tmp_path / name).write_bytes(content)
        for reader in (rm.read_facts, read_counterfact, read_zsre, read_qaedit, read_mquake):
            assert outcome(lambda n=name, r=reader: r(tmp_path / n)) is not None
    directory = _put(tmp_path / "edit", {"edit.json": content, "adapters.safetensors": b""})
    assert outcome(lambda: rm.load_edit(directory)) is not None


@given(st.text(max_size=30), st.text(max_size=12), VALUES)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_any_prompt_subject_and_target_trace_and_edit_or_are_refused(prompt, subject, target):
    model, tokenizer = MODEL
    outcome(lambda: rm.trace(model, tokenizer, rm.Fact(prompt, subject), samples=1,
                             token_range="subject_last"))
    outcome(lambda: rm.finetune(model, tokenizer, rm.EditRequest(prompt, subject, target), 1,
                                hyperparameters={"steps": 1}))


MODEL = (tiny_model("llama"), FakeTokenizer())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a saved edit."""
    model, tokenizer = MODEL
    path = tmp_path_factory.mktemp("edit") / "edit"
    request = rm.EditRequest("ab {} lives in", "cde", "xy")
    rm.memit(model, tokenizer, [request], [1], moments={1: np.eye(48)},
             context_templates=["{}"]).save(path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _put(directory, files: dict[str, bytes]):
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def _use(directory):
    edit = rm.load_edit(directory)
    with edit.applied(MODEL[0]):
        edit.norm_change(MODEL[0])


@pytest.mark.parametrize("name", ["adapters.safetensors", "keys.safetensors", "edit.json"])
def test_a_damaged_saved_edit_is_loaded_or_refused(name, saved, tmp_path):
    files = saved
    if name not in files:
        pytest.skip(f"this edit has no {name}")
    contents = damaged_bytes(files[name])
    if name == "edit.json":
        contents |= damaged(json.loads(files[name])).map(lambda v: json.dumps(v).encode())

    @FUZZ
    @given(contents)
    def check(content):
        directory = _put(tmp_path / "edit", {**files, name: content})
        outcome(lambda: _use(directory))

    check()


def test_a_damaged_moments_file_is_read_or_refused(tmp_path):
    model, tokenizer = MODEL
    (tmp_path / "text.txt").write_text("a quiet line of text. " * 40)
    rm.second_moments(model, tokenizer, [1], tmp_path / "text.txt", 256, row_length=64,
                      output=tmp_path / "moments")
    path = store.layer_path(tmp_path / "moments", 1)
    whole = path.read_bytes()

    @FUZZ
    @given(damaged_bytes(whole))
    def check(content):
        path.write_bytes(content)
        outcome(lambda: store.read(path))
        outcome(lambda: rm.second_moments(model, tokenizer, [1], tmp_path / "text.txt", 256,
                                          row_length=64, output=tmp_path / "moments"))

    check()


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return write_model(path, "llama", tiny_model("llama", vocab_size=320)).read_bytes()


def test_a_damaged_gguf_file_is_read_or_refused(gguf_bytes, tmp_path):
    header = gguf_bytes.index(b"blk.0")
    keys = [i for i in range(header) if gguf_bytes.startswith(b"llama.", i)]
    counts = st.tuples(st.sampled_from([8, 16, *(k + 30 for k in keys)]),
                       st.integers(0, 2**64 - 1))

    def lying(count):
        return gguf_bytes[:count[0]] + struct.pack("<Q", count[1]) + gguf_bytes[count[0] + 8:]

    contents = damaged_bytes(gguf_bytes) | counts.map(lying)
    path, target = tmp_path / "model.gguf", tmp_path / "model"
    target.mkdir()

    @FUZZ
    @given(contents)
    def check(content):
        path.write_bytes(content)
        outcome(lambda: convert(path, target))

    check()
