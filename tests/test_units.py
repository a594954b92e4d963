from __future__ import annotations

import pytest

from conntrack_textfile.units import binary


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
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
def test_bytes_are_told_in_units(number: float, text: str) -> None:
    assert binary(number) == text
