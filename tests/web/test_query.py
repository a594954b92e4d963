from __future__ import annotations

import random

import pytest

from conntrack_textfile.labels import DEFAULT
from conntrack_textfile.web.query import Query, QueryError, parse

HOSTILE = '"><script>alert(1)</script>&by=live#?%00+é\u202e🙂'


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Query()),
        ("by=hour", Query("hour")),
        ("sort=packets&by=live", Query("live", "packets")),
        ("src=10.0.0.1&dst=fd77:1::1", Query(matchers=(("src", "10.0.0.1"), ("dst", "fd77:1::1")))),
        ("src=fd77%3A1%3A%3A1", Query(matchers=(("src", "fd77:1::1"),))),
        ("src=a+b%2Bc", Query(matchers=(("src", "a b+c"),))),
        ("src=", Query(matchers=(("src", ""),))),
        ("%73rc=x", Query(matchers=(("src", "x"),))),
        ("src=" + "x" * 256, Query(matchers=(("src", "x" * 256),))),
    ],
)
def test_a_query_is_read(text: str, query: Query) -> None:
    assert parse(text, DEFAULT) == query


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("page=1", "an unknown name in the query: use by, sort, src, dst"),
        ("BY=rate", "an unknown name"),
        ("=x", "an unknown name"),
        ("<script>=x", "an unknown name"),
        ("by=", "by in the query is one of rate, hour, live"),
        ("by=day", "by in the query is one of"),
        ("by=rate%20", "by in the query is one of"),
        ("sort=size", "sort in the query is one of bytes, packets, connections"),
        ("by=rate&by=rate", "by is given twice"),
        ("src=a&src=b", "src is given twice"),
        ("zone=1", "zone is not among the labels of --aggregate.by"),
        ("src=" + "x" * 257, "src in the query is longer than 256 bytes"),
        ("src=" + "%C3%A9" * 129, "src in the query is longer than 256 bytes"),
        ("by=" + "x" * 10240, "by in the query is longer"),
        ("x" * 10240, "the query is not of the form"),
        ("by", "the query is not of the form"),
        ("by=rate&", "the query is not of the form"),
        ("src=%FF", "the query is not of the form"),
        ("src=%ED%A0%80", "the query is not of the form"),
        ("src=%C0%AE", "the query is not of the form"),
    ],
)
def test_another_query_is_refused_in_words_of_ours(text: str, complaint: str) -> None:
    with pytest.raises(QueryError, match=complaint) as error:
        parse(text, DEFAULT)
    assert "\n" not in str(error.value)
    assert "<" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_link_leads_to_its_view() -> None:
    for query in (
        Query(),
        Query("hour", "connections"),
        Query("rate").at("src", HOSTILE),
        Query("live", "packets").at("src", "a b").at("dst", ""),
    ):
        link = query.link()
        assert link[0] == "?"
        assert link.isascii()
        assert not set(link) & set("<>\"' #")
        assert parse(link[1:], DEFAULT) == query
    assert Query().at("src", "a").at("src", "b").matchers == (("src", "b"),)
    assert Query().at("src", "a").at("dst", "b").without("src").matchers == (("dst", "b"),)


def test_whatever_comes_is_a_view_or_refused() -> None:
    rand = random.Random(5)
    parts = ["by", "sort", "src", "=", "&", "rate", "hour", "%", "%C3", "%A9", "+", ";", "x", "%26"]
    views = 0
    for _ in range(5000):
        text = "".join(rand.choice(parts) for _ in range(rand.randrange(9)))
        try:
            query = parse(text, DEFAULT)
        except QueryError:
            continue
        views += 1
        assert parse(query.link()[1:], DEFAULT) == query
    assert views > 50
