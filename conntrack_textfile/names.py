"""Bounds of the names that users give to networks and ports: each may be in every series."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_NAME = 255  # bytes
_MAX_NAMES = 1 << 22  # bytes, of all different ones


def checked(name: str) -> str:
    """A name that a user gives, which every series may have. Raises ValueError."""
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(f"the name {name[:20]}... is longer than {_MAX_NAME} bytes")
    return name


def check_all(names: Iterable[str]) -> None:
    """Raise ValueError where the names of a file are more than we keep in memory."""
    if sum(len(name.encode()) for name in set(names)) > _MAX_NAMES:
        raise ValueError(f"the names are together longer than {_MAX_NAMES >> 20} MiB")
