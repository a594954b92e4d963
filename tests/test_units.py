from __future__ import annotations

import pytest

from conntrack_textfile.units import binary, decimal, per_second, percent


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (0.4, "<1 B"),
        (0.6, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102297, "99.9 KiB"),
        (102400, "100 KiB"),
        (1048524, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 60, "5.0 EiB"),
        (1 << 74, "16384 EiB"),
        (1234.5, "1.2 KiB"),
    ],
)
def test_bytes_have_binary_prefixes(number: float, text: str) -> None:
    assert binary(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bit/s"),
        (0.4, "<1 bit/s"),
        (999, "999 bit/s"),
        (1000, "1.0 kbit/s"),
        (99949, "99.9 kbit/s"),
        (99950, "100 kbit/s"),
        (999499, "999 kbit/s"),
        (999500, "1.0 Mbit/s"),
        (45.3e6, "45.3 Mbit/s"),
        (10**15 - 1, "1.0 Pbit/s"),
        (1e24, "1000000 Ebit/s"),
    ],
)
def test_rates_have_decimal_prefixes(number: float, text: str) -> None:
    assert decimal(number, "bit/s") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0/s"),
        (0.004, "<0.01/s"),
        (0.006, "0.01/s"),
        (0.25, "0.25/s"),
        (9.994, "9.99/s"),
        (9.996, "10.0/s"),
        (99.96, "100/s"),
        (1234.5, "1,234/s"),
    ],
)
def test_rates_per_second(number: float, text: str) -> None:
    assert per_second(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0%"), (1 / 64512, "<0.1%"), (0.0006, "0.1%"), (0.5, "50.0%"), (1, "100.0%")],
)
def test_shares_are_in_percent(share: float, text: str) -> None:
    assert percent(share) == text
