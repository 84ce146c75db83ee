"""Maps and bars of a trace, cell by cell. A cell's title says all that is known of it, in the words
of the explorer; a page's script shows the title of the cell that is pointed at.
"""

from collections.abc import Container
from html import escape

import numpy as np

from .charts import svg


def heat_map(trace, edited: Container[int] = ()) -> str:
    """Tokens × layers of one trace, in the page's colour of its kind: from P with the subject
    hidden, empty, to the map's highest. edited: layers that are marked."""
    rows, layers = trace.scores.shape
    low = trace.corrupted_prob
    parts = np.clip((trace.scores - low) / max(float(trace.scores.max()) - low, 1e-9), 0, 1)
    titles = _titles(trace, trace.positions, trace.scores, trace.intervals)
    begin, end = trace.subject_range
    out = []
    for row, position in enumerate(trace.positions):
        inside = begin <= position < end
        out.append(f'<span class="token{" subject" * inside}">'
                   f'{escape(_name(trace, position))}{"*" * inside}</span>')
        for layer in range(layers):
            edges = [" top"] * (row == 0) + [" bottom"] * (row == rows - 1)
            edges += [" left"] * (layer == 0) + [" right"] * (layer == layers - 1)
            out.append(f'<span class="cell{"".join(edges)}" style="--v:{parts[row, layer]:.3f}" '
                       f'title="{escape(titles[row][layer])}"></span>')
    every = _every(layers)
    out += _below("layer", "tick", [str(i) if i % every == 0 else "" for i in range(layers)])
    out += _below("edited", "mark", ["▲" if i in edited else "" for i in range(layers)])
    first = trace.positions.index(end - 1) if end - 1 in trace.positions else 0
    start = first * layers + next((i for i in range(layers) if i in edited), 0)
    return (f'<div class="map {trace.kind}" data-columns="{layers}" data-start="{start}" '
            f'style="grid-template-columns:max-content repeat({layers},minmax(0,1fr))">'
            f'{"".join(out)}</div>')


def layer_bars(trace, *, chosen: int, first: int = 0, label: str) -> str:
    """What the MLPs around each layer bring back at the subject's last token, as bars; the chosen
    one stands out, those below `first` are pale."""
    effect = np.asarray(trace.deciding_effect, np.float64)
    ends = trace.deciding_intervals
    titles, = _titles(trace, [trace.subject_range[1] - 1], trace.deciding[None],
                      None if ends is None else ends[None])
    step, margin, top, tall = 11, 40, 8, 96
    high, low = max(float(effect.max()), 1e-6), min(float(effect.min()), 0.0)
    scale = tall / (high - low)
    zero = top + high * scale
    parts, every = [], _every(len(effect))
    for layer, (value, title) in enumerate(zip(effect, titles, strict=True)):
        x = margin + step * layer
        y, size = (zero - value * scale, value * scale) if value > 0 else (zero, -value * scale)
        state = "chosen" if layer == chosen else "pale" if layer < first else ""
        parts.append(f'<rect class="{state}" x="{x}" y="{y:.1f}" width="{step - 2}" '
                     f'height="{max(size, 0.5):.1f}"/>'
                     f'<rect class="cell" x="{x - 1}" y="{top}" width="{step}" height="{tall}">'
                     f"<title>{escape(title)}</title></rect>")
        if layer % every == 0:
            parts.append(f'<text x="{x + step // 2}" y="{top + tall + 18}" '
                         f'text-anchor="middle">{layer}</text>')
    end = margin + step * len(effect)
    parts.append(f'<path class="axis" d="M{margin} {zero:.1f}H{end}"/>')
    parts.append(f'<text x="{margin - 5}" y="{top + 8}" text-anchor="end">{high:.2g}</text>')
    parts.append(f'<text x="{margin - 5}" y="{zero + 3:.1f}" text-anchor="end">0</text>')
    return svg(end + 6, top + tall + 24, parts, "bars mlp", label,
               f' data-columns="{len(effect)}" data-start="{chosen}"')


def _titles(trace, positions, scores, intervals) -> list[list[str]]:
    """What is read of each cell, in lines: where it is, P(answer) with its state put back, the
    interval over noise samples, and the share of the total effect."""
    def title(position: int, layer: int, value: float, ends) -> str:
        lines = [f"“{_name(trace, position)}”, layer {layer}:",
                 f"P({trace.answer.strip()}) {value:.3f}"]
        if ends is not None:
            lines.append(f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}, {trace.samples} noise "
                         "samples")
        effect = value - trace.corrupted_prob
        lines.append(f"{round(100 * effect / trace.total_effect)} % of what hiding it took away"
                     if trace.total_effect > 0 else "hiding the subject took nothing away")
        return "\n".join(lines)

    return [[title(position, layer, float(value), None if intervals is None
                   else intervals[row, layer])
             for layer, value in enumerate(scores[row])] for row, position in enumerate(positions)]


def _below(name: str, kind: str, texts: list[str]) -> list[str]:
    return [f'<span class="token">{name}</span>',
            *(f'<span class="{kind}">{text}</span>' for text in texts)]


def _every(layers: int) -> int:
    return 5 if layers <= 60 else 10


def _name(trace, position: int) -> str:
    text = trace.tokens[position].strip(" ").replace("\n", "\\n") or "␣"
    return text if len(text) <= 18 else text[:17] + "…"
