"""The files of names: read into the plan, and again when one changes or a name expires."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from conntrack_textfile import networks, services
from conntrack_textfile.errors import UsageError
from conntrack_textfile.files import regular

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.plan import NameFiles, Plan
    from conntrack_textfile.reload import Reloader

_MAX_FILE_SIZE = 1 << 24  # characters
_MAX_REASON_SIZE = 300  # characters

_Parsed = TypeVar("_Parsed")


def read(files: NameFiles, plan: Plan) -> tuple[Plan, float]:
    """Return the plan with the names of the files, and the Unix time at which the first expires.

    Raises UsageError.
    """
    until = float("inf")
    if files.networks:
        named = _parsed("--networks.file", files.networks, networks.parse_names)
        plan = plan._replace(networks=named)
    if files.services:
        ports = _parsed("--services.file", files.services, services.parse_services)
        plan = plan._replace(services=ports)
    if files.hosts:
        # Imported here: most runs have no such file.
        from conntrack_textfile import hosts

        try:
            found = hosts.read(files.hosts, time.time())
        except OSError as error:
            reason = f"cannot read {error.filename}: {error.strerror}"
            raise UsageError(f"--hosts.file: {reason}") from None
        except ValueError as error:
            raise UsageError(f"--hosts.file: {_short(error)}") from None
        plan = plan._replace(hosts=hosts.labels(found.names, plan.networks))
        until = found.until
    return plan, until


def watch(files: NameFiles, plan: Plan, until: float) -> Reloader[Plan]:
    """Return a reloader of the plan. plan, until: as read() returned them."""
    # Imported here: write reads the files once.
    from conntrack_textfile import hosts
    from conntrack_textfile.reload import Reloader, Stamps, stamp

    single = [file for file in (files.networks, files.services) if file]
    stamped = [*single, *(other for file in files.hosts for other in hosts.watched(file))]

    def reread(before: Plan | None) -> tuple[Plan, Stamps]:
        nonlocal until
        stamps = {file: stamp(file) for file in stamped}
        if before is None:
            return plan, stamps
        latest, until = read(files, plan)
        # The renewal of a lease changes the file but no name.
        return before if latest == before else latest, stamps

    return Reloader(" and ".join([*single, *files.hosts]), reread, lambda: time.time() >= until)


def _parsed(option: str, path: str, parse: Callable[[str], _Parsed]) -> _Parsed:
    """Read and parse a text file in UTF-8. Raises UsageError."""
    try:
        with open(path, encoding="utf-8-sig", opener=regular) as file:
            text = file.read(_MAX_FILE_SIZE + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(f"{option}: cannot read {path}: {reason}") from None
    if len(text) > _MAX_FILE_SIZE:
        raise UsageError(f"{option}: {path} is too large, over {_MAX_FILE_SIZE >> 20} MiB")
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {path}, {_short(error)}") from None


def _short(error: ValueError) -> str:
    """Return the message of an error, truncated: it may quote a file."""
    reason = str(error)
    return reason if len(reason) <= _MAX_REASON_SIZE else f"{reason[:_MAX_REASON_SIZE]}..."
