"""Charts as SVG text, in the colours of the page that holds them.

Each is one card wide; a page lays cards side by side and scales them with the screen. Colours are classes of the
page's style sheet: "good", "bad", "plain", and "series0" to "series5".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from alohas2r.core.stats import wilson
from alohas2r.core.types import JsonObject

WIDTH, HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 10.0, 10.0, 34.0  # margins for what stands at the axes
_BINS = 24
_POINTS = 600  # of a curve; more cannot be told apart
SERIES = 6  # colours of curves


def short(value: float) -> str:
    """Returns a number in at most four digits: "0.0123", "12.3", "12,345"."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns about `count` round numbers within low .. high."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit * count >= span * 0.8)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclasses.dataclass
class _Plot:
    """The ground of a chart: from values to places, and axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    parts: list[Markup] = dataclasses.field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a value stands."""
        wide = self.width - self.left - _RIGHT
        high = self.height - _TOP - _BOTTOM
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return self.left + wide * across, _TOP + high * (1 - up)

    def add(self, markup: str, /, **values: object) -> None:
        """Adds an element; values are escaped."""
        self.parts.append(Markup(markup).format(**values))

    def bar(self, span: tuple[float, float], low: float, high: float, style: str, tip: str) -> None:
        """Adds a bar over `span` of x from `low` to `high`."""
        left, top = self.at(span[0], high)
        right, bottom = self.at(span[1], low)
        gap = min(1.0, 0.1 * (right - left))
        self.add(
            '<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}">'
            "<title>{tip}</title></rect>",
            style=style,
            x=left + gap,
            y=top,
            w=max(right - left - 2 * gap, 0.5),
            h=max(bottom - top, 0.0),
            tip=tip,
        )

    def path(
        self, xs: Sequence[float], ys: Sequence[float], style: str, close: bool = False
    ) -> None:
        """Adds a line through points; it is broken where one is not finite."""
        words, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not math.isfinite(y):
                pen = "M"
                continue
            left, top = self.at(x, y)
            words.append(f"{pen}{left:.1f} {top:.1f}")
            pen = "L"
        text = "".join(words) + ("Z" if close else "")
        self.add('<path class="{style}" d="{text}"/>', style=style, text=text)

    def axes(
        self,
        label: str,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
    ) -> None:
        """Adds both axes with their numbers."""
        for value, text in y_ticks:
            left, top = self.at(self.x[0], value)
            self.add(
                '<line class="grid" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text class="tick" x="{x:.1f}" y="{t:.1f}" text-anchor="end">{text}</text>',
                x1=left,
                x2=self.width - _RIGHT,
                y=top,
                x=left - 5,
                t=top + 3.5,
                text=text,
            )
        for value, text in x_ticks:
            left, top = self.at(value, self.y[0])
            for row, line in enumerate(text.split("\n")):
                self.add(
                    '<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>',
                    x=left,
                    y=top + 12 + 9 * row,
                    text=line,
                )
        self.add(
            '<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{label}</text>',
            x=self.width - _RIGHT,
            y=self.height - 3,
            label=label,
        )

    def svg(self, told: str) -> Markup:
        """Returns the chart; `told` says to those who cannot see it what it shows."""
        head = Markup('<svg viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{told}">').format(
            w=self.width, h=self.height, told=told
        )
        return head + Markup("").join(self.parts) + Markup("</svg>")


def _numbers(values: Sequence[float]) -> list[tuple[float, str]]:
    return [(value, short(round(value, 12))) for value in values]


def histogram(groups: Mapping[str, np.ndarray], unit: str) -> Markup | None:
    """Draws how often values come up, groups one above the other.

    Args:
      groups: colour class -> values [n]; what is not finite is left out.
      unit: of the values, at the axis.

    Returns:
      None where nothing differs.
    """
    kept = {name: np.asarray(values, float) for name, values in groups.items()}
    kept = {name: values[np.isfinite(values)] for name, values in kept.items()}
    whole = np.concatenate(list(kept.values()))
    if len(whole) < 2 or not np.ptp(whole) > 0:
        return None
    low, high = float(whole.min()), float(whole.max())
    distinct = np.unique(whole)
    if len(distinct) <= 12 and np.allclose(distinct, np.round(distinct)):
        edges = np.arange(round(low) - 0.5, round(high) + 1)  # counts: a bar each
    else:
        edges = np.linspace(low, high, _BINS + 1)
    counted = {name: np.histogram(values, edges)[0] for name, values in kept.items()}
    top = float(np.sum(list(counted.values()), 0).max())
    plot = _Plot((float(edges[0]), float(edges[-1])), (0.0, top))
    marks = [value for value in ticks(0, top, 3) if value == round(value)]
    plot.axes(unit, _numbers(ticks(float(edges[0]), float(edges[-1]))), _numbers(marks))
    below = np.zeros(len(edges) - 1)
    for name, counts in counted.items():
        for index, count in enumerate(counts):
            if count:
                span = float(edges[index]), float(edges[index + 1])
                tip = f"{short(span[0])} to {short(span[1])} {unit}: {count}"
                plot.bar(span, float(below[index]), float(below[index] + count), name, tip)
        below += counts
    return plot.svg(f"Histogram of {len(whole)} values in {unit}")


