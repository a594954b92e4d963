"""The commands: options to pipeline to output, and errors to messages and exit status."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from conntrack_textfile import __version__, exposition, options, textfile
from conntrack_textfile.collector import Collector
from conntrack_textfile.errors import (
    DamagedStateError,
    EngineError,
    ListenError,
    OutputError,
    SourceError,
    StateError,
    UsageError,
    print_error,
)
from conntrack_textfile.kernel import sysctl
from conntrack_textfile.kernel.engine import make, slowness
from conntrack_textfile.kernel.source import may_be_netlink
from conntrack_textfile.plan import Plan
from conntrack_textfile.snapshot import NO_COUNTERS

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from logging import Logger

    from conntrack_textfile import state
    from conntrack_textfile.counting import Listen
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.table import Table
    from conntrack_textfile.options import Options
    from conntrack_textfile.web.config import Settings

# From the first frame of top --watch, without rates, to the next.
_FIRST_INTERVAL = 1.0


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name).

    Return the exit status: 0, 1 failed, 2 wrong usage. Raises SystemExit after --help and
    --version.
    """
    _occupy_closed_descriptors()
    with contextlib.suppress(MemoryError):
        return _run(argv)
    # Here, where the stack no longer holds the data.
    print_error("conntrack-textfile: out of memory: reduce the keys (--aggregate.by, --filter.*)")
    return 1


def _run(argv: list[str]) -> int:
    try:
        opts = options.parse(argv, _version)
    except UsageError as error:
        return _usage(error, options.command_of(argv))
    except OutputError as error:  # --help and --version print
        print_error(f"conntrack-textfile: {error}")
        return 1
    if opts.log_level == "debug":
        _log(opts)
    try:
        if opts.command == "check":
            return _check(opts)
        engine = make(opts.plan)
        if opts.state_file:
            opts = _with_own_state(opts)
        run = {"write": _write, "serve": _serve, "top": _top}[opts.command]
        run(opts, engine)
    except UsageError as error:
        return _usage(error, opts.command)
    except (EngineError, ListenError, OutputError, SourceError, StateError) as error:
        _log(opts).error("%s", error)
        _log(opts).debug("failed", exc_info=True)
        return 1
    return 0


