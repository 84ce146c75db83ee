"""The paper's pictures: maps of restored states, average effects, severed paths.

Files are drawn at 150 dpi on a figure of their own: no window, no state shared between pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import RomeError

_COLORS = {"hidden": "Purples", "mlp": "Greens", "attn": "Reds"}
_LINES = {"hidden": "#5e3c99", "mlp": "#1b7837", "attn": "#b2182b"}
_CLASSES = {  # token class -> (words, colour safe for colour-blind readers, line style)
    "subject_first": ("first subject token", "#56b4e9", "--"),
    "subject_middle": ("middle subject tokens", "#0072b2", ":"),
    "subject_last": ("last subject token", "#d55e00", "-"),
    "first_subsequent": ("first subsequent token", "#cc79a7", "--"),
    "further": ("further tokens", "#999999", ":"),
    "last": ("last token", "#009e73", "-"),
}
_KIND_WORDS = {"hidden": "hidden state", "mlp": "MLP", "attn": "attention"}


def plot_trace(trace, path: str | Path) -> Path:
    """The tokens × layers map of one trace; subject tokens are starred."""
    return plot_traces([trace], path)


def plot_traces(traces: Sequence, path: str | Path) -> Path:
    """Maps side by side, such as hidden, mlp and attn of one fact, on one P(answer) scale."""
    rows = max(len(trace.positions) for trace in traces)
    words = max(len(name) for trace in traces for name in _token_names(trace))
    height = 1.5 + 0.19 * max(rows, 6)
    panel = 3.6 + 0.07 * words
    figure = Figure(figsize=(panel * len(traces), height), layout="constrained")
    low = min(trace.corrupted_prob for trace in traces)
    high = max(max(float(trace.scores.max()) for trace in traces), low + 1e-6)
    for axes, trace in zip(figure.subplots(1, len(traces), squeeze=False)[0], traces, strict=True):
        _draw_map(figure, axes, trace, low, high)
    answer = traces[0].answer.strip()
    text = traces[0].prompt.replace("{}", traces[0].subject)
    letters = int(14 * panel * len(traces)) - len(answer) - 4
    figure.suptitle(f"{_shortened(text, letters)} → {answer}", fontsize=9, parse_math=False)
    return save(figure, path)


def _draw_map(figure, axes, trace, low: float, high: float) -> None:
    image = axes.imshow(trace.scores, cmap=_COLORS[trace.kind], vmin=low, vmax=high,
                        aspect="auto", interpolation="nearest")
    names = _token_names(trace)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("layer" if trace.kind == "hidden"
                    else f"centre of the {trace.window} restored layers", fontsize=8)
    axes.set_title(_title(trace), fontsize=9)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title(_measure(trace).replace(", ", "\n"), fontsize=7, parse_math=False)


def plot_average(effects, path: str | Path) -> Path:
    """AIE by layer with 95 % bands: one panel per kind, one line per token class."""
    kinds = effects.kinds
    figure = Figure(figsize=(4.4 * len(kinds), 3.9), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for name, (words, color, style) in _CLASSES.items():
            effect = effects.aie(kind, name)
            if effect.facts:
                _draw_line(axes, effect, color, style, words)
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_title(_KIND_WORDS[kind], fontsize=10, color=_LINES[kind])
        axes.set_xlabel("layer" if kind == "hidden"
                        else f"centre of the {effects.settings['window']} restored layers")
    panels[0].set_ylabel("average indirect effect on P(answer)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(kinds) == 1 else 3,
                  fontsize=8, frameon=False)
    figure.suptitle(f"{effects.facts_used} facts, average total effect {effects.ate.mean:.3f}, "
                    "bands: 95 % intervals", fontsize=10)
    return save(figure, path)


def _draw_line(axes, effect, color: str, style: str, label: str) -> None:
    layers = np.arange(len(effect.mean))
    axes.fill_between(layers, effect.ci95[:, 0], effect.ci95[:, 1], color=color, alpha=0.15,
                      linewidth=0)
    axes.plot(layers, effect.mean, style, color=color, linewidth=1.6, label=label)


def plot_severed(intact, severed: Sequence, path: str | Path) -> Path:
    """Bars by layer at the subject's last token: the effect with all paths, and with the MLPs' or
    the attentions' path severed (paper, figure 3).

    intact: a Trace of hidden states; severed: Traces of the same fact with `severed` set.
    """
    traces = [intact, *severed]
    figure = Figure(figsize=(max(6, 0.09 * len(traces) * intact.scores.shape[1]), 3.2),
                    layout="constrained")
    axes, width = figure.subplots(), 0.85 / len(traces)
    for i, trace in enumerate(traces):
        if (trace.prompt, trace.subject) != (intact.prompt, intact.subject):
            raise RomeError(f"a severed trace is of {trace.subject!r}, not {intact.subject!r}; "
                            "trace the same fact")
        layers = np.arange(trace.scores.shape[1])
        color = _LINES[trace.severed or trace.kind]
        label = f"{_KIND_WORDS[trace.severed]} severed" if trace.severed else "all paths intact"
        axes.bar(layers + (i - (len(traces) - 1) / 2) * width, subject_last_effect(trace), width,
                 color=color, label=label)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.margins(x=0.01)
    axes.set_xlabel("layer of the restored state")
    axes.set_ylabel(f"indirect effect on P({intact.answer.strip()})", parse_math=False)
    axes.set_title(_shortened(intact.prompt.replace("{}", intact.subject), 90), fontsize=9,
                   parse_math=False)
    axes.legend(fontsize=8, frameon=False)
    return save(figure, path)


def subject_last_effect(trace) -> np.ndarray:
    """(layers,) indirect effect at the subject's last token."""
    last = trace.subject_range[1] - 1
    if last not in trace.positions:
        raise RomeError("the subject's last token was not traced; trace it to draw its effect")
    return trace.indirect_effect[trace.positions.index(last)]


