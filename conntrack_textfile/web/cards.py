"""Cards: tables of names, numbers and bars, which are lists where a card is narrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.web.markup import element

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

# Widths of a card in rem from which page.css shows a table (classes from26, from29, ...).
_WIDTHS = (26, 29, 32, 34, 42, 54, 70, 90, 120)
# Characters after which the name is wrapped, in rows with one name.
_NAME_WIDTH = 16


class Number(NamedTuple):
    """A cell with a number."""

    head: str  # of its column
    text: str
    exact: str  # tooltip of the cell
    hint: str  # tooltip of the head


class Row(NamedTuple):
    """A row of a card."""

    names: Sequence[str]
    cells: list[Element]  # one for each name
    numbers: list[Number]
    bar: Element


def card(title: str, labels: Sequence[str], rows: list[Row], *, wide: bool) -> Element:
    """Return a card with a ranking. labels: heads of the names; wide: as wide as the page."""
    heads = [element("th", name, scope="col") for name in labels]
    heads += [
        element("th", number.head, scope="col", class_="n", title=number.hint)
        for number in rows[0].numbers
    ]
    widths = [len(head.text or "") for head in heads]
    longest = _NAME_WIDTH if len(labels) == 1 else None
    wraps = longest is not None and any(len(row.names[0]) > longest for row in rows)
    body = []
    for row in rows:
        cells = [
            element("td", element("span", f"{head} ", class_="u"), text, class_="n", title=exact)
            for head, text, exact, _ in row.numbers
        ]
        body.append(element("tr", *row.cells, *cells, element("td", row.bar, class_="bar")))
        texts = [*[name[:longest] for name in row.names], *[number.text for number in row.numbers]]
        widths = [max(width, len(text)) for width, text in zip(widths, texts, strict=True)]
    room = _room(sum(widths), len(heads) + 1)
    head = element("thead", element("tr", *heads, element("th")))
    return element(
        "section",
        element("h2", title),
        element("table", head, element("tbody", *body)),
        class_=f"card ranking from{room}" + " wide" * wide + " wraps" * wraps,
    )


def _room(characters: int, columns: int) -> int:
    """Return the first of _WIDTHS with room for the longest text of each column, 0 for none."""
    needed = characters * 0.53 + columns * 0.6 + 4
    return next((width for width in _WIDTHS if width >= needed), 0)


def bar_card(title: str, rows: Sequence[tuple[Element | str, str, int]]) -> Element:
    """Return a card with a name, a text and a bar for each row, the largest first."""
    most = rows[0][2]
    lines = [
        element(
            "tr",
            element("th", name, scope="row", class_="name"),
            element("td", text, class_="n"),
            element("td", bar(size, most), class_="bar"),
        )
        for name, text, size in rows
    ]
    table = element("table", element("tbody", *lines))
    return element("section", element("h2", title), table, class_="card")


def bar(part: int, whole: int) -> Element:
    """Return a bar that is filled to part / whole."""
    percent = 100 * min(1.0, part / whole) if whole else 0
    svg = element("svg", width="100%", height="8", aria_hidden="true")
    for kind, width in (("back", "100%"), ("part", f"{percent:.2f}%")):
        svg.append(element("rect", class_=kind, width=width, height="8", rx="2"))
    return svg
