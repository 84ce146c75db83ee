"""The report is one page that fetches nothing, escapes everything, and fits a phone; its maps are
read cell by cell, and its tables sort."""

import hashlib
import html
import json
import re
import shutil
import subprocess
from base64 import b64encode
from importlib.util import find_spec

import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from mlx_lm.utils import save
from tiny import _COMMON, tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.view.page import bar, changed, page, table
from rome_mlx.view.report import benchmark_report

NASTY = "<script>alert('&')</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(CHROMIUM is None or find_spec("playwright") is None,
                                  reason="chromium or playwright is not installed")


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
def measured(tmp_path_factory):
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
    assert text.count('<div class="map') == 3
    for name in ("mlx-lm", "v_num_grad_steps", "ab fgh lives in"):
        assert name in text
    rewrite = written[1].verification.prompts[0]
    assert f"{rewrite.target_new_after:.3f}" in text


@pytest.mark.parametrize("which", ["written", "measured"])
def test_texts_are_escaped_and_nothing_is_fetched(which, request):
    path = request.getfixturevalue(which)
    text = (path[0] if which == "written" else path).read_text("utf-8")
    assert NASTY not in text and html.escape(NASTY) in text and "<b>e" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", text)


@pytest.mark.parametrize("which", ["written", "measured"])
def test_the_one_script_is_the_pages_own_and_the_policy_names_it(which, request):
    path = request.getfixturevalue(which)
    text = (path[0] if which == "written" else path).read_text("utf-8")
    script, = re.findall("<script>(.*?)</script>", text, re.S)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\">" in text and text.count("<script") == 1
    assert NASTY not in script and "cd<b>e" not in script
    assert not re.search(r"\bon\w+=|innerHTML|javascript:", text)


def test_without_scripts_every_cell_says_what_is_known_of_it(written):
    text, result = written[0].read_text("utf-8"), written[1]
    hidden = result.maps()[0]
    titles = re.findall(r'class="cell[^>]*title="(.*?)"', text, re.S)[:hidden.scores.size]
    assert titles == [html.escape(words_of(hidden, row, layer))
                      for row in range(len(hidden.positions)) for layer in range(4)]
    assert "<button" not in text.split("<script>")[0]


def words_of(trace, row: int, layer: int) -> str:
    """What the page says of a cell."""
    (low, high), token = trace.intervals[row, layer], trace.tokens[trace.positions[row]]
    return (f"“{token.strip() or '␣'}”, layer {layer}:\nP({trace.answer.strip()}) "
            f"{trace.scores[row, layer]:.3f}\n95 % interval {low:.3f} to {high:.3f}, "
            f"{trace.samples} noise samples\n"
            f"{round(trace.recovery[row, layer])} % of what hiding it took away")


