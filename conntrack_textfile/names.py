"""Limits of the names of networks, hosts and ports: label values of every series."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_NAME = 255  # bytes
_MAX_NAMES = 1 << 22  # bytes, of all distinct names


def checked(name: str) -> str:
    """Return the name. Raises ValueError if it is longer than 255 bytes in UTF-8."""
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(f"the name {name[:20]}... is longer than {_MAX_NAME} bytes")
    return name


def check_all(names: Iterable[str]) -> None:
    """Raise ValueError if the distinct names are together longer than 4 MiB."""
    if sum(len(name.encode()) for name in set(names)) > _MAX_NAMES:
        raise ValueError(f"the names are together longer than {_MAX_NAMES >> 20} MiB")
