"""The command check: what works on this host, what does not, and what to do about it.

Each check covers one requirement of write or serve, with the options they would get, and
changes nothing: no file is created, no setting changed. In the kernel it does briefly what
every snapshot does: it requests a dump and reads its first datagram, joins the multicast
group of DESTROY events, and binds the addresses of serve.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import namefiles, node_exporter, options, processes, state, textfile
from conntrack_textfile.errors import (
    DamagedStateError,
    EngineError,
    ListenError,
    SourceError,
    StateError,
    UsageError,
)
from conntrack_textfile.files import regular
from conntrack_textfile.kernel import events, namespace, netlink, procfs, sysctl
from conntrack_textfile.kernel.engine import make, slowness
from conntrack_textfile.kernel.source import may_be_netlink
from conntrack_textfile.plan import NameFiles
from conntrack_textfile.snapshot import some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conntrack_textfile.node_exporter import Reader
    from conntrack_textfile.options import Options
    from conntrack_textfile.values import Address

_SYSTEMD = "/run/systemd/system"  # sd_booted(3)
_SYSTEMCTL_SECONDS = 5
_HOST = "host"  # --netns of the namespace of the process
_FULL = 0.8  # as in prometheus/conntrack-alerts.yml
_OLD_SECONDS = 600  # as in prometheus/conntrack-alerts.yml

# comm of the command: TASK_COMM_LEN leaves 15 characters.
_COMM = "conntrack-textf"

_TIMER = "conntrack-textfile.timer"
_WRITER = "conntrack-textfile.service"
_WRITER_EVENTS = "conntrack-events.socket"
_EXPORTER = "conntrack-exporter.service"
_EXPORTER_SOCKET = "conntrack-exporter.socket"
_UNITS = (_TIMER, _WRITER, _WRITER_EVENTS, _EXPORTER, _EXPORTER_SOCKET)


class Result(NamedTuple):
    """The result of a check: a line of the output."""

    level: str  # ok, warn, or fail: something required does not work
    name: str  # of the check
    text: str  # the finding; after a colon, the remedy


_Found = tuple[str, str]  # level and text


class _Check(NamedTuple):
    """A check: a row of _CHECKS."""

    name: str
    run: Callable[[Options], Iterable[_Found]]
    by_namespace: bool = False  # run in each network namespace of --netns


def run(opts: Options) -> list[Result]:
    """Run all checks that apply to these options. Return their results in order."""
    results = []
    spaces = {"": ""}  # paths of the network namespaces by name
    if opts.netns:
        try:
            spaces = namespace.find(opts.netns, opts.proc_root)
            if not spaces:
                text = f"none is named in {namespace.DIRECTORY}"
                results.append(Result("ok", "netns", text))
        except SourceError as error:
            spaces = {}
            results.append(Result("fail", "netns", str(error)))
    for check in _CHECKS:
        found: dict[_Found, list[str]] = {}
        for space, path in (spaces if check.by_namespace else {"": ""}).items():
            for result in _inside(check, opts, path):
                found.setdefault(result, []).append(space)
        results += [
            Result(level, check.name, f"{some(of)}: {text}" if any(of) else text)
            for (level, text), of in found.items()
        ]
    return results


def _inside(check: _Check, opts: Options, path: str) -> list[_Found]:
    """Run a check in the network namespace at a path, "" for that of the process."""
    if path:
        # The proc file shows the namespace of the process only.
        opts = opts._replace(source="netlink", netns=(path,))
    elif opts.netns:
        opts = opts._replace(netns=(_HOST,))
    try:
        return namespace.Namespace(path).run(lambda: list(check.run(opts)))
    except Exception as error:  # noqa: BLE001  # a check that crashes must not hide the others
        if path and isinstance(error, SourceError):  # it cannot be entered: reported once
            return [("fail", str(error))] if check.run is _netns else []
        return [("warn", f"cannot be checked: {type(error).__name__}: {error}")]


def table(results: list[Result]) -> str:
    """Format results as aligned lines."""
    lines = []
    for result in results:
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in result.text)
        lines.append(f"{result.level:5} {result.name:10} {text}\n")
    return "".join(lines)


def _engine(opts: Options) -> Iterator[_Found]:
    try:
        engine = make(opts.plan)
    except EngineError as error:
        yield "fail", str(error)
        return
    python = sys.version.partition(" ")[0]
    slow = slowness(engine, sysctl.read(opts.proc_root).entries)
    yield "warn" if slow else "ok", slow or f"{engine.name}, Python {python}"


def _module(opts: Options) -> Iterator[_Found]:
    if sysctl.number(opts.proc_root, "nf_conntrack_max") is not None:
        yield "ok", "nf_conntrack is loaded"
    elif "nf_conntrack" in _loaded(opts.proc_root):
        text = (
            "nf_conntrack is loaded, but its settings are not visible under "
            f"{opts.proc_root}/sys/net/netfilter"
        )
        yield "warn", text
    elif not os.path.isdir(os.path.join(opts.proc_root, "sys/net")):
        yield (
            "warn",
            f"there is no {opts.proc_root}/sys/net: is nf_conntrack loaded?",
        )
    else:
        text = (
            "nf_conntrack is not loaded: modprobe nf_conntrack, and at boot with a file in "
            "/etc/modules-load.d"
        )
        yield "fail", text


def _loaded(proc_root: str) -> set[str]:
    """Return the names of the loaded modules, without those built into the kernel."""
    path = os.path.join(proc_root, "modules")
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, opener=regular) as file:
        return {line.split()[0] for line in file if line.strip()}
    return set()


def _accounting(opts: Options) -> Iterator[_Found]:
    yield _setting(opts, "nf_conntrack_acct", "packets and bytes are counted", "are not counted")


def _timestamps(opts: Options) -> Iterator[_Found]:
    if "traffic" in opts.families:
        yield _setting(
            opts,
            "nf_conntrack_timestamp",
            "connections have a start time",
            "a connection that is repeated within seconds can be mistaken for the previous one",
        )


def _setting(opts: Options, name: str, on: str, off: str) -> _Found:
    """Return the result for a boolean sysctl."""
    value = sysctl.number(opts.proc_root, name)
    if value is None:
        return "warn", f"net.netfilter.{name} cannot be read"
    if value:
        return "ok", on
    what = "packets and bytes " if name == "nf_conntrack_acct" else ""
    return "warn", f"{what}{off}: {_remedy(opts, name, 1)}"


def _remedy(opts: Options, name: str, value: int) -> str:
    """Return the command that sets a sysctl, in the network namespace that opts name."""
    command = f"sysctl -w net.netfilter.{name}={value}"
    if opts.netns in ((), (_HOST,)):
        return f"{command}, and in /etc/sysctl.d"
    # Without a name or a path: the text is one for all such namespaces.
    return f"{command} in that namespace (ip netns exec, or nsenter --net)"


def _source(opts: Options) -> Iterator[_Found]:
    who = f"user {os.geteuid()}" if os.geteuid() else "root"
    refused = ""
    if may_be_netlink(opts.source, opts.proc_root):
        refused = _dump(opts)
        if not refused:
            yield "ok", f"netlink: {who} may dump the table"
            return
        if opts.source == "netlink":
            yield "fail", refused
            return
    path = procfs.path_of(opts.proc_root)
    try:
        next(procfs.blocks(path), None)
    except OSError as error:
        if isinstance(error, PermissionError):
            why = f"no permission to read {path}: run as root or with CAP_DAC_READ_SEARCH"
        else:
            why = f"cannot read {path}: {error.strerror}"
        yield "fail", "; and ".join(filter(None, [refused, why]))
        return
    if refused:
        yield "warn", f"{refused}. {path} is read instead, which gives no counters of traffic"
    else:
        yield "ok", f"procfs: {who} may read {path}"


def _dump(opts: Options) -> str:
    """Return why a netlink dump fails, "" if it works."""
    try:
        with netlink.dump() as sock:
            make(opts.plan._replace(networks=(), services={})).netlink(None).feed(
                netlink.datagram(sock)
            )
    except PermissionError:
        return "no permission to dump the table by netlink: run as root or with CAP_NET_ADMIN"
    except InterruptedError:
        return ""  # NLM_F_DUMP_INTR: permitted, and retried by a snapshot
    except OSError as error:
        return f"cannot dump the table by netlink: {error.strerror or 'the kernel is silent'}"
    return ""


def _events(opts: Options) -> Iterator[_Found]:
    if "traffic" not in opts.families:
        return
    if not may_be_netlink(opts.source, opts.proc_root):
        yield "warn", "the proc file gives no counters of traffic: --collector.source=netlink does"
        return
    if sysctl.number(opts.proc_root, "nf_conntrack_events") == 0:
        remedy = _remedy(opts, "nf_conntrack_events", 2)
        yield "warn", f"the kernel sends no events of ended connections: {remedy}"
        return
    others = None
    with contextlib.suppress(OSError):  # without /proc
        others = events.listeners()
    try:
        with events.listen(opts.event_buffer) as sock:
            size = events.buffer(sock).size
    except OSError as error:
        text = (
            f"no events of ended connections ({error.strerror}), so counters come from dumps "
            "only: run as root or with CAP_NET_ADMIN"
        )
        yield "warn", text
        return
    beside = ""
    if others is not None:
        holders = processes.holders(opts.proc_root, others)
        beside = f"; other listeners: {', '.join(holders)}" if others else "; no other listener"
    yield "ok", f"ended connections are reported, with a buffer of {size} bytes{beside}"
    if opts.state_file and others == []:
        text = (
            "no socket holds events between two runs of write: start conntrack-events.socket, or "
            "use serve"
        )
        yield "warn", text


def _table(opts: Options) -> Iterator[_Found]:
    found = sysctl.read(opts.proc_root)
    if found.entries is None or not found.entries_limit:
        yield "warn", "its size cannot be read: conntrack_entries will be absent"
        return
    share = found.entries / found.entries_limit
    text = f"{found.entries} of {found.entries_limit} entries ({share:.0%})"
    if share > _FULL:
        yield "warn", f"{text}: raise net.netfilter.nf_conntrack_max before it is full"
    elif not found.entries:
        text = (
            f"{text}: no NAT and no rule with ct state enables tracking in this network namespace"
        )
        yield "warn", text
    else:
        yield "ok", text


def _netns(opts: Options) -> Iterator[_Found]:
    if opts.netns:
        yield "ok", "can be entered"


def _web(opts: Options) -> Iterator[_Found]:
    if not opts.web_config:
        return
    try:
        # Imported here: bcrypt and PyYAML may be missing.
        from conntrack_textfile.web import config

        settings = config.load(opts.web_config)
    except UsageError as error:
        yield "fail", str(error)
        return
    tls = "TLS" if settings.tls else "no TLS"
    users = f"passwords of {len(settings.passwords.users)}" if settings.passwords else "no"
    guarded = settings.tls or settings.passwords
    text = f"{opts.web_config}: {tls}, {users}{'' if settings.passwords else ' passwords'}"
    yield "ok" if guarded else "warn", text


def _listen(opts: Options) -> Iterator[_Found]:
    if opts.file and not opts.listen:
        return  # write has no addresses
    for address in opts.listen or (options.DEFAULT_ADDRESS,):
        yield _bound(opts, address)


def _bound(opts: Options, address: Address) -> _Found:
    """Check that serve can bind an address. It is a failure only if the user gave the address."""
    # Imported here: write does not need it.
    from conntrack_textfile.web import sockets

    level = "fail" if opts.listen else "warn"
    try:
        # Without listen(2): a serve that starts at this moment can still bind it.
        sockets.bind(address).close()
    except ListenError as error:
        number = getattr(error.__cause__, "errno", 0)
        if number == errno.EADDRINUSE:
            return _in_use(opts, address, level, str(error))
        if number == errno.EACCES:
            what = "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
            return level, f"{error}: {what} or root"
        if number == errno.EADDRNOTAVAIL:
            return level, f"{error}: no interface of this host has it"
        return level, str(error)
    return "ok", f"serve can listen on {address}"


def _in_use(opts: Options, address: Address, level: str, error: str) -> _Found:
    """Return the result for an address in use, which is no fault if serve uses it."""
    inodes = processes.listening(opts.proc_root, address.port)
    holders = processes.holders(opts.proc_root, inodes)
    if any(name.startswith(_COMM) for name in holders):
        return "ok", f"{', '.join(holders)} listens on {address}"
    if any(name.endswith(" (pid 1)") for name in holders) and (
        opts.systemd_socket or not opts.listen
    ):
        return "ok", f"a socket unit of systemd listens on {address}"
    by = f" by {', '.join(holders)}" if holders else ""
    return level, f"{error}{by}: set another --web.listen-address"


def _names(opts: Options) -> Iterator[_Found]:
    # One file at a time: each that is wrong is reported.
    files = opts.names
    alone = [
        *([NameFiles(networks=files.networks)] if files.networks else []),
        *[NameFiles(hosts=(file,)) for file in files.hosts],
        *([NameFiles(services=files.services)] if files.services else []),
    ]
    wrong = []
    for one in alone:
        try:
            namefiles.read(one, opts.plan)
        except UsageError as error:  # noqa: PERF203
            wrong.append(str(error))
    yield from [("fail", why) for why in wrong]
    if alone and not wrong:
        yield "ok", "the files are valid"


def _textfile(opts: Options) -> Iterator[_Found]:
    if opts.file == "-":
        return
    reader = node_exporter.find(opts.proc_root)
    if opts.file:
        yield from _written(opts)
        yield from _read(opts, reader)
        return
    directory = reader.directory if reader else node_exporter.DEBIAN
    if not os.path.isdir(directory):
        yield "warn", f"there is no {directory}, the directory of node_exporter: name FILE"
    elif why := node_exporter.unreadable(directory, reader):
        yield "fail", why
    else:
        yield "ok", f"node_exporter can read {directory}"


def _written(opts: Options) -> Iterator[_Found]:
    """Check that FILE can be written and was written recently."""
    if not opts.file.endswith(".prom"):
        yield "warn", textfile.NOT_READ.format(opts.file)
    file = os.path.realpath(opts.file)
    directory = os.path.dirname(file)
    if why := _unwritable(directory):
        yield "fail", why
    elif os.path.exists(file) and not os.path.isfile(file):
        yield "fail", f"{file} is not a regular file"
    with contextlib.suppress(OSError):
        age = time.time() - os.stat(file).st_mtime
        if age > _OLD_SECONDS:
            yield "warn", f"{opts.file} was written {age / 60:.0f} minutes ago"


def _unwritable(directory: str) -> str:
    """Return why this user cannot make files in a directory, "" if it can."""
    if not os.path.isdir(directory):
        return f"there is no directory {directory}"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"this user may not write in {directory}"
    return ""


def _read(opts: Options, reader: Reader | None) -> Iterator[_Found]:
    """Check that node_exporter can read FILE and reads its directory."""
    file = os.path.realpath(opts.file)
    directory = os.path.dirname(file)
    if not os.path.isdir(directory):
        return
    elsewhere = reader is not None and os.path.realpath(reader.directory) != directory
    if why := node_exporter.unreadable(directory, reader, listed=not elsewhere) or _hidden(
        opts, reader
    ):
        yield "fail", why
    elif reader and elsewhere and not node_exporter.shows(file, reader.directory):
        text = (
            f"node_exporter (pid {reader.pid}) reads {reader.directory}, but {file} is not "
            f"there: ln -s {file} {reader.directory}/"
        )
        yield "warn", text
    elif opts.file.endswith(".prom"):
        yield "ok", f"node_exporter can read {opts.file}"


def _hidden(opts: Options, reader: Reader | None) -> str:
    """Return why the user of node_exporter cannot read FILE, "" if it can."""
    try:
        group = os.stat(opts.file).st_gid
    except OSError:
        group = os.getegid()
    group = group if opts.file_group is None else opts.file_group
    if opts.file_mode & stat.S_IROTH or reader is None:
        others = opts.file_mode & (stat.S_IROTH | stat.S_IRGRP)
        return "" if others else f"--file.mode={opts.file_mode:04o} hides FILE from node_exporter"
    if reader.uid == 0 or (group in reader.groups and opts.file_mode & stat.S_IRGRP):
        return ""
    return (
        f"--file.mode={opts.file_mode:04o} hides {opts.file} from node_exporter (user "
        f"{reader.uid}): set --file.group to one of its groups"
    )


def _state(opts: Options) -> Iterator[_Found]:
    path = opts.state_file
    if not path:
        return
    directory = os.path.dirname(os.path.realpath(path))
    try:
        found = state.load(path)
    except DamagedStateError as error:
        yield "warn", f"{error}: counters start at 0"
        return
    except StateError as error:
        yield "fail", str(error)
        return
    if why := _unwritable(directory):
        yield "fail", why
    elif found is None:
        yield "ok", f"{path} does not exist yet: counters start at 0"
    else:
        yield "ok", f"{path} has {len(found.ledger)} bytes of connections"


def _units(_: Options) -> Iterator[_Found]:
    systemctl = shutil.which("systemctl")
    if systemctl is None or not os.path.isdir(_SYSTEMD):
        return
    units = _show(systemctl)
    if not units:
        yield "ok", "no unit of conntrack-textfile is installed"
        return
    for name, unit in units.items():
        active, enabled = unit.get("ActiveState", ""), unit.get("UnitFileState", "")
        text = f"{name} is {active}{f', {enabled}' if enabled else ''}"
        if active == "failed":
            yield "fail", f"{text} ({unit.get('Result')}): journalctl -u {name}"
        elif enabled == "enabled" and active == "inactive":
            yield "warn", f"{text}: systemctl start {name}"
        elif active != "inactive" or enabled == "enabled":
            yield "ok", text
    running = {name for name, unit in units.items() if unit.get("ActiveState") == "active"}
    if not running & {_TIMER, _EXPORTER, _EXPORTER_SOCKET}:
        yield "warn", f"no unit is active: systemctl enable --now {_TIMER}, or {_EXPORTER}"
    if _TIMER in running and _WRITER_EVENTS in units and _WRITER_EVENTS not in running:
        yield "warn", f"{_WRITER_EVENTS} is not active: counters come from dumps only"
    both = [units.get(name, {}).get("UnitFileState") for name in (_EXPORTER, _EXPORTER_SOCKET)]
    if both == ["enabled", "enabled"]:
        text = f"{_EXPORTER} and {_EXPORTER_SOCKET} are both enabled: systemctl disable one of them"
        yield "warn", text


def _show(systemctl: str) -> dict[str, dict[str, str]]:
    """Return the properties of each installed unit. Raises OSError and TimeoutExpired."""
    names = "Id,LoadState,ActiveState,UnitFileState,Result"
    done = subprocess.run(  # noqa: S603  # found by PATH
        [systemctl, "show", f"--property={names}", *_UNITS],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SYSTEMCTL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise OSError(done.stderr.strip() or f"systemctl ended with {done.returncode}")
    found = {}
    for block in done.stdout.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("LoadState") == "loaded":
            found[unit["Id"]] = unit
    return found


_CHECKS = (
    _Check("engine", _engine),
    _Check("module", _module),
    _Check("netns", _netns, by_namespace=True),
    _Check("accounting", _accounting, by_namespace=True),
    _Check("timestamps", _timestamps, by_namespace=True),
    _Check("source", _source, by_namespace=True),
    _Check("events", _events, by_namespace=True),
    _Check("table", _table, by_namespace=True),
    _Check("names", _names),
    _Check("web", _web),
    _Check("listen", _listen),
    _Check("textfile", _textfile),
    _Check("state", _state),
    _Check("systemd", _units),
)