def plot_recovery(recovery: dict[int, float], path: str | Path, *, title: str = "",
                  label: str = "recovery in %") -> Path:
    """Recovery by layer of an activation patching."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(recovery), list(recovery.values()), color=_LINES["mlp"])
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.set_title(_shortened(title, 90), fontsize=9, parse_math=False)
    return save(figure, path)


def _title(trace) -> str:
    cut = f", {_KIND_WORDS[trace.severed]} severed" if trace.severed else ""
    return f"restoring the {_KIND_WORDS[trace.kind]}{cut}" if trace.kind == "hidden" else (
        f"restoring {_KIND_WORDS[trace.kind]} outputs{cut}")


def _measure(trace) -> str:
    return f"P({trace.answer.strip()})" + ("" if trace.exact else ", estimated")


def _token_names(trace) -> list[str]:
    begin, end = trace.subject_range
    return [_visible(trace.tokens[p]) + ("*" if begin <= p < end else "")
            for p in trace.positions]


def _visible(token: str) -> str:
    shown = token.strip(" ").replace("\n", "\\n").replace("\t", "\\t")
    return _shortened(shown or "␣", 22)


def _shortened(text: str, length: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= length else "…" + text[1 - length:]


def save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise RomeError(f"cannot write {str(path)!r}: its directory does not exist; make it first")
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        raise RomeError(f"cannot draw to {str(path)!r}: {error}; give a .png, .pdf or .svg "
                        "file") from error
    return path


def terminal_map(trace, width: int = 80) -> str:
    """The map as text with 256 terminal colours, at most `width` columns wide.

    A row per token, a cell per layer (neighboring layers share a cell where there are more than
    fit, which then shows their maximum); darker means less of the answer.
    """
    names = _token_names(trace)
    margin = min(16, max(len(name) for name in names)) + 1
    layers = trace.scores.shape[1]
    a_cell = -(-layers // (width - margin))
    wide = max(1, min(3, (width - margin) // -(-layers // a_cell)))
    span = float(trace.scores.max()) - trace.corrupted_prob
    lines = []
    for name, row in zip(names, trace.scores, strict=True):
        cells = [row[i:i + a_cell].max() for i in range(0, layers, a_cell)]
        shades = [_shade(trace.kind, (cell - trace.corrupted_prob) / max(span, 1e-9))
                  for cell in cells]
        colors = "".join(f"\x1b[48;5;{shade}m{' ' * wide}" for shade in shades)
        lines.append(f"{name[-(margin - 1):]:>{margin - 1}} {colors}\x1b[0m")
    ticks = "".join(f"{i:<{5 * wide}}" for i in range(0, layers, 5 * a_cell))
    scale = f"{_measure(trace)} {trace.corrupted_prob:.2f} to {trace.scores.max():.2f}"
    return "\n".join([*lines, (" " * margin + ticks).rstrip()[:width], scale[:width]])


def _shade(kind: str, part: float) -> int:
    """One of six steps of the 6 × 6 × 6 colour cube, dark to bright in the kind's colour."""
    step = int(np.clip(round(5 * part), 0, 5))
    red, green, blue = {"hidden": (0.8, 0.4, 1), "mlp": (0.3, 1, 0.4), "attn": (1, 0.3, 0.3)}[kind]
    return 16 + 36 * round(red * step) + 6 * round(green * step) + round(blue * step)