def cumulative(times: np.ndarray, horizon: float, unit: str = "s") -> Markup:
    """Draws the share of trials whose event came by a time, with the 95% Wilson band.

    Args:
      times: [N]; not finite where there was none.
      horizon: last time.
      unit: of time.
    """
    count = len(times)
    moments = np.unique(times[np.isfinite(times)])
    xs, shares = [0.0], [0]
    for moment in moments:
        xs += [float(moment), float(moment)]
        shares += [shares[-1], int((times <= moment).sum())]
    xs.append(max(horizon, xs[-1]))
    shares.append(shares[-1])
    bands = [wilson(share, count) for share in shares]
    plot = _Plot((0.0, xs[-1]), (0.0, 1.0))
    plot.axes(
        unit, _numbers(ticks(0, xs[-1], 5)), [(v, f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75, 1)]
    )
    outline = [low for low, _ in bands] + [high for _, high in reversed(bands)]
    plot.path([*xs, *reversed(xs)], outline, "band", close=True)
    plot.path(xs, [share / count for share in shares], "curve series0")
    last = f"{shares[-1]} of {count} by {short(xs[-1])} {unit}"
    return plot.svg(f"Share by time: {last}")


def rates_by_group(groups: Sequence[JsonObject], overall: float) -> Markup:
    """Draws a rate with its interval for each range of a cause.

    Args:
      groups: rows of `evaluation.causes.by_quantile`. overall: rate of all episodes.
    """
    plot = _Plot((-0.5, len(groups) - 0.5), (0.0, 1.0), height=150)
    labels = []
    for index, group in enumerate(groups):
        low, high = short(group["from"]), short(group["to"])
        labels.append((float(index), low if low == high else f"{low}\n{high}"))
    plot.axes("", labels, [(v, f"{v:.0%}") for v in (0, 0.5, 1)])
    for index, group in enumerate(groups):
        rate = group["rate"]
        tip = f"{rate:.1%} ({group['low']:.1%} .. {group['high']:.1%}) of {group['episodes']}"
        style = "good" if group["high"] >= overall else "bad"
        plot.bar((index - 0.36, index + 0.36), 0.0, rate, style, tip)
        plot.path([index, index], [group["low"], group["high"]], "whisker")
    plot.path([-0.5, len(groups) - 0.5], [overall, overall], "level")
    return plot.svg("Success by range of the cause")


def bars(values: Mapping[str, float], unit: str) -> Markup:
    """Draws one horizontal bar for each named value, from 0."""
    top = max([*values.values(), 0.0]) or 1.0
    parts = []
    row = 22
    for index, (name, value) in enumerate(values.items()):
        parts.append(
            Markup(
                '<text class="label" x="0" y="{y}">{name}</text>'
                '<rect class="plain" x="150" y="{top}" width="{w:.1f}" height="14"/>'
                '<text class="tick" x="{x:.1f}" y="{y}">{text}</text>'
            ).format(
                y=row * index + 15,
                top=row * index + 4,
                name=name,
                w=max(110 * value / top, 0.5),
                x=154 + 110 * value / top,
                text=short(value),
            )
        )
    height = row * len(values) + 18
    parts.append(
        Markup('<text class="axis" x="330" y="{y}" text-anchor="end">{unit}</text>').format(
            y=height - 4, unit=unit
        )
    )
    head = Markup('<svg viewBox="0 0 340 {h}" role="img" aria-label="{told}">')
    return head.format(h=height, told=unit) + Markup("").join(parts) + Markup("</svg>")


