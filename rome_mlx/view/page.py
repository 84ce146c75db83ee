"""The page itself: one file, whose policy lets nothing be fetched and only its own script run."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from hashlib import sha256
from html import escape
from importlib.resources import files

STYLE, CELLS, _REPORT = ((files(__package__) / name).read_text("utf-8")
                         for name in ("page.css", "cells.js", "report.js"))
SCRIPT = CELLS + _REPORT
POLICY = ("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
          f"script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'")


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document. Its tables and maps are there without the script too."""
    return (f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
            + "\n".join(body) + f"\n<script>{SCRIPT}</script>\n</html>\n")


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str, classes: str = "") -> str:
    return f'<p class="{classes}">{escape(text)}</p>'


def card(title: str, *parts: str) -> str:
    return f'<figure class="card"><h3>{escape(title)}</h3>{"".join(parts)}</figure>'


def grid(*cards: str) -> str:
    return f'<div class="grid">{"".join(cards)}</div>'


def numbers(pairs: Iterable[tuple[str, str]]) -> str:
    """Large numbers with what they are below."""
    return '<div class="numbers">' + "".join(
        f'<div><b>{escape(value)}</b><span class="soft small">{escape(name)}</span></div>'
        for name, value in pairs) + "</div>"


def code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
                            for name, value in pairs) + "</dl>"


def details(title: str, *parts: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already. On a phone every row becomes a block, its cells under their heads."""
    def td(name, cell):
        return (f'<td data-head="{escape(name)}">' if name and cell else "<td>") + cell + "</td>"

    body = "".join("<tr>" + "".join(td(*pair) for pair in zip(head, row, strict=True)) + "</tr>"
                   for row in rows)
    return ('<div class="scroll"><table class="stack"><thead><tr>'
            + "".join(f"<th>{escape(name)}</th>" for name in head)
            + f"</tr></thead><tbody>{body}</tbody></table></div>")


def bar(value: float, top: float = 1.0, classes: str = "", digits: int = 3) -> str:
    """A number with a bar as long as its share of `top`; tables sort by the number."""
    share = 100 * min(1.0, max(0.0, value / top))
    return (f'<div class="bar {classes}" data-key="{value:.9g}"><span>{value:.{digits}f}</span>'
            f'<i style="width:{share:.1f}%"></i></div>')


def changed(before: str, after: str) -> tuple[str, str]:
    """Two texts as HTML: words that went are <del> in the first, those that came <ins> in the
    second."""
    one, other = before.split(), after.split()
    marks = ([], [])
    for what, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for words, out, tag in ((one[a:b], marks[0], "del"), (other[c:d], marks[1], "ins")):
            if words:
                text = escape(" ".join(words))
                out.append(text if what == "equal" else f"<{tag}>{text}</{tag}>")
    return " ".join(marks[0]), " ".join(marks[1])
