"""The page itself: one file without scripts, whose policy lets nothing be fetched."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from html import escape

STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --ink: #1c2024; --soft: #5b6572;
  --line: #d9dee5; --hidden: #5e3c99; --mlp: #1b7837; --attn: #b2182b; --chosen: #d55e00;
  --new: #0072b2; --true: #7a7f87; --ins: #cfe8d5; --del: #f6d5d5; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1d2126; --ink: #e6e9ed;
  --soft: #9aa4b0; --line: #343b44; --hidden: #b79cf0; --mlp: #5fc27e; --attn: #f0707c;
  --chosen: #ff9a4a; --new: #56b4e9; --true: #8b939d; --ins: #1f4a2d; --del: #5a2529; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 4rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem }
p { margin: .4rem 0; max-width: 46rem } .soft { color: var(--soft) } .small { font-size: .875rem }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr));
  gap: 1rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; margin: 0; min-width: 0 }
.card h3 { margin: 0 0 .4rem; font-size: .95rem }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: .8rem 0 }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums }
svg { display: block; width: 100%; height: auto }
svg text { font: 10px system-ui; fill: var(--soft) }
.hidden { --c: var(--hidden) } .mlp { --c: var(--mlp) } .attn { --c: var(--attn) }
svg rect { fill: var(--c) } svg .frame { fill: none; stroke: var(--line) }
svg .axis { stroke: var(--soft); fill: none; stroke-width: .7 }
svg .chosen { fill: var(--chosen) } svg .pale { fill-opacity: .3 }
svg circle.new { fill: var(--new) } svg path.new { stroke: var(--new) }
svg circle.true { fill: var(--true) } svg path.true { stroke: var(--true) }
svg polyline, svg path { fill: none; stroke-width: 2 } .line-total { stroke: var(--ink) }
.line-nll { stroke: var(--new); stroke-dasharray: 5 2 } .line-decay { stroke: var(--true) }
.line-kl { stroke: var(--chosen); stroke-dasharray: 2 2 }
table { border-collapse: collapse; width: 100%; font-size: .9rem } caption { text-align: left }
th { text-align: left; font-weight: 600; color: var(--soft) }
td, th { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word }
.scroll { overflow-x: auto }
.bar { display: grid; grid-template-columns: 3.2rem 1fr; gap: .4rem; align-items: center;
  min-width: 8rem; font-variant-numeric: tabular-nums }
.bar i { display: block; height: .55rem; border-radius: 2px; background: var(--true);
  min-width: 1px } .bar.new i { background: var(--new) } .bar.before i { opacity: .45 }
ins { background: var(--ins) } del { background: var(--del) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem 1rem; overflow-x: auto; font-size: .85rem; margin: .5rem 0 }
dl { display: grid; grid-template-columns: fit-content(60%) minmax(5rem, 1fr); gap: .2rem 1rem;
  margin: 0; font-size: .9rem } dt { color: var(--soft) } dd { margin: 0 }
details { margin: .5rem 0 } summary { cursor: pointer }
@media (max-width: 640px) { .stack thead { display: none } .stack td { display: block;
  border: 0; padding: .15rem 0 } .stack tr { display: block; padding: .5rem 0;
  border-bottom: 1px solid var(--line) } .stack td[data-head]::before {
  content: attr(data-head); color: var(--soft); font-size: .8rem; margin-right: .5rem } }
@media print { body { max-width: none } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document."""
    return (f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta '
            'http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
            + "\n".join(body) + "\n</html>\n")


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
    """A number with a bar as long as its share of `top`."""
    share = 100 * min(1.0, max(0.0, value / top))
    return (f'<div class="bar {classes}"><span>{value:.{digits}f}</span>'
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
