"""The explorer: who may use it, that its jobs give what the library gives and leave the model as
it was, and the page itself in a browser."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import uvicorn
from fakes import FakeTokenizer
from samples import arrays
from saved_model import save_tiny
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing import value
from rome_mlx.tracing.trace import FactRuns
from rome_mlx.view.explorer.routes import application
from rome_mlx.view.explorer.session import Session
from rome_mlx.view.explorer.worker import Worker

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
FACT = {"prompt": "{} is in the city of", "subject": "Oslo"}
EDIT = {**FACT, "target_new": "a", "layer": 0, "paraphrases": ["To Oslo: "],
        "neighbors": ["Rome is in the city of"]}
TRACE = {**FACT, "kind": "mlp"}


class Explorer:
    """A running explorer of a tiny model, and one who asks it."""

    token = "a-token"

    def __init__(self, output: Path):
        self.worker = Worker()
        self.session = self.worker.call(
            lambda: Session(tiny_model("llama"), FakeTokenizer(), output=output))
        self.before = arrays(self.session.model)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        app = application(self.session, self.worker, self.token, self.port)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off",
                                                    timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.worker.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def ask(self, path: str, body=None, token: str | None = token, **headers):
        """(connection, response)."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        query = "" if token is None else f"?token={token}"
        connection.request("GET" if body is None else "POST", f"/{path}{query}",
                           None if body is None else json.dumps(body), headers)
        return connection, connection.getresponse()

    def status(self, path: str, *args, **options) -> int:
        connection, response = self.ask(path, *args, **options)
        with closing(connection):
            return response.status

    def json(self, path: str, body=None):
        connection, response = self.ask(path, body)
        with closing(connection):
            return json.loads(response.read())

    def events(self, path: str, body: dict) -> list[dict]:
        connection, response = self.ask(path, body)
        with closing(connection):
            return [json.loads(line) for line in response]

    def untouched(self) -> bool:
        after = self.worker.call(arrays, self.session.model)
        return after.keys() == self.before.keys() and all(
            np.array_equal(after[name], self.before[name]) for name in after)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    explorer = Explorer(tmp_path_factory.mktemp("output"))
    yield explorer
    explorer.stop()


@pytest.fixture
def explorer(running):
    """The running one, whose model is as it was after every test."""
    yield running
    assert running.untouched()


@pytest.fixture(scope="module")
def written(running) -> str:
    """An edit's id."""
    return running.events("edit", EDIT)[-1]["edit"]["id"]


def only(events: list[dict], name: str) -> list[dict]:
    return [event for event in events if event["event"] == name]


@pytest.mark.parametrize("path, body", [
    ("", None), ("cells.js", None), ("explorer.js", None), ("state", None), ("no/such", None),
    ("trace", TRACE), ("save", {})])
def test_without_the_token_every_path_is_refused(explorer, path, body):
    assert explorer.status(path, body, token=None) == 403
    assert explorer.status(path, body, token="another") == 403
    assert explorer.status(path, body, Host="evil.example") == 403
    assert explorer.status(path, body, Host=f"evil.example:{explorer.port}") == 403


def test_with_the_token_the_page_and_its_parts_are_there(explorer):
    scripts = ("cells.js", "plumbing.js", "map.js", "edit.js", "ask.js", "explorer.js")
    for path in ("", *scripts, "explorer.css", "state"):
        assert explorer.status(path) == 200
        assert explorer.status(path, Host=f"localhost:{explorer.port}") == 200
    assert explorer.status("no/such") == 404
    connection, response = explorer.ask("")
    with closing(connection):
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "://" not in response.read().decode()  # nothing is fetched from elsewhere


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attn"])
def test_a_trace_is_estimated_first_and_then_exact(explorer, kind):
    events = explorer.events("trace", {**TRACE, "kind": kind})
    names = [event["event"] for event in events]
    fact, rows = events[0], {row["position"]: row for row in only(events, "row")}
    assert names == ["fact", "estimate", *["row"] * len(fact["tokens"]), "exact"]
    assert np.shape(events[1]["scores"]) == (len(fact["tokens"]), 4)
    whole = explorer.worker.call(lambda: rm.trace(
        explorer.session.model, explorer.session.tokenizer, rm.Fact(**FACT), kind=kind,
        window=fact["window"]))
    found = [rows[position]["scores"] for position in range(len(rows))]
    np.testing.assert_array_equal(np.float32(found), whole.scores)
    assert (fact["clean_prob"], fact["answer"]) == (whole.clean_prob, whole.answer)
    assert whole.decision.reason in events[-1]["told"][0]
    answered = [dict(words).get(whole.answer) for words in rows[3]["words"]]
    np.testing.assert_allclose(rows[3]["intervals"], whole.intervals[3], rtol=0, atol=1e-6)
    for said, score, (low, high) in zip(answered, found[3], rows[3]["intervals"], strict=True):
        assert said is None or said == pytest.approx(score, abs=1e-6)
        assert low - 1e-6 <= score <= high + 1e-6


