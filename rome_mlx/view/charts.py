"""Drawings for a page, as SVG that takes its colours from the page: light and dark alike."""

from html import escape

import numpy as np

_CELL, _ROW = 8, 15


def heat_map(trace) -> str:
    """Tokens × layers of one trace, in the page's colour of its kind: from P with the subject
    hidden, empty, to the map's highest."""
    low = trace.corrupted_prob
    high = max(float(trace.scores.max()), low + 1e-9)
    names = [_name(trace, position) for position in trace.positions]
    margin = 9 + round(6.2 * max(len(name) for name in names))
    layers, top = trace.scores.shape[1], 4
    width, height = margin + _CELL * layers + 4, top + _ROW * len(names) + 18
    parts = []
    for y, (name, row) in enumerate(zip(names, trace.scores, strict=True)):
        parts.append(f'<text x="{margin - 5}" y="{top + _ROW * y + 11}" text-anchor="end">'
                     f"{escape(name)}</text>")
        for layer, value in enumerate(row):
            part = float(np.clip((value - low) / (high - low), 0, 1))
            parts.append(f'<rect x="{margin + _CELL * layer}" y="{top + _ROW * y}" '
                         f'width="{_CELL}" height="{_ROW}" fill-opacity="{part:.3f}">'
                         f"<title>{escape(name)}, layer {layer}: {value:.3f}</title></rect>")
    parts.append(f'<rect class="frame" x="{margin}" y="{top}" width="{_CELL * layers}" '
                 f'height="{_ROW * len(names)}"/>')
    parts += _layer_ticks(layers, margin, _CELL, height - 5)
    return _svg(width, height, parts, f"map {trace.kind}")


def layer_bars(effect, *, kind: str, chosen: int | None = None, first: int = 0,
               label: str = "") -> str:
    """Bars by layer; the chosen one stands out, those below `first` are pale."""
    effect = np.asarray(effect, np.float64)
    step, margin, top, tall = 11, 40, 8, 96
    high, low = max(float(effect.max()), 1e-6), min(float(effect.min()), 0.0)
    scale = tall / (high - low)
    zero = top + high * scale
    parts = []
    for layer, value in enumerate(effect):
        y, size = (zero - value * scale, value * scale) if value > 0 else (zero, -value * scale)
        state = "chosen" if layer == chosen else "pale" if layer < first else ""
        parts.append(f'<rect class="{state}" x="{margin + step * layer}" y="{y:.1f}" '
                     f'width="{step - 2}" height="{max(size, 0.5):.1f}">'
                     f"<title>layer {layer}: {value:.3f}</title></rect>")
    end = margin + step * len(effect)
    parts.append(f'<path class="axis" d="M{margin} {zero:.1f}H{end}"/>')
    parts.append(f'<text x="{margin - 5}" y="{top + 8}" text-anchor="end">{high:.2g}</text>')
    parts.append(f'<text x="{margin - 5}" y="{zero + 3:.1f}" text-anchor="end">0</text>')
    parts += _layer_ticks(len(effect), margin, step, top + tall + 18)
    return _svg(end + 6, top + tall + 24, parts, f"bars {kind}", label)


def loss_lines(losses: list[dict]) -> str:
    """The total loss and its parts by step."""
    margin, top, wide, tall = 40, 8, 400, 120
    names = [("total", "total"), ("nll", "target"), ("kl", "KL"), ("decay", "decay")]
    high = max(max(float(step[name]) for step in losses) for name, _ in names) or 1.0
    last = max(1, len(losses) - 1)
    parts = [f'<path class="axis" d="M{margin} {top}V{top + tall}H{margin + wide}"/>',
             f'<text x="{margin - 5}" y="{top + 8}" text-anchor="end">{high:.2f}</text>',
             f'<text x="{margin - 5}" y="{top + tall + 3}" text-anchor="end">0</text>',
             f'<text x="{margin}" y="{top + tall + 16}">step 0</text>',
             f'<text x="{margin + wide}" y="{top + tall + 16}" text-anchor="end">'
             f"{len(losses) - 1}</text>"]
    for i, (name, words) in enumerate(names):
        points = " ".join(f"{margin + wide * x / last:.1f},"
                          f"{top + tall * (1 - step[name] / high):.1f}"
                          for x, step in enumerate(losses))
        parts.append(f'<polyline class="line-{name}" points="{points}"/>')
        x = margin + 130 + 75 * i
        parts.append(f'<path class="line-{name}" d="M{x} {top + 6}h16"/>'
                     f'<text x="{x + 20}" y="{top + 9}">{words}</text>')
    return _svg(margin + wide + 6, top + tall + 22, parts, "lines",
                "the loss and its parts by step")


def dumbbells(rows: list[tuple[str, list[tuple[str, float, list[float]]]]], label: str) -> str:
    """Percent on a line for each row, with intervals; rows: (name, [(class, mean, ends)])."""
    margin, wide, tall = 120, 320, 26
    bottom = tall * len(rows) + 8
    parts = [f'<path class="axis" d="M{margin} {bottom}H{margin + wide}"/>',
             *(f'<text x="{margin + wide * tick / 100}" y="{bottom + 14}" '
               f'text-anchor="middle">{tick}</text>' for tick in range(0, 101, 25))]
    for i, (name, marks) in enumerate(rows):
        y = tall * i + 16
        parts.append(f'<text x="{margin - 8}" y="{y + 3}" text-anchor="end">{escape(name)}</text>')
        for j, (look, mean, ends) in enumerate(marks):
            at, (low, high) = y + 7 * j - 3, (margin + wide * end / 100 for end in ends)
            parts.append(f'<path class="{look}" d="M{low:.1f} {at}H{high:.1f}"/>'
                         f'<circle class="{look}" cx="{margin + wide * mean / 100:.1f}" '
                         f'cy="{at}" r="3.5"><title>{mean:.1f}</title></circle>')
    return _svg(margin + wide + 16, bottom + 20, parts, "dumbbells", label)


def _layer_ticks(layers: int, margin: int, step: int, y: int) -> list[str]:
    every = 5 if layers <= 60 else 10
    return [f'<text x="{margin + step * layer + step // 2}" y="{y}" text-anchor="middle">{layer}'
            "</text>" for layer in range(0, layers, every)]


def _name(trace, position: int) -> str:
    begin, end = trace.subject_range
    text = trace.tokens[position].strip(" ").replace("\n", "\\n") or "␣"
    return (text if len(text) <= 18 else text[:17] + "…") + "*" * (begin <= position < end)


def _svg(width: float, height: float, parts: list[str], classes: str, label: str = "") -> str:
    title = f' role="img" aria-label="{escape(label)}"' if label else ""
    return (f'<svg class="{classes}" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'style="max-width:{1.3 * width:.0f}px"{title}>{"".join(parts)}</svg>')