def _occupy_closed_descriptors() -> None:
    """Open 0 to 2 where the caller closed them, so that no other file gets their numbers.

    Else the lock of the state file could be 1, and get the metrics. read(2) and write(2) of
    an O_PATH descriptor fail as of a closed one (EBADF).
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:  # the lowest free number is that of this stream
            os.open("/", os.O_PATH | os.O_CLOEXEC)


def _version() -> str:
    """Return the version, engine and Python version."""
    try:
        engine = f"{make(Plan()).name} engine"
    except EngineError as error:
        engine = f"no engine: {error}"
    return f"{__version__} ({engine}, Python {sys.version.partition(' ')[0]})"


def _with_own_state(opts: Options) -> Options:
    """Return the options, without a state file that is of another program.

    That file is left as it is. Raises StateError.
    """
    from conntrack_textfile import state

    if state.is_ours(opts.state_file):
        return opts
    _log(opts).warning(
        "%s is not a state file of conntrack-textfile: going on without one", opts.state_file
    )
    return opts._replace(state_file="")


def _usage(error: UsageError, command: str) -> int:
    of = f"{command} " if command else ""
    print_error(f"conntrack-textfile: {error} (see conntrack-textfile {of}--help)")
    return 2


def _log(opts: Options) -> Logger:
    # Imported here: most runs of write log nothing.
    from conntrack_textfile import logs

    return logs.configure(opts.log_level, opts.log_format)


def _write(opts: Options, engine: Engine) -> None:
    _configure_accounting(opts)
    passed = _passed_sockets()
    collector = Collector(opts, engine, dump_sockets=passed.dumps)
    with contextlib.ExitStack() as stack:
        for sock in passed.netlink:
            stack.enter_context(sock)
        stack.enter_context(_counting(opts, collector, passed))
        snapshot = collector.take()
        for warning in snapshot.warnings.values():
            _log(opts).warning("%s", warning)
        pieces = exposition.render(snapshot)
        if opts.file == "-":
            textfile.stream(pieces)
        else:
            textfile.replace(opts.file, pieces, opts.file_mode, opts.file_group)
            if not opts.file.endswith(".prom"):
                _log(opts).warning("%s", textfile.NOT_READ.format(opts.file))
    if opts.log_level == "debug" and (slow := slowness(engine, snapshot.conntrack.entries)):
        _log(opts).debug("%s", slow)


def _check(opts: Options) -> int:
    """Print the results of check. Return the exit status: 1 if something needed fails."""
    # Imported here: it imports all parts.
    from conntrack_textfile import check

    _log(opts)
    results = check.run(opts)
    textfile.stream([check.table(results).encode(errors="backslashreplace")])
    return int(any(result.level == "fail" for result in results))


class _PassedSockets:
    """The sockets passed by systemd, by purpose."""

    def __init__(self) -> None:
        self.listeners: list[socket.socket] = []  # all but NETLINK_NETFILTER sockets
        self.events: dict[str, socket.socket] = {}  # by network namespace, "" is our own
        self.dumps: dict[str, list[socket.socket]] = {}  # by network namespace

    @property
    def netlink(self) -> list[socket.socket]:
        """All NETLINK_NETFILTER sockets."""
        return [*self.events.values(), *itertools.chain.from_iterable(self.dumps.values())]


def _passed_sockets() -> _PassedSockets:
    """Sort the sockets passed by systemd, and close those without a use.

    FileDescriptorName=netns=NAME is that of a socket in a network namespace. Raises SourceError.
    """
    found = _PassedSockets()
    if "LISTEN_FDS" not in os.environ:
        return found
    # Imported here: most runs of write have no passed sockets.
    from conntrack_textfile import activation
    from conntrack_textfile.kernel import events
    from conntrack_textfile.kernel.namespace import OWN

    for name, sock in activation.sockets():
        kind, _, netns = name.partition("=")
        netns = netns if kind == "netns" else ""
        groups = events.groups(sock)
        if groups < 0:
            found.listeners.append(sock)
        elif netns and groups == 0:
            found.dumps.setdefault(netns, []).append(sock)
        elif (
            netns not in found.events
            and events.is_listening(sock)
            and (netns or events.is_in(sock, OWN.identity()))
        ):
            found.events[netns] = sock
        else:
            sock.close()
    return found


def _listener(passed: _PassedSockets, buffer_bytes: int, log: Logger | None) -> Listen:
    """Return the function that opens the event socket of a table, for Collector.count().

    It takes the socket passed by systemd, or makes one with a receive buffer of
    buffer_bytes, none if that is 0; it returns the socket and whether it was passed.
    log: where it logs the size of the buffer and failures, if not None.
    """
    from conntrack_textfile.kernel import events

    def listen(table: Table) -> tuple[socket.socket | None, bool]:
        # Once: if another namespace takes the name, the socket is not in it.
        sock = given = passed.events.pop(table.key, None)
        of = f" of {table.name}" if table.name else ""
        if given is not None and not events.is_in(given, table.identity):
            if log:
                log.warning(
                    "the event socket%s is in another namespace: restart its socket unit", of
                )
            given.close()
            sock = given = None
        if sock is None and buffer_bytes:
            try:
                sock = table.space.run(lambda: events.listen(buffer_bytes))
            except (OSError, SourceError) as error:
                if log:
                    reason = getattr(error, "strerror", None) or error
                    log.warning("no events of ended connections%s: %s", of, reason)
        if sock is not None and log:
            # One line a namespace, of which there may be hundreds; and write logs problems only.
            report = log.debug if of or not buffer_bytes else log.info
            size = events.buffer(sock).size
            report("events of ended connections%s: a buffer of %d bytes", of, size)
        return sock, given is not None

    return listen


@contextlib.contextmanager
def _counting(opts: Options, collector: Collector, passed: _PassedSockets) -> Iterator[None]:
    """Count traffic in a run of write: continue from the state file, under its lock.

    Raises StateError.
    """
    if "traffic" not in opts.families or not opts.state_file:
        if opts.families == ("traffic",):
            _log(opts).warning(
                "no series by key: without --state.file there are no counters, and "
                "--collector.families=traffic omits the live connections"
            )
        elif opts.log_level == "debug":
            _log(opts).debug("no counters: they need --state.file")
        yield
        return
    if not (opts.netns or may_be_netlink(opts.source, opts.proc_root)):
        _log(opts).warning("%s", NO_COUNTERS)
        yield
        return
    # Imported here: without a state file there are no counters.
    from conntrack_textfile import state

    activated = bool(passed.events)
    with state.run(opts.state_file) as run:
        _begin(opts, collector, _listener(passed, 0, _log(opts)), run)
        yield
        # Else the run counts as interrupted: it took events from the socket of systemd, and
        # did not save them (an error, or the table was read from procfs).
        if collector.saved or not activated:
            run.end()


def _begin(opts: Options, collector: Collector, listen: Listen, run: state.Run) -> None:
    """Continue from the state file, and record the start of the run before any event is read."""
    from conntrack_textfile import state

    log = _log(opts)
    try:
        saved = state.load(opts.state_file)
    except DamagedStateError as error:
        log.warning("%s: counting from 0", error)
        saved = None
    run.begin(collector.start_counting(listen, saved, interrupted=run.interrupted))


def _top(opts: Options, engine: Engine) -> None:
    # Imported here: write and serve do not use it.
    import time

    from conntrack_textfile import top

    gc.enable()
    _configure_accounting(opts)
    # There are no series by group, so the counters need no slots for them.
    opts = opts._replace(limit=opts.limit._replace(keys=1))
    if opts.watch:
        from conntrack_textfile import terminal

        if terminal.is_usable():
            _view(opts, engine)
            return
    rows = top.ROWS if opts.rows is None else opts.rows
    collector = Collector(opts, engine, options.watch_names(opts).current)
    with contextlib.closing(collector):
        if opts.watch:
            _measure(opts, collector)
        known: list[str] = []
        while True:
            began = time.monotonic()
            snapshot = collector.top(max(1, rows))
            notes = top.notes(snapshot) if opts.watch else list(snapshot.warnings.values())
            for note in top.unlogged(notes, known):
                _log(opts).warning("%s", note)
            lines = top.plain(snapshot, opts.limit.by, rows, watched=opts.watch)
            read = textfile.stream([("\n".join(lines) + "\n").encode()])
            if not opts.watch or not read:
                return
            time.sleep(max(0.0, began + opts.interval - time.monotonic()))


def _view(opts: Options, engine: Engine) -> None:
    """Show snapshots on the terminal until q or a signal (top --watch)."""
    import time

    from conntrack_textfile import logs, terminal, top

    names = options.watch_names(opts)
    view = top.View(opts.limit.by, opts.plan.labels, rows=opts.rows)

    def plan() -> Plan:
        named = names.current()
        include = named.include if view.include is None else view.include
        return named._replace(labels=view.labels, include=include)

    collector = Collector(opts, engine, plan)
    with contextlib.closing(collector):
        _measure(opts, collector)
        snapshot = shown = collector.top(top.RANKED)
        due = time.monotonic() + min(opts.interval, _FIRST_INTERVAL)
        with logs.buffered(_log(opts)) as log_lines, terminal.opened() as screen:
            while not view.ended:
                if not view.paused:
                    shown = snapshot
                lines = top.screen(shown, view, screen.size(), opts.interval, log_lines)
                keys = screen.keys(due - time.monotonic()) if screen.draw(lines) else None
                if keys is None:
                    return
                kept = view.labels, view.include
                for key in keys:
                    view = top.press(view, key)
                if (view.labels, view.include) != kept or time.monotonic() >= due:
                    due = time.monotonic() + opts.interval
                    log_lines.clear()
                    try:
                        snapshot = collector.top(top.RANKED)
                    except SourceError as error:
                        log_lines.append(str(error))


def _measure(opts: Options, collector: Collector) -> None:
    """Count traffic in top, for rates, with event sockets of its own."""
    from conntrack_textfile.kernel import events

    if opts.netns or may_be_netlink(opts.source, opts.proc_root):
        # Without a log: the view has a note for each problem.
        collector.start_counting(_listener(_PassedSockets(), events.BUFFER_BYTES, None))
        collector.drain()


def _serve(opts: Options, engine: Engine) -> NoReturn:
    # Imported here: write does not use the HTTP server.
    from conntrack_textfile.web import http, process, sockets
    from conntrack_textfile.web.application import Application
    from conntrack_textfile.web.history import GROUPS
    from conntrack_textfile.web.limiter import Limiter
    from conntrack_textfile.web.refresh import Refresher

    gc.enable()
    log = _log(opts)

    web_config = None
    if opts.web_config:
        from conntrack_textfile.web import config

        web_config = config.watch(opts.web_config)
    _configure_accounting(opts)
    passed = _passed_sockets()
    listeners = sockets.listening(passed.listeners) if opts.systemd_socket else []
    if not listeners:
        listeners = [sockets.listen(address) for address in opts.listen]
    process.limit_malloc_arenas()
    process.block_signals()

    names = options.watch_names(opts)
    collector = Collector(
        opts, engine, names.current, dump_sockets=passed.dumps, interval_groups=GROUPS
    )
    stack = contextlib.ExitStack()
    if "traffic" in opts.families:
        _count(opts, collector, passed, stack)
    refresher = Refresher(
        take=collector.take,
        failure=collector.failure,
        interval=opts.interval,
    )
    if slow := slowness(engine, sysctl.read(opts.proc_root).entries):
        log.warning("%s", slow)
    application = Application(
        refresher,
        telemetry_path=opts.telemetry_path,
        max_requests=opts.max_requests,
        exporter_metrics=opts.exporter_metrics,
        web_config=web_config,
    )
    refresher.start()
    limiter = Limiter(http.MAX_CONNECTIONS)
    servers = [http.start(listener, application, limiter) for listener in listeners]
    _log_listeners(opts, listeners, web_config.current() if web_config else None)

    def reload() -> None:
        if web_config:
            web_config.reload()
        if opts.networks_file or opts.services_file or opts.hosts_files:
            names.reload()

    def alive() -> bool:
        return refresher.alive() and all(server.alive() for server in servers)

    def stop() -> None:
        collector.stop()
        stack.close()

    process.run(alive, reload, stop)


def _log_listeners(
    opts: Options, listeners: list[socket.socket], settings: Settings | None
) -> None:
    """Log each address with TLS and passwords; warn of one open to the network without either."""
    from conntrack_textfile.web import sockets

    tls, passwords = (settings.tls, settings.passwords) if settings else (None, None)
    for listener in listeners:
        address = options.Address(*listener.getsockname()[:2])
        _log(opts).info(
            "listening on %s, %s TLS, %s passwords",
            *(address, "with" if tls else "without", "with" if passwords else "without"),
        )
        if not (tls or passwords or sockets.is_loopback(listener)):
            _log(opts).warning(
                "whoever reaches %s sees who talks to whom: --web.config.file asks for TLS and "
                "passwords, --web.listen-address=127.0.0.1:%d is for this host alone",
                *(address, address.port),
            )


def _count(
    opts: Options, collector: Collector, passed: _PassedSockets, stack: contextlib.ExitStack
) -> None:
    """Count traffic in serve, with event sockets passed by systemd or of its own.

    Raises StateError.
    """
    from conntrack_textfile import state

    log = _log(opts)
    if not (opts.netns or may_be_netlink(opts.source, opts.proc_root)):
        log.warning("%s", NO_COUNTERS)
        return

    listen = _listener(passed, opts.event_buffer, log)
    if opts.state_file:
        run = stack.enter_context(state.run(opts.state_file))
        _begin(opts, collector, listen, run)
        stack.callback(run.end)
    else:
        collector.start_counting(listen)
    collector.drain()


def _configure_accounting(opts: Options) -> None:
    if not opts.configure_accounting or opts.netns:  # the collector does it in each
        return
    try:
        sysctl.enable_accounting(opts.proc_root)
    except OSError as error:
        reason = error.strerror or error
        _log(opts).warning("cannot set net.netfilter.nf_conntrack_acct=1: %s", reason)
