from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from conntrack_textfile.web.chart import Line, Span, Times, _round_up, draw, length

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NOON = 1700000000.0
TIMES = Times(now=10000.0, clock=NOON, seconds=3600)


def text(figure: Element) -> str:
    return ET.tostring(figure, "unicode", "html")


def paths(figure: Element) -> list[str]:
    return [p.get("d", "") for p in figure.iter("path") if "line" in (p.get("class") or "")]


def show(value: float) -> str:
    return f"{value:.0f} u"


def test_values_are_steps_over_the_hour_under_a_scale() -> None:
    spans = [Span(6400, 8200, 50), Span(8200, 9100, 100), Span(9100, 10000, 0)]
    figure = draw("Title", [Line("", "", spans, 0.0)], TIMES, show, "u")
    assert paths(figure) == ["M0.0 50.0H300.0V0.0H450.0V100.0H600.0"]
    assert [span.text for span in figure.iterfind("div[@class='scale']/span")] == [
        *("100 u", "50 u", "0 u")
    ]
    (svg,) = figure.iter("svg")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "Title over the last 1 h: 0 u, at most 100 u"


def test_a_gap_is_a_gap() -> None:
    spans = [Span(6000, 7000, 10), Span(8200, 10000, 10)]
    figure = draw("Title", [Line("", "", spans)], TIMES, show)
    assert paths(figure) == ["M0.0 0.0H100.0M300.0 0.0H600.0"]
    (area,) = [p.get("d") for p in figure.iter("path") if p.get("class") == "area"]
    assert area == "M0.0 100V0.0H100.0V100ZM300.0 100V0.0H600.0V100Z"


def test_tooltips_say_the_time_and_the_highest_values() -> None:
    lines = [
        Line("sent", "hint", [Span(6400, 6430, 3), Span(6430, 6460, 9)]),
        Line("reply", "", [Span(9990, 10000, 4)], 3),
    ]
    figure = draw("Title", lines, TIMES, show)
    titles = [title.text or "" for title in figure.iter("title")]
    when = time.strftime("%H:%M:%S", time.localtime(NOON - 3600))
    assert titles[0] == f"{when}  sent 9 u"
    assert titles[-1].endswith("reply 4 u")
    assert len(titles) == 3
    assert [s.text for s in figure.iterfind("figcaption/span")] == ["sent unknown", "reply 3 u"]


def test_the_axis_begins_with_what_there_is() -> None:
    for seconds, axis in (
        (3600, ["1 h ago", "30 min", "now"]),
        (600, ["10 min ago", "5 min", "now"]),
        (120, ["2 min ago", "60 s", "now"]),
    ):
        spans = [Span(10000 - seconds, 10000, 5)]
        figure = draw("Title", [Line("", "", spans)], TIMES._replace(seconds=seconds), show)
        assert paths(figure) == ["M0.0 16.7H600.0"]
        assert [span.text for span in figure.iterfind("div[@class='hours']/span")] == axis


def test_without_values_it_says_that_they_are_unknown() -> None:
    figure = draw("Title", [Line("", "", [])], TIMES, show)
    assert "Title over the last 1 h: unknown" in text(figure)
    assert paths(figure) == [""]


@pytest.mark.parametrize(
    ("unit", "value", "top"),
    [
        ("", 0, "2"),
        ("", 3, "4"),
        ("", 1234, "2 k"),
        ("/s", 41, "60/s"),
        ("bit/s", 1.1e6, "2 Mbit/s"),
        ("bit/s", 999_999_999_999_999, "1 Pbit/s"),
        ("%", 0.2, "100%"),
    ],
)
def test_the_scale_ends_at_a_round_number(unit: str, value: float, top: str) -> None:
    figure = draw("Title", [Line("", "", [Span(9900, 10000, value)])], TIMES, show, unit)
    assert figure.iterfind("div[@class='scale']/span").__next__().text == top


def test_every_value_is_under_the_top() -> None:
    for exponent in range(-3, 30):
        for digit in (1.0, 1.00001, 1.9999, 2, 3.7, 5, 6.1, 9.9999):
            value = digit * 10.0**exponent
            assert value <= _round_up(value) <= max(2, 2 * value)


def test_a_chart_is_of_bounded_size() -> None:
    spans = [Span(6400 + 5 * n, 6405 + 5 * n, n % 97 + 0.123) for n in range(720)]
    figure = draw("Title", [Line("", "", spans)], TIMES, show)
    assert len(text(figure)) < 40000
    assert not re.search(r"style=|<script", text(figure))


@pytest.mark.parametrize(
    ("seconds", "axis"),
    [
        (0, ["60 s ago", "30 s", "now"]),
        (61, ["2 min ago", "60 s", "now"]),
        (166, ["4 min ago", "2 min", "now"]),
        (1201, ["30 min ago", "15 min", "now"]),
        (2401, ["1 h ago", "30 min", "now"]),
        (3605, ["1 h ago", "30 min", "now"]),
    ],
)
def test_the_time_axis_has_whole_numbers(seconds: float, axis: list[str]) -> None:
    figure = draw("Title", [], TIMES._replace(seconds=length(seconds)), show)
    assert [span.text for span in figure.iterfind("div[@class='hours']/span")] == axis