def test_the_subject_may_stand_in_the_prompt(explorer):
    spelled = {"prompt": "Oslo is in the city of", "subject": "Oslo", "kind": "hidden"}
    assert explorer.events("trace", spelled)[0]["prompt"] == FACT["prompt"]


@pytest.mark.parametrize("path, body, said", [
    ("trace", {**TRACE, "subject": "Bergen", "prompt": "Oslo is in"}, "does not occur"),
    ("trace", {**TRACE, "prompt": "{} is {}"}, "exactly one"),
    ("trace", {**TRACE, "kind": "all"}, "unknown"), ("trace", {}, "prompt is None"),
    ("edit", {**EDIT, "target_new": " "}, "is empty"), ("edit", {**EDIT, "layer": 9}, "0 to 3"),
    ("ask", {"prompt": "x", "edits": ["gone"]}, "not here any more"),
    ("ask", {"prompt": " ", "edits": []}, "nothing to ask")])
def test_a_refusal_is_said_in_words_as_it_is(explorer, path, body, said):
    last = explorer.events(path, body)[-1]
    assert last["event"] == "error" and said in last["message"]


def test_an_edit_tells_its_losses_and_is_romes(explorer):
    events = explorer.events("edit", EDIT)
    last, session = events[-1], explorer.session
    own = explorer.worker.call(lambda: rm.rome(
        session.model, session.tokenizer, rm.EditRequest(**FACT, target_new="a"), layer=0))
    assert session.edits[last["edit"]["id"]].edit.digest == own.digest
    losses = [{k: v for k, v in step.items() if k != "event"} for step in only(events, "step")]
    assert losses == own.losses
    assert [p["role"] for p in last["probabilities"]] == ["rewrite", "paraphrase", "neighbor"]
    rewrite = last["probabilities"][0]
    assert rewrite["target_new_after"] > 5 * rewrite["target_new_before"]


def test_missing_moments_are_counted_with_progress(explorer, tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path))
    told = [event["share"] for event in explorer.events("edit", {**EDIT, "layer": 2})
            if event["event"] == "moments"]
    assert told == sorted(told) and told[-1] == 1
    assert 2 in explorer.json("state")["counted"]


def test_edits_that_are_on_change_the_answers_and_nothing_is_left(explorer, written):
    asked = {"prompt": "Oslo is in the city of", "chat": False}
    plain, edited = explorer.events("ask", {**asked, "edits": [written]})
    assert dict(edited["words"]) != dict(plain["words"]) and edited["text"] != plain["text"]
    assert explorer.events("ask", {**asked, "edits": []}) == [plain]


def test_one_page_does_not_disturb_another(explorer, written):
    alone = explorer.events("trace", TRACE)
    together: list[list[dict]] = []
    pages = [threading.Thread(target=lambda: together.append(explorer.events("trace", TRACE)))
             for _ in range(2)]
    for page in pages:
        page.start()
    answers = [explorer.events("ask", {"prompt": "Oslo", "chat": False, "edits": [written]})
               for _ in range(2)]
    explorer.events("edit", {**EDIT, "layer": 1})
    for page in pages:
        page.join()
    assert together == [alone, alone] and answers == [answers[0]] * 2


def test_a_page_that_leaves_cancels_its_trace(explorer, monkeypatch):
    row, done = FactRuns.row, []

    def slowly(self, *args):
        done.append(time.sleep(0.05))
        return row(self, *args)

    monkeypatch.setattr(FactRuns, "row", slowly)
    connection, response = explorer.ask("trace", TRACE)
    total = len(json.loads(response.readline())["tokens"])
    connection.close()
    time.sleep(0.05 * total)
    assert explorer.events("trace", {}) and len(done) < total / 2


def test_a_page_that_leaves_cancels_its_edit(explorer, written, monkeypatch):
    losses, done, before = value._losses, [], dict(explorer.session.edits)

    def slowly(*args):
        done.append(time.sleep(0.2))
        return losses(*args)

    monkeypatch.setattr(value, "_losses", slowly)
    connection, response = explorer.ask("edit", {**EDIT, "target_new": "b"})
    while json.loads(response.readline())["event"] != "step":
        pass
    connection.close()
    assert explorer.events("trace", {})
    assert len(done) < 4 and explorer.session.edits == before