def test_a_benchmark_tells_what_was_said_and_what_was_lost(measured):
    text = measured.read_text("utf-8")
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
@pytest.mark.parametrize("which", ["written", "measured"])
def test_a_browser_shows_it_without_scrolling_sideways(which, width, request, tmp_path):
    path = request.getfixturevalue(which)
    (tmp_path / "report.html").write_bytes(
        (path[0] if which == "written" else path).read_bytes())
    (tmp_path / "frame.html").write_text(
        f'<iframe src="report.html" width="{width}" height="900" style="border:0"></iframe>'
        "<script>onload = () => { const page = frames[0].document;"
        "const root = page.documentElement, boxes = [...page.querySelectorAll('h2, svg, .map')];"
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


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a file as a page of a width; the test fails where the page complains."""
    complaints, pages = [], []

    def open_(path, width=1280, **options):
        pages.append(browser.new_page(viewport={"width": width, "height": 900}, **options))
        pages[-1].on("console", lambda message: complaints.append(message.text))
        pages[-1].on("pageerror", lambda error: complaints.append(str(error)))
        pages[-1].goto(path.absolute().as_uri())
        return pages[-1]

    yield open_
    for one in pages:
        one.close()
    assert complaints == []


def read(page, box: int = 0) -> str:
    return page.locator(".reading").nth(box).inner_text().replace("\n", " ")


def in_line(words: str) -> str:
    return words.replace("\n", " ")


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pointing_at_a_cell_reads_the_traces_numbers(written, opened, width):
    page, trace = opened(written[0], width), written[1].maps()[1]
    box = page.locator(".map").nth(1)
    height = page.evaluate("document.documentElement.scrollHeight")
    last = trace.positions.index(trace.subject_range[1] - 1)
    assert read(page, 1) == in_line(words_of(trace, last, written[1].layer))
    for row, layer in ((0, 0), (last, 2), (len(trace.positions) - 1, 3)):
        box.locator(".cell").nth(4 * row + layer).hover()
        assert read(page, 1) == in_line(words_of(trace, row, layer))
    assert page.evaluate("document.documentElement.scrollHeight") == height


@in_a_browser
def test_a_click_holds_a_cell_and_escape_lets_go(written, opened):
    page = opened(written[0])
    cells = page.locator(".map").first.locator(".cell")
    cells.nth(5).click()
    held = read(page)
    cells.nth(9).hover()
    assert read(page) == held and page.locator(".held").count() == 1
    page.keyboard.press("Escape")
    cells.nth(10).hover()
    assert read(page) != held and page.locator(".held").count() == 0


@in_a_browser
def test_a_finger_reads_a_cell(written, opened):
    page, trace = opened(written[0], 390, has_touch=True, is_mobile=True), written[1].maps()[0]
    page.locator(".map").first.locator(".cell").nth(4 * 2 + 1).tap()
    assert read(page) == in_line(words_of(trace, 2, 1))


@in_a_browser
def test_arrow_keys_read_the_bars_layer_by_layer(written, opened):
    page, trace = opened(written[0]), written[1].trace
    page.locator("svg.bars").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    for layer in range(4):
        assert read(page, 3) == in_line(words_of(trace, 0, layer))
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("svg.bars .held").count() == 1


@pytest.fixture(scope="module")
def sorting(tmp_path_factory):
    """A page with a table: texts, numbers, bars of which the last counts, and gaps."""
    path = tmp_path_factory.mktemp("sorting") / "table.html"
    rows = [["b", "10", bar(0.9) + bar(0.1231), "1e-05"], ["a", "9", bar(0.1232), "x"],
            ["b", "-2", "", "0.5"], ["<i>c</i>", "9", bar(-1.0), ""]]
    path.write_text(page("tables", [table(["Name", "Count", "P", "Mixed"], rows)]), "utf-8")
    return path


@in_a_browser
@pytest.mark.parametrize("column, up, down", [
    (0, "1023", "3021"), (1, "2130", "0132"), (2, "3012", "1032"), (3, "0213", "1203")])
def test_tables_sort_up_down_and_back(sorting, opened, column, up, down):
    page = opened(sorting)
    original = page.locator("tbody tr").all_inner_texts()

    def order() -> str:
        return "".join(str(original.index(text))
                       for text in page.locator("tbody tr").all_inner_texts())

    button = page.locator("th button").nth(column)
    for expected, said in ((up, "ascending"), (down, "descending"), ("0123", None)):
        button.focus()
        page.keyboard.press("Enter")
        assert order() == expected
        assert page.locator("th").nth(column).get_attribute("aria-sort") == said
    button.click()
    assert order() == up and page.locator("[aria-sort]").count() == 1


@in_a_browser
def test_a_phone_sorts_too(measured, opened):
    page = opened(measured, 390)
    buttons = page.locator("th button", has_text=re.compile("^Edited"))
    for button in buttons.all():
        button.click()
    sorted_table = page.locator("table", has=page.locator("th[aria-sort]"))
    assert sorted_table.count() == buttons.count() > 0
    found = [[float(one.get_attribute("data-key"))
              for one in part.locator("tr td:nth-child(2) [data-key]").all()]
             for part in sorted_table.all()]
    assert all(some == sorted(some) for some in found) and sum(map(len, found)) > 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@in_a_browser
def test_without_scripts_nothing_waits_for_them(written, opened):
    page = opened(written[0], java_script_enabled=False)
    assert page.locator("th button, .reading").count() == 0 and not page.is_visible("#help")
    assert page.locator(".map .cell").first.is_visible()
