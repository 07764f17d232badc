"""Plots as SVG inside a page: bars, stacked bars, lines and points. They take their colours from the page's CSS, so that one
serves light and dark; a mark says its numbers when pointed at. They know numbers and labels and no benchmark.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, ROW, BAR = 860, 26, 14
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 24, 44
_LETTER = 6.6  # width of a letter of a label


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with the ends of its spread. series: the number of a colour; note: what stands behind it."""

    label: str
    value: float
    low: float
    high: float
    series: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """A dot. number: written beside it where it is one of the best, which a line joins."""

    x: float
    y: float
    title: str
    number: int | None = None


def bars(values: Sequence[Bar]) -> str:
    """Lying bars from zero, with a whisker from low to high and a note at the end."""
    left = _room(bar.label for bar in values)
    notes = max((len(bar.note) for bar in values), default=0) * _LETTER + 12
    top = max((bar.high for bar in values), default=1) or 1
    scale = max(80.0, WIDTH - left - notes) / top
    parts = []
    for number, bar in enumerate(values):
        y = number * ROW + 4
        width, middle = bar.value * scale, y + BAR / 2
        parts.append(_text(left - 8, middle + 4, bar.label, "end"))
        parts.append(_bar(left, y, width, f"s{bar.series}", f"{bar.label}: {bar.note or show(bar.value)}"))
        if bar.high > bar.low:
            parts.append(_line(left + bar.low * scale, middle, left + bar.high * scale, middle, "whisker"))
        parts.append(_text(left + max(width, bar.high * scale) + 8, middle + 4, bar.note or show(bar.value), "start"))
    return _svg(len(values) * ROW + 8, parts, ", ".join(f"{bar.label} {bar.note or show(bar.value)}" for bar in values))


def stacked(rows: Mapping[str, Mapping[str, float]], unit: str, notes: Mapping[str, str]) -> str:
    """A lying bar a row, cut into named parts; colours follow the names' order."""
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    left = _room(rows)
    room = max((len(note) for note in notes.values()), default=0) * _LETTER + 12
    top = max((sum(parts.values()) for parts in rows.values()), default=1) or 1
    scale, drawn = max(80.0, WIDTH - left - room) / top, []
    for number, (label, parts) in enumerate(rows.items()):
        y, x = number * ROW + 4, left
        drawn.append(_text(left - 8, y + BAR / 2 + 4, label, "end"))
        for name, value in parts.items():
            width = value * scale
            share = 100 * value / (sum(parts.values()) or 1)
            title = f"{label}, {name}: {show(value)} {unit}, {share:.1f}%"
            drawn.append(_bar(x, y, max(0.0, width - 1.5), f"s{names.index(name)}", title))
            x += width
        drawn.append(_text(x + 8, y + BAR / 2 + 4, notes.get(label, ""), "start"))
    return legend({name: n for n, name in enumerate(names)}) + _svg(
        len(rows) * ROW + 8, drawn, ", ".join(f"{k} {v}" for k, v in notes.items())
    )


def lines(series: Mapping[str, Mapping[float, float]], x_label: str, y_label: str) -> str:
    """Values over a logarithmic axis, a line a name."""
    xs = sorted({x for values in series.values() for x in values})
    frame = _Frame.around(xs, [y for values in series.values() for y in values.values()], zero=True)
    parts = frame.axes(x_label, y_label, xs)
    for number, (name, values) in enumerate(series.items()):
        places = [(frame.x(x), frame.y(values[x])) for x in sorted(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line l{number % 8}" points="{path}"/>')
        for (x, y), (at, value) in zip(places, sorted(values.items()), strict=True):
            parts.append(_dot(x, y, f"s{number % 8}", f"{name} at {show(at)}: {show(value)}", 4))
    return legend({name: n for n, name in enumerate(series)}) + _svg(
        _HEIGHT, parts, f"{y_label} over {x_label}: {', '.join(series)}"
    )


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Dots over a logarithmic axis; a stair joins the numbered ones."""
    frame = _Frame.around([p.x for p in points], [p.y for p in points], zero=False)
    parts = frame.axes(x_label, y_label, frame.ticks_of_x())
    best = sorted((p for p in points if p.number is not None), key=lambda p: p.x)
    if best:
        path = f"M{frame.x(best[0].x):.1f},{frame.y(best[0].y):.1f}"
        path += "".join(f"H{frame.x(p.x):.1f}V{frame.y(p.y):.1f}" for p in best[1:])
        parts.append(f'<path class="line l1" d="{path}"/>')
    for point in sorted(points, key=lambda p: p.number is not None):
        x, y = frame.x(point.x), frame.y(point.y)
        parts.append(_dot(x, y, "s1" if point.number is not None else "s0", point.title, 5))
        if point.number is not None:
            parts.append(_text(x, y - 9, str(point.number), "middle"))
    return _svg(_HEIGHT, parts, f"{y_label} over {x_label}, {len(points)} points")


def legend(names: Mapping[str, int]) -> str:
    """What each colour means: name -> number of the colour."""
    keys = (f'<span class="key"><i class="s{n % 8}"></i>{escape(name)}</span>' for name, n in names.items())
    return f'<p class="legend">{"".join(keys)}</p>'


def show(value: float) -> str:
    """A number with three digits that matter."""
    if value == 0 or not math.isfinite(value):
        return str(value) if value else "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


_HEIGHT = 340


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where numbers stand in a plot whose x is logarithmic."""

    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], *, zero: bool) -> "_Frame":
        low, high = (min(xs), max(xs)) if xs else (1.0, 10.0)
        margin = (high / low) ** 0.04 if high > low else 2.0
        bottom, top = (0.0 if zero else min(ys), max(ys)) if ys else (0.0, 1.0)
        room = 0.08 * (top - bottom) or 0.5
        return cls(low / margin, high * margin, bottom if zero else bottom - room, top + room)

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log(value / self.left) / math.log(self.right / self.left)

    def y(self, value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.top - value) / (self.top - self.bottom)

    def ticks_of_x(self) -> list[float]:
        """1, 2 and 5 times powers of ten, inside."""
        first, last = math.floor(math.log10(self.left)), math.ceil(math.log10(self.right))
        found = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
        return [value for value in found if self.left <= value <= self.right]

    def axes(self, x_label: str, y_label: str, xs: Sequence[float]) -> list[str]:
        bottom, parts = _HEIGHT - _BOTTOM, []
        step = _round_step((self.top - self.bottom) / 5)
        value = math.ceil(self.bottom / step) * step
        while value <= self.top:
            parts.append(_line(_LEFT, self.y(value), WIDTH - _RIGHT, self.y(value), "grid"))
            parts.append(_text(_LEFT - 8, self.y(value) + 4, f"{value:,.6g}", "end"))
            value += step
        for x in xs:
            parts.append(_line(self.x(x), bottom, self.x(x), bottom + 4, "axis"))
            parts.append(_text(self.x(x), bottom + 18, f"{x:,.6g}", "middle"))
        parts.append(_line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"))
        parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "middle"))
        return [*parts, _text(_LEFT, 12, y_label, "start")]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)


def _room(labels: Iterable[str]) -> float:
    return max((len(label) for label in labels), default=0) * _LETTER + 16


def _svg(height: float, parts: Sequence[str], said: str) -> str:
    label = escape(said, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bar(x: float, y: float, width: float, name: str, title: str) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{BAR}" rx="2"'
    return f'<rect class="{name}" {shape}><title>{escape(title)}</title></rect>'


def _dot(x: float, y: float, name: str, title: str, radius: int) -> str:
    return f'<circle class="dot {name}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(title)}</title></circle>'


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