def test_an_edit_is_saved_under_a_plain_name_in_its_directory(explorer, written):
    saved = explorer.json("save", {"edit": written, "name": "oslo"})
    assert Path(saved["where"]) == explorer.session.output / "oslo"
    loaded = rm.load_edit(saved["where"])
    assert loaded.digest == written and len(loaded.numbers["probabilities"]) == 3
    again = explorer.json("save", {"edit": written, "name": "oslo"})
    assert "already" in again["message"]


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../oslo", "a/b", "/tmp/oslo", "a\\b",
                                  ".hidden", "a\nb", "~/oslo", "link"])
def test_a_name_that_leads_elsewhere_is_refused(explorer, written, tmp_path, monkeypatch, name):
    monkeypatch.setattr(explorer.session, "output", tmp_path / "below")
    (tmp_path / "below").mkdir()
    (tmp_path / "below/link").symlink_to("/nowhere")
    assert explorer.status("save", {"edit": written, "name": name}) == 400
    assert [path.name for path in tmp_path.rglob("*")] == ["below", "link"]


def test_the_command_prints_its_address_alone_and_knows_given_edits(tmp_path):
    directory = save_tiny(tmp_path / "model")
    model, tokenizer = rm.load(directory)
    moments = rm.second_moments(model, tokenizer, [1], corpus="self", tokens=600)
    rm.rome(model, tokenizer, rm.EditRequest(**FACT, target_new="a"), layer=1,
            moments=moments).save(tmp_path / "saved")
    command = subprocess.Popen(
        [sys.executable, "-m", "rome_mlx", "explore", "--model", str(directory), "--no-browser",
         "--edits", str(tmp_path / "saved")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    try:
        address = command.stdout.readline().strip()
        head, _, token = address.partition("/?token=")
        assert head.startswith("http://127.0.0.1:") and len(token) >= 20
        with closing(HTTPConnection(head.removeprefix("http://"), timeout=30)) as connection:
            connection.request("GET", f"/state?token={token}")
            edit, = json.loads(connection.getresponse().read())["edits"]
        assert edit["where"] == str(tmp_path / "saved")
    finally:
        command.send_signal(signal.SIGINT)
        rest, _ = command.communicate(timeout=30)
    assert rest == ""


def test_a_port_in_use_is_refused_before_the_model_is_read(capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = str(other.getsockname()[1])
        assert main(["explore", "--no-browser", "--model", "no/such", "--port", port]) == 2
    assert port in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None or find_spec("playwright") is None,
                    reason="chromium or playwright is not installed")
def test_a_person_traces_edits_and_asks_in_a_browser(explorer, tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    monkeypatch.setattr(explorer.session, "output", tmp_path)
    monkeypatch.setattr(explorer.session, "edits", {})
    complaints = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda one: one.url.startswith(explorer.url.split("?")[0])
                or one.url.startswith("data:") or complaints.append(one.url))
        page.goto(explorer.url)
        page.get_by_text("4 layers").wait_for()
        page.fill("[name=prompt] >> nth=0", "{} is {}")
        page.press("[name=subject]", "Enter")
        page.locator("#trace .status", has_text="exactly one").wait_for()
        page.fill("[name=prompt] >> nth=0", FACT["prompt"])
        page.fill("[name=subject]", FACT["subject"])
        page.press("[name=subject]", "Enter")
        page.locator("#trace .status", has_text="every cell was run").wait_for()
        page.press("#map", "ArrowUp")
        page.locator("#cell", has_text="95 % interval").wait_for()
        page.select_option("[name=layer]", "0")
        page.fill("[name=target_new]", "a")
        page.fill("[name=neighbors]", EDIT["neighbors"][0])
        page.press("[name=target_new]", "Enter")
        page.locator("#checked tbody tr").nth(1).wait_for()
        page.click("#ask button")
        page.locator("#edited .word").first.wait_for()
        edited, plain = (page.locator(f"#{name} .words").inner_text()
                         for name in ("edited", "unedited"))
        assert edited != plain
        page.uncheck("#edits input[type=checkbox]")
        page.locator("#edited", has_text="No edit is on").wait_for()
        page.fill("#edits form input", "../oslo")
        page.press("#edits form input", "Enter")
        page.locator("#edits .told", has_text="plain name").wait_for()
        page.fill("#edits form input", "oslo")
        page.press("#edits form input", "Enter")
        page.locator("#edits", has_text="Saved in").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert (tmp_path / "oslo/edit.json").exists()
    assert [one for one in complaints if "400 (Bad Request)" not in one] == []  # ../oslo
