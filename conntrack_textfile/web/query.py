"""The query string of the page: which numbers, their order, and label matchers."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.labels import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Collection

# Numbers of the rankings: rates of the last interval, sums of the last hour, live connections.
BY = ("rate", "hour", "live")

_MAX_VALUE = 256  # bytes; labels are shorter


class QueryError(ValueError):
    """An invalid query. Its text is for the user."""


class Query(NamedTuple):
    """A view of the page."""

    by: str = ""  # of BY; "" for the first that is available
    sort: str = "bytes"  # of MEASURES
    matchers: tuple[tuple[str, str], ...] = ()  # labels and their values

    def link(self) -> str:
        """Return the relative URL of this view."""
        parameters = [("by", self.by)] if self.by else []
        if self.sort != Query().sort:
            parameters.append(("sort", self.sort))
        return "?" + urllib.parse.urlencode([*parameters, *self.matchers])

    def at(self, label: str, value: str) -> Query:
        """Return the query with a matcher added."""
        return self._replace(matchers=(*self.without(label).matchers, (label, value)))

    def without(self, label: str) -> Query:
        """Return the query without the matcher of a label."""
        return self._replace(matchers=tuple([pair for pair in self.matchers if pair[0] != label]))


def parse(text: str, kept: Collection[str]) -> Query:
    """Parse a query string (application/x-www-form-urlencoded).

    kept: labels of the rankings. Raises QueryError, whose text quotes nothing of the query.
    """
    try:
        pairs = urllib.parse.parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict"
        )
    except ValueError:  # also invalid UTF-8
        raise QueryError("the query is not of the form name=value&name=value in UTF-8") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("by", "sort") and name not in BY_NAME:
            raise QueryError(f"an unknown name in the query: use by, sort, {', '.join(kept)}")
        if name in given:
            raise QueryError(f"{name} is given twice in the query")
        if len(value.encode()) > _MAX_VALUE:
            raise QueryError(f"{name} in the query is longer than {_MAX_VALUE} bytes")
        given[name] = value
    for name, known in (("by", BY), ("sort", MEASURES)):
        if name in given and given[name] not in known:
            raise QueryError(f"{name} in the query is one of {', '.join(known)}")
    by, sort = given.pop("by", Query().by), given.pop("sort", Query().sort)
    for name in given:
        if name not in kept:
            raise QueryError(f"{name} is not among the labels of --aggregate.by")
    return Query(by, sort, tuple(given.items()))
