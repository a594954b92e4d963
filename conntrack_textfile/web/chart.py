"""Charts of up to an hour as inline SVG, with a scale and tooltips.

The SVG is stretched to the width of its card. The scale is HTML beside it, since
text would be stretched, too.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.units import decimal
from conntrack_textfile.web.markup import element

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from xml.etree.ElementTree import Element

_WIDTH, _HEIGHT = 600, 100  # of the SVG in its own units
_SLICES = 60  # of the time axis, each with a tooltip

# Lengths of the time axis in seconds; half of each but the first is whole minutes. The last
# is that of the history.
_LENGTHS = (60.0, 120.0, 240.0, 360.0, 600.0, 1200.0, 1800.0, 2400.0, 3600.0)


class Span(NamedTuple):
    """A value over some time."""

    began: float  # monotonic seconds
    ended: float
    value: float


class Line(NamedTuple):
    """A line of a chart."""

    name: str  # "" for the only line
    hint: str  # a tooltip of the name
    spans: Sequence[Span]  # oldest first; time between spans is a gap
    present: float | None = None  # None where it is unknown


class Times(NamedTuple):
    """The time axis of a chart."""

    now: float
    clock: float  # Unix time of now
    seconds: float  # its length, up to now


def draw(
    title: str,
    lines: Sequence[Line],
    times: Times,
    show: Callable[[float], str],
    unit: str = "",
) -> Element:
    """Return a chart. show: formats a value; unit: of the scale, which ends at 1 with "%"."""
    highest = max((span.value for line in lines for span in line.spans), default=0)
    percent = unit == "%"
    top = 1.0 if percent else _round_up(highest)
    legend = [
        element(
            "span",
            _legend(line, show),
            class_=f"legend line{n}" if len(lines) > 1 else "legend",
            title=line.hint,
        )
        for n, line in enumerate(lines)
    ]
    description = ", ".join([_legend(line, show) for line in lines])
    svg = element(
        "svg",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title} over the last {_ago(times.seconds)}: {description}, "
        f"at most {show(highest)}",
    )
    for y in (0, _HEIGHT // 2, _HEIGHT):
        svg.append(element("path", class_="grid", d=f"M0 {y}H{_WIDTH}"))
    for n, line in enumerate(lines):
        if len(lines) == 1:
            area = _path(line, times, top, closed=True)
            svg.append(element("path", class_="area", d=area))
        svg.append(element("path", class_=f"line line{n}", d=_path(line, times, top)))
    svg.extend(_tooltips(lines, times, show))
    marks = [
        f"{value:.0%}"
        if percent
        else decimal(value, unit).replace(".0 ", " ").replace(" /", "/").strip()
        for value in (top, top / 2, 0)
    ]
    axis = (f"{_ago(times.seconds)} ago", _ago(times.seconds / 2), "now")
    hours = [element("span", text) for text in axis]
    return element(
        "figure",
        element("figcaption", element("h2", title), *legend),
        element("div", *[element("span", mark) for mark in marks], class_="scale"),
        element("div", svg, class_="plot"),
        element("div", *hours, class_="hours"),
        class_="card",
    )


def length(seconds: float) -> float:
    """Return the length in seconds of the time axis for a history of some seconds."""
    return next((long for long in _LENGTHS if long >= seconds), _LENGTHS[-1])


def _legend(line: Line, show: Callable[[float], str]) -> str:
    """Return the name of a line and its present value."""
    return f"{line.name} {'unknown' if line.present is None else show(line.present)}".strip()


def _ago(seconds: float) -> str:
    if seconds >= 3600:  # no chart spans more than an hour
        return "1 h"
    return f"{seconds / 60:.0f} min" if seconds > 60 else f"{seconds:.0f} s"


def _path(line: Line, times: Times, top: float, *, closed: bool = False) -> str:
    """Return the data of an SVG path in steps. A closed path is an area above 0."""
    start = times.now - times.seconds
    steps = []
    x_before, y_before = "", ""
    for began, ended, value in line.spans:
        left, right = (f"{_WIDTH * max(0, t - start) / times.seconds:.1f}" for t in (began, ended))
        y = f"{_HEIGHT * (1 - min(1, value / top)):.1f}"
        if left == x_before:
            steps.append(f"V{y}" if y != y_before else "")
        else:
            steps.append(f"V{_HEIGHT}Z" if closed and steps else "")
            steps.append(f"M{left} {_HEIGHT}V{y}" if closed else f"M{left} {y}")
        steps.append(f"H{right}")
        x_before, y_before = right, y
    return "".join(steps) + (f"V{_HEIGHT}Z" if closed and steps else "")


def _tooltips(lines: Sequence[Line], times: Times, show: Callable[[float], str]) -> list[Element]:
    """Return a rectangle for each slice, with its time and maxima as a tooltip."""
    start, length = times.now - times.seconds, times.seconds / _SLICES
    found: list[dict[int, float]] = [{} for _ in range(_SLICES)]
    for n, line in enumerate(lines):
        for began, ended, value in line.spans:
            first = max(0, int((began - start) / length))
            last = min(_SLICES - 1, int((ended - start) / length))
            for part in found[first : last + 1]:
                part[n] = max(part.get(n, 0.0), value)
    made = []
    for at, values in enumerate(found):
        if values:
            began = times.clock - times.seconds + at * length
            when = time.strftime("%H:%M:%S", time.localtime(began))
            texts = [f"{lines[n].name} {show(value)}".strip() for n, value in values.items()]
            title = element("title", f"{when}  {', '.join(texts)}")
            x, width = _WIDTH * at // _SLICES, _WIDTH // _SLICES
            sizes = {"x": str(x), "width": str(width), "height": str(_HEIGHT)}
            made.append(element("rect", title, class_="slice", **sizes))
    return made


def _round_up(value: float) -> float:
    """Return the next round number whose half is round, too."""
    if value <= 2:
        return 2.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 6, 10) if power * step >= value)