def curves(
    x: np.ndarray,
    series: Mapping[str, np.ndarray],
    unit: str,
    *,
    spans: Sequence[tuple[float, float, str]] = (),
    level: float | None = None,
) -> Markup:
    """Draws curves over time.

    Args:
      x: [T] seconds.
      series: name -> [T]; gaps where a value is not finite.
      unit: of the values.
      spans: stretches of time to shade: start, end, what it is.
      level: of a dotted line across.
    """
    finite = np.concatenate([np.asarray(y, float) for y in series.values()])
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if level is not None:
        low, high = min(low, level), max(high, level)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    plot = _Plot((float(x[0]), float(x[-1])), (low, high))
    plot.axes("s", _numbers(ticks(float(x[0]), float(x[-1]), 5)), _numbers(ticks(low, high)))
    for start, end, what in spans:
        plot.bar((start, end), low, high, "span", what)
    step = max(1, len(x) // _POINTS)
    for index, values in enumerate(series.values()):
        style = f"curve series{index % SERIES}"
        plot.path(x[::step].tolist(), np.asarray(values, float)[::step].tolist(), style)
    if level is not None:
        plot.path([float(x[0]), float(x[-1])], [level, level], "level")
    names = Markup(" ").join(
        Markup('<tspan class="ink series{n}">{name}</tspan>').format(n=index % SERIES, name=name)
        for index, name in enumerate(series)
    )
    plot.parts.append(
        Markup('<text class="axis" x="40" y="{y:g}">').format(y=HEIGHT - 3)
        + names
        + Markup(' <tspan class="axis">({unit})</tspan></text>').format(unit=unit)
    )
    return plot.svg(f"{escape(', '.join(series))} over time")


class Line(NamedTuple):
    """A line of parallel coordinates: where it crosses each axis, its result, and what it says of itself."""

    values: Sequence[str]
    result: float
    tip: str


def parallel_coordinates(
    names: Sequence[str],
    lines: Sequence[Line],
    result: str,
    logs: Sequence[bool],
    maximize: bool,
) -> Markup:
    """Draws one line for each configuration, across one upright axis for each setting, to its result at the right.

    The best are drawn last and in yellow, the worst in blue.

    Args:
      names: of the axes. lines: the configurations, one at least.
      result: name of the last axis. logs: whether an axis is logarithmic.
      maximize: whether more is better.
    """
    columns = [_Axis.of([line.values[n] for line in lines], logs[n]) for n in range(len(names))]
    columns.append(_Axis.of([repr(line.result) for line in lines], False))
    wide, high = 680.0, 260.0
    plot = _Plot((0.0, float(len(names))), (0.0, 1.0), wide, high, 60.0)
    for index, (name, axis) in enumerate(zip((*names, result), columns, strict=True)):
        plot.path([index, index], [0.0, 1.0], "level")
        left, _ = plot.at(index, 0.0)
        ends = "end" if index == len(names) else "start" if index == 0 else "middle"
        plot.add(
            '<text class="axis" x="{x:.1f}" y="{y}" text-anchor="{ends}">{name}</text>',
            x=left + (8 if ends == "end" else -56 if ends == "start" else 0),
            y=high - 14 + 11 * (index % 2),  # long names do not meet
            ends=ends,
            name=name,
        )
        for place, text in axis.marks:
            plot.add(
                '<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{text}</text>',
                x=left - 4,
                y=plot.at(0.0, place)[1] + (-4 if place < 0.9 else 11),  # beside the lines
                text=text,
            )
    results = [line.result for line in lines]
    low, high_end = min(results), max(results)
    best_last = sorted(lines, key=lambda line: line.result, reverse=not maximize)
    for line in best_last:
        share = (line.result - low) / ((high_end - low) or 1.0)
        good = share if maximize else 1 - share
        crossed = [*line.values, repr(line.result)]
        points = [
            plot.at(n, axis.place(text))
            for n, (axis, text) in enumerate(zip(columns, crossed, strict=True))
        ]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        plot.add(
            '<path d="M{way}" style="fill:none;stroke-width:1.6;stroke:hsl({hue:.0f} 75% {light:.0f}%)">'
            "<title>{tip}: {result}</title></path>",
            way=way,
            hue=250 - 205 * good,
            light=50 - 4 * good,
            tip=line.tip,
            result=short(line.result),
        )
    return plot.svg(f"Parallel coordinates of {len(lines)} configurations: {', '.join(names)}")


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An upright axis: numbers to scale, anything else a place for each."""

    places: Mapping[str, float]
    marks: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, texts: Sequence[str], log: bool) -> _Axis:
        """Returns the axis for some values."""
        distinct = list(dict.fromkeys(texts))
        try:
            numbers = {text: float(text) for text in distinct}
        except ValueError:
            places = {text: _share(n, 0, len(distinct) - 1) for n, text in enumerate(distinct)}
            return cls(places, [(place, text) for text, place in places.items()])
        if log:
            numbers = {text: math.log10(number) for text, number in numbers.items()}
        low, high = min(numbers.values()), max(numbers.values())
        places = {text: _share(number, low, high) for text, number in numbers.items()}
        apart = np.diff(sorted(places.values()))
        if len(distinct) <= 6 and (not apart.size or apart.min() > 0.06):
            return cls(places, [(place, short(float(text))) for text, place in places.items()])
        marked = [low, (low + high) / 2, high] if log else ticks(low, high, 5)
        return cls(
            places,
            [(_share(one, low, high), short(10**one if log else round(one, 12))) for one in marked],
        )

    def place(self, text: str) -> float:
        """Returns where a value stands, 0 to 1."""
        return self.places[text]


def _share(value: float, low: float, high: float) -> float:
    """Returns where a value stands between two others; in the middle if they are the same."""
    return (value - low) / (high - low) if high > low else 0.5
