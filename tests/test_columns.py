from __future__ import annotations

import pytest

from conntrack_textfile.columns import cut, cut_address, left, printable, right, width


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("äöü", 3),
        ("a\u0308", 1),  # a letter and a diaeresis that is put over it
        ("路由器", 6),
        ("\uff48", 2),
        ("한국", 4),
        ("…", 1),
        ("\u200b", 0),
        ("a\ufe0f", 1),
    ],
)
def test_the_width_is_that_of_wcwidth(text: str, columns: int) -> None:
    assert width(text) == columns


def test_text_is_aligned_by_its_width() -> None:
    assert left("路由", 6) == "路由  "
    assert right("路由", 6) == "  路由"
    assert left("too wide", 3) == "too wide"


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("路由器", 5, "路由…"),
        ("路由器", 4, "路…"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_text_is_cut_at_its_end(text: str, room: int, shown: str) -> None:
    assert cut(text, room) == shown


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("2001:db8::1", 11, "2001:db8::1"),
        ("2001:db8:1:2:3:4:5:8a2e", 22, "2001:db8:1:…:4:5:8a2e"),
        ("2001:db8:1:2:3:4:5:8a2e", 15, "2001:db8:…:8a2e"),
        ("2001:db8:1:2:3:4:5:8a2e", 8, "…:5:8a2e"),
        ("2001:db8:1111:2222:3333:4444:5555:8a2e", 8, "…:8a2e"),
        ("2001:db8:1111:2222:3333:4444:5555:8a2e", 16, "2001:…:5555:8a2e"),
        ("2001:db8::8a2e:7334", 18, "2001:…::8a2e:7334"),
        ("198.151.100.200", 14, "198.….100.200"),
        ("198.151.100.200", 8, "….200"),
        # Never the beginning alone, though more of it would fit.
        ("192.168.10.11", 10, "192.….11"),
        ("2001:db8:1111:2222:3333:4444:5555:8a2e", 10, "…:8a2e"),
        # A network has its beginning.
        ("2001:db8:1111:2222::/64", 20, "2001:db8:1111:…::/64"),
        ("198.151.100.0/24", 14, "198.151.….0/24"),
        # Of a name both ends.
        ("printers of the second floor", 11, "print…floor"),
        ("laptop.example.org", 10, "lapto….org"),
        ("路由器路由器", 8, "路由…器"),
        ("fe80::1", 3, "…:1"),
        ("fe80::8a2e", 5, "…"),
        ("fe80::1", 0, ""),
    ],
)
def test_an_address_is_cut_in_its_middle_between_numbers(text: str, room: int, shown: str) -> None:
    assert cut_address(text, room) == shown
    assert width(shown) <= room


def test_what_moves_the_cursor_is_made_printable() -> None:
    assert printable("größe") == "größe"
    assert printable("a\x1b[2J") == "'a\\x1b[2J'"
    assert printable("a\u202eb") == "'a\\u202eb'"
