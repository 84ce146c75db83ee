"""Drawings for a page, as SVG that takes its colours from the page: light and dark alike."""

from html import escape


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
    return svg(margin + wide + 6, top + tall + 22, parts, "lines",
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
    return svg(margin + wide + 16, bottom + 20, parts, "dumbbells", label)


def svg(width: float, height: float, parts: list[str], classes: str, label: str,
        more: str = "") -> str:
    """A drawing as wide as its place; more: further attributes."""
    return (f'<svg class="{classes}" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'style="max-width:{1.3 * width:.0f}px" role="img" aria-label="{escape(label)}"'
            f'{more}>{"".join(parts)}</svg>')
