"""The report is one page that fetches nothing, escapes everything, and fits a phone."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from mlx_lm.utils import save
from tiny import _COMMON, tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.view.page import changed
from rome_mlx.view.report import benchmark_report

NASTY = "<script>alert('&')</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(path of a tiny model's report, the result)"""
    model = tiny_model("llama")
    result = rm.locate_then_edit(
        model, FakeTokenizer(), rm.EditRequest("ab {} lives in", "cd<b>e", "xy"), layer=1,
        moments={1: np.eye(48)}, context_templates=["{}"], samples=2,
        paraphrases=[NASTY], neighbors=["ab fgh lives in"])
    before = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    path = result.report(tmp_path_factory.mktemp("report") / "report.html")
    after = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    assert all(np.array_equal(before[k], after[k]) for k in before)
    return path, result


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """The page of a run of four cases, of which three were measured in free text too."""
    run = tmp_path_factory.mktemp("benchmark")
    (run / "wild").mkdir()
    (run / "run.json").write_text(json.dumps({"method": "rome", "model": {}}))

    def scores(new):
        return {"rewrite": [{"target_new": new, "target_true": 1.5, "correct": new < 1}],
                "paraphrase": [], "neighborhood": []}

    def answer(text):
        return {"answers": ["Rome"], "instead": ["Oslo"], "rewrite": [
            {"prompt": f"{NASTY} is", "text": text, "ended": True, "forced": True}]}

    for i in range(4):
        (run / f"case_{i}.json").write_text(json.dumps(
            {"case_id": i, "group": [i], "pre": scores(2.0), "post": scores(float(i)),
             "request": {"prompt": "{} is", "subject": NASTY, "target_new": "a",
                         "target_true": "b"}}))
        if i < 3:
            (run / "wild" / f"edit_{i}.json").write_text(json.dumps({"cases": [
                {"case_id": i, "pre": answer("Oslo"), "post": answer(("Rome", "Oslo")[i % 2])}]}))
    return benchmark_report(run, run / "report.html", settings={"data": NASTY})


def test_the_page_tells_the_whole_story(written):
    text = written[0].read_text("utf-8")
    for title in ("Where the fact is", "Layer 1", "Finding the new value", "Before and after",
                  "What the model says", "Traced again", "Side effects", "Apply and undo",
                  "Provenance"):
        assert f"<h2>{title}</h2>" in text
    assert text.count('<svg class="map') == 3
    for name in ("mlx-lm", "v_num_grad_steps", "ab fgh lives in"):
        assert name in text
    rewrite = written[1].verification.prompts[0]
    assert f"{rewrite.target_new_after:.3f}" in text


@pytest.mark.parametrize("which", ["written", "benchmark"])
def test_texts_are_escaped_and_nothing_is_fetched(which, request):
    path = request.getfixturevalue(which)
    text = (path[0] if which == "written" else path).read_text("utf-8")
    assert NASTY not in text and html.escape(NASTY) in text and "<b>e" not in text
    assert "<script" not in text and "default-src 'none'" in text
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", text)


def test_a_benchmark_tells_what_was_said_and_what_was_lost(benchmark):
    text = benchmark.read_text("utf-8")
    assert "says it on 66.7 % [" in text and "a gap of 33.3 points [" in text
    assert text.count("<td data-head") and text.count(">said</td>") == 2
    assert '<svg class="dumbbells' in text and text.count("<circle") == 2
    assert ">+50.0</div>" in text and "], n 3<" in text
    assert "fewer than 10 cases" in text and "±" not in text
    assert "2 of 4 rewrites were not written" in text


def test_zsre_has_a_page_and_lists_the_answers_that_are_not_whole(tmp_path, capsys):
    save(tmp_path / "model", str(tmp_path), tiny_model("llama"), FakeTokenizer(),
         {**_COMMON, "model_type": "llama"})
    (tmp_path / "zsre.json").write_text(json.dumps([
        {"subject": NASTY, "src": f"Where was {NASTY} born?", "answers": [answer],
         "rephrase": "Where from?", "loc": "nq question: who is he", "loc_ans": "nobody"}
        for answer in ("Oslo", "Rome")]))
    assert main(["eval", "zsre", "--data", str(tmp_path / "zsre.json"), "--method", "none",
                 "--model", str(tmp_path / "model"), "--output", str(tmp_path / "run"),
                 "--report", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "2 of 2 rewrites were not written; share of the new answer" in text
    assert "Rewrite accuracy" in text and html.escape(NASTY) in text and NASTY not in text
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


def test_changed_words_are_marked():
    assert changed("Paris, France. It is", "Rome, Italy. It is") == (
        "<del>Paris, France.</del> It is", "<ins>Rome, Italy.</ins> It is")
    assert changed("a <b>", "a <b>") == ("a &lt;b&gt;", "a &lt;b&gt;")
    assert changed("", "new") == ("", "<ins>new</ins>")


def test_many_requests_from_the_command_line_share_one_page(tmp_path, capsys):
    save(tmp_path / "model", str(tmp_path), tiny_model("llama"), FakeTokenizer(),
         {**_COMMON, "model_type": "llama"})
    (tmp_path / "requests.json").write_text(json.dumps(
        [{"prompt": "{} is in", "subject": subject, "target_new": "xy"} for subject in "abc"]))
    main(["edit", "--requests", str(tmp_path / "requests.json"), "--method", "ft", "--layer", "1",
          "--model", str(tmp_path / "model"), "--save-path", str(tmp_path / "edit"),
          "--report", str(tmp_path / "report.html")])
    out = capsys.readouterr().out
    assert "Report in" in out and "ft at layer 1" in out and "text about other things" in out
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h2>2 more requests</h2>" in page and "c is in → xy" in page
    assert f"--adapter-path {tmp_path / 'edit'}" in page


def test_a_report_that_cannot_be_written_is_refused(written, tmp_path):
    with pytest.raises(rm.RomeError, match="does not exist"):
        written[1].report(tmp_path / "no" / "report.html")
    with pytest.raises(rm.RomeError, match="cannot write"):
        written[1].report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["written", "benchmark"])
def test_a_browser_shows_it_without_scrolling_sideways(which, width, request, tmp_path):
    path = request.getfixturevalue(which)
    (tmp_path / "report.html").write_bytes(
        (path[0] if which == "written" else path).read_bytes())
    (tmp_path / "frame.html").write_text(
        f'<iframe src="report.html" width="{width}" height="900" style="border:0"></iframe>'
        "<script>onload = () => { const page = frames[0].document;"
        "const root = page.documentElement, boxes = [...page.querySelectorAll('h2, svg')];"
        "document.title = [root.scrollWidth, root.clientWidth, boxes.length,"
        "boxes.every(box => box.getBoundingClientRect().width > 50)].join(' ') }</script>")
    dom = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, timeout=120, check=True).stdout
    scroll, client, boxes, seen = re.search(r"<title>(.*?)</title>", dom)[1].split()
    assert width - 20 <= int(client) <= width  # less the bar that scrolls down
    assert int(scroll) <= int(client)
    assert int(boxes) >= (14 if which == "written" else 3) and seen == "true"
