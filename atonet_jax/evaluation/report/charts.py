"""Matplotlib's drawings: curves as SVG for reports, confusion matrices as pictures."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

# Readable on white and on near black.
_COLORS = ('#2f7fe0', '#e07612', '#1f9d63', '#c4439b', '#8a70d6', '#9c8a12', '#d24f4f', '#2aa3b5')
_INK = '#010203'  # placeholder for the text colour of the page
_SIZE = (4.2, 2.4)  # inches: text keeps its size on a phone, and three stand side by side on a desk
_MARGINS = {'right': 0.94, 'bottom': 0.18, 'top': 0.94}  # fixed: half the time
_CHARACTER = 0.088  # inches that one of a tick label takes at most, in any usual font
_LARGEST = 16  # inches that a confusion matrix of very many classes takes
_POINTS = 300  # of a curve at most
_STYLE = {
    'svg.fonttype': 'none',
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    **dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color'), _INK),
    'grid.color': _INK,
    'grid.alpha': 0.15,
}


class Curve(NamedTuple):
    """Finite values by training step."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


def curve(metrics: list[dict], key: str, name: str, factor: float = 1) -> Curve:
    """The finite values of `key` in the lines of `metrics.jsonl`, times `factor`."""
    points = [(line['step'], factor * line[key]) for line in metrics if math.isfinite(line.get(key, math.nan))]
    return Curve(name, *zip(*points)) if points else Curve(name, (), ())


def chart(name: str, title: str, curves: Sequence[Curve], log: bool = False) -> dict:
    """For `charts_of` of macros.html: {'title', 'svg', 'legend': [(name, colour)]}. Arguments as in `curves_svg`."""
    legend = [(curve.name, color_of(i)) for i, curve in enumerate(curves)] if len(curves) > 1 else []
    return {'title': title, 'svg': curves_svg(name, title, curves, log), 'legend': legend}


def curves_svg(name: str, title: str, curves: Sequence[Curve], log: bool = False) -> Markup:
    """An <svg> element with several curves. Long curves are averaged. '' if all are empty.

    Args:
        name: prefix of every id in it, so that one page can hold several.
        title: description with unit, for screen readers.
        curves: the i-th one has the colour `color_of(i)`.
        log: draws the positive values on a logarithmic axis.
    """
    if not any(curve.steps for curve in curves):
        return Markup('')
    with matplotlib.rc_context(_STYLE | {'svg.hashsalt': name}):
        figure = Figure(figsize=_SIZE)
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            steps, values = _averaged(curve)
            dots = 'o' if len(steps) < 10 else None
            axes.plot(steps, values, color=color_of(i), linewidth=1.6, marker=dots, markersize=3.5)
        if log and any(value > 0 for curve in curves for value in curve.values):
            axes.set_yscale('log', nonpositive='mask')
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter('')
            if len(_labels(axes)) < 2:
                axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True)
        axes.set_xlabel('step')
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
        left = (0.2 + _CHARACTER * max(map(len, _labels(axes)), default=0)) / _SIZE[0]
        figure.subplots_adjust(left=max(0.12, left), **_MARGINS)
        file = io.StringIO()
        figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
    svg = file.getvalue()
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
    svg = svg.replace(_INK, 'currentColor').replace('<svg ', f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return Markup(svg)


def _labels(axes: Axes) -> list[str]:
    """Those of the ticks that show on the vertical axis."""
    low, high = sorted(axes.get_ylim())
    return [_tick(value) for value in axes.get_yticks() if low <= value <= high]


def _tick(value: float) -> str:
    """A short label: 0.0135, 6e-5, 12k, 1.5M."""
    text = re.sub(r'e([+-])0*', r'e\1', f'{value:g}').replace('e+', 'e')
    for least, unit, name in ((1e4, 1e3, 'k'), (1e6, 1e6, 'M'), (1e9, 1e9, 'G')):
        if least <= abs(value) < 1e12:
            text = f'{value / unit:g}{name}'
    return text.replace('-', '−')


def color_of(i: int) -> str:
    """The colour of the i-th curve."""
    return _COLORS[i % len(_COLORS)]


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """[C, C or C + 1] counts by [true class, predicted class] -> [H, W, 3] uint8: each row's shares, in %."""
    count = confusion.shape[1]
    size = min(max(3, 0.36 * count), _LARGEST)
    margin = 0.5 + 0.09 * max(map(len, class_names))  # for the names
    whole = size + margin + 0.1
    figure = Figure(figsize=(whole, whole), dpi=80)
    figure.subplots_adjust(
        left=margin / whole, right=(size + margin) / whole, bottom=margin / whole, top=(size + margin) / whole
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = row_shares(confusion)
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    style = {'parse_math': False, 'fontsize': min(10, 55 * size / count)}
    axes.set_xticks(range(count), output_names(confusion, class_names), rotation=90, **style)
    axes.set_yticks(range(len(class_names)), class_names, **style)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.05 and count <= 60:
            axes.text(column, row, f'{100 * share:.0f}', ha='center', va='center', fontsize=8,
                      color='white' if share > 0.6 else 'black')  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')  # of names in scripts that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def output_names(confusion: np.ndarray, class_names: Sequence[str]) -> tuple[str, ...]:
    """What the columns of a confusion matrix stand for."""
    return (*class_names, 'void')[: confusion.shape[1]]


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Counts -> float64 of the same shape, each row divided by its sum; NaN in rows of classes without labels."""
    totals = confusion.sum(1, keepdims=True)
    return np.divide(confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)


def _averaged(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, reduced to at most `_POINTS` by means of neighbours."""
    parts = min(len(curve.steps), _POINTS)
    if not parts:
        return np.array([]), np.array([])
    return tuple(
        np.array([part.mean() for part in np.array_split(np.asarray(axis, float), parts)])
        for axis in (curve.steps, curve.values)
    )
