"""Plots as inline SVG. Colours are CSS classes, so that one drawing serves the light and the dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
MOST_NAMES = 12  # under an axis


@dataclass(frozen=True)
class Line:
    """A named series; `faint` is drawn behind it (raw values behind smoothed ones); bars are (low, high) per point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] | None = None
    bars: Sequence[tuple[float, float]] | None = None
    kind: int = 0  # index of the colour


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in a row of its own."""

    name: str
    value: float
    low: float
    high: float
    kind: str  # a CSS class: model, teacher, control


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high] in about so many steps.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_plot(
    lines: Sequence[Line], *, x_label: str, y_label: str, log_x: bool = False, names: Sequence[str] = ()
) -> str:
    """Curves over a common axis, with a legend where there is more than one. names: of x = 1, 2, … instead of them."""
    at = (lambda v: math.log10(v)) if log_x else (lambda v: v)
    xs = [at(x) for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y] + [v for line in lines for bar in line.bars or () for v in bar]
    if not xs:
        return ""
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = (y1 - y0 or abs(y1) or 1.0) * 0.06
    y0, y1 = y0 - pad, y1 + pad
    x_of = lambda v: LEFT + (at(v) - x0) / (x1 - x0 or 1.0) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    y_of = lambda v: TOP + (y1 - v) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [_grid_y(ticks(y0, y1), y_of)]
    marks = sorted({x for line in lines for x in line.x}) if log_x else ticks(x0, x1)
    named: Sequence[tuple[float, str]] = list(enumerate(names, 1))[:: -(-len(names) // MOST_NAMES) or 1]
    for v, text in named or [(v, _number(v)) for v in marks]:
        parts.append(
            f'<text class="tick" x="{x_of(v):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(text)}</text>'
        )
    for line in lines:
        if line.faint is not None:
            inside = [min(max(y, y0), y1) for y in line.faint]  # the axis is that of the smooth lines
            parts.append(_path(line.x, inside, x_of, y_of, f"line faint c{line.kind}"))
        for x, (low, high) in zip(line.x, line.bars or ()):
            parts.append(
                f'<line class="bar c{line.kind}" x1="{x_of(x):.1f}" x2="{x_of(x):.1f}" '
                f'y1="{y_of(low):.1f}" y2="{y_of(high):.1f}"/>'
            )
        parts.append(_path(line.x, line.y, x_of, y_of, f"line c{line.kind}"))
        if line.bars is not None or len(line.x) == 1:
            for x, y in zip(line.x, line.y):
                parts.append(f'<circle class="dot c{line.kind}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5"/>')
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 1}" text-anchor="middle">{escape(x_label)}</text>'
    )
    legend = "".join(f'<span class="key"><i class="c{line.kind}"></i>{escape(line.name)}</span>' for line in lines)
    label = f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}"
    return _figure(WIDTH, HEIGHT, parts, label, y_label, legend if len(lines) > 1 else "")


def dot_plot(dots: Sequence[Dot], *, x_label: str) -> str:
    """One row a subject: value and interval on a common axis."""
    row, left = 30, 150
    height = row * len(dots) + 40
    low, high = min(d.low for d in dots), max(d.high for d in dots)
    pad = (high - low or abs(high) or 1.0) * 0.06
    x_of = lambda v: left + (v - low + pad) / (high - low + 2 * pad) * (WIDTH - left - 70)  # noqa: E731
    parts = []
    for v in ticks(low - pad, high + pad):
        parts.append(f'<line class="grid" x1="{x_of(v):.1f}" x2="{x_of(v):.1f}" y1="4" y2="{height - 34}"/>')
        parts.append(f'<text class="tick" x="{x_of(v):.1f}" y="{height - 18}" text-anchor="middle">{_number(v)}</text>')
    for i, d in enumerate(dots):
        y = 18 + i * row
        parts.append(f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(d.name)}</text>')
        parts.append(f'<line class="bar {d.kind}" x1="{x_of(d.low):.1f}" x2="{x_of(d.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {d.kind}" cx="{x_of(d.value):.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text class="value" x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{d.value:.3f}</text>')
    middle = (left + WIDTH - 70) / 2
    parts.append(f'<text class="label" x="{middle}" y="{height - 2}" text-anchor="middle">{escape(x_label)}</text>')
    label = f"{x_label}: " + ", ".join(f"{d.name} {d.value:.3f} ({d.low:.3f} to {d.high:.3f})" for d in dots)
    return _figure(WIDTH, height, parts, label, "", "")


def _grid_y(values: Sequence[float], y_of) -> str:  # type: ignore[no-untyped-def]
    parts = []
    for v in values:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(v):.1f}" y2="{y_of(v):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y_of(v) + 4:.1f}" text-anchor="end">{_number(v)}</text>')
    return "".join(parts)


def _path(x: Sequence[float], y: Sequence[float], x_of, y_of, kind: str) -> str:  # type: ignore[no-untyped-def]
    points = " ".join(f"{x_of(a):.1f},{y_of(b):.1f}" for a, b in zip(x, y))
    return f'<polyline class="{kind}" points="{points}"/>'


def _figure(width: int, height: int, parts: Sequence[str], label: str, title: str, legend: str) -> str:
    head = f'<figcaption>{escape(title)} <span class="legend">{legend}</span></figcaption>' if title or legend else ""
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return f"<figure>{head}{opening}{''.join(parts)}</svg></figure>"


def _number(v: float) -> str:
    if v and (abs(v) < 1e-3 or abs(v) >= 1e5):
        return f"{v:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{v:g}"


def smoothed(values: Sequence[float], *, window: int) -> list[float]:
    """Centred moving average; shorter at the ends."""
    half = window // 2
    sums = [0.0]
    for v in values:
        sums.append(sums[-1] + v)
    n = len(values)
    return [
        (sums[min(i + half + 1, n)] - sums[max(i - half, 0)]) / (min(i + half + 1, n) - max(i - half, 0))
        for i in range(n)
    ]
