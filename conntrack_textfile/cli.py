"""The program: options to pipeline to output, and errors to words and exit status."""

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
    tell,
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
    from conntrack_textfile.collector import Listen
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.table import Table
    from conntrack_textfile.options import Options
    from conntrack_textfile.web.config import Settings

# From the first frame of a view to that with rates, at most.
_FIRST_SECONDS = 1.0


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name). The exit status: 0, 1 failed, 2 usage."""
    with contextlib.suppress(MemoryError):
        return _run(argv)
    # Here, where nothing holds any more what did not fit.
    tell("conntrack-textfile: out of memory: fewer keys take less (--aggregate.by, filters)")
    return 1


def _run(argv: list[str]) -> int:
    try:
        opts = options.parse(argv, _version)
    except UsageError as error:
        return _usage(error, options.command_of(argv))
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
    except KeyboardInterrupt:
        return 130
    return 0


def _version() -> str:
    """The version, and what would count and read here."""
    try:
        engine = f"{make(Plan()).name} engine"
    except EngineError as error:
        engine = f"no engine: {error}"
    return f"{__version__} ({engine}, Python {sys.version.partition(' ')[0]})"


def _with_own_state(opts: Options) -> Options:
    """Options without a state file that is something else: it is left as it is."""
    from conntrack_textfile import state

    if state.is_ours(opts.state_file):
        return opts
    _log(opts).warning(
        "%s is not a state file of conntrack-textfile: going on without one", opts.state_file
    )
    return opts._replace(state_file="")


def _usage(error: UsageError, command: str) -> int:
    of = f"{command} " if command else ""
    tell(f"conntrack-textfile: {error} (see conntrack-textfile {of}--help)")
    return 2


def _log(opts: Options) -> Logger:
    # Imported here: most runs of write have nothing to say.
    from conntrack_textfile import logs

    return logs.configure(opts.log_level, opts.log_format)


def _write(opts: Options, engine: Engine) -> None:
    _configure_accounting(opts)
    handed = _handed()
    collector = Collector(opts, engine, handed=handed.dumps)
    with contextlib.ExitStack() as stack:
        for sock in handed.netlink:
            stack.enter_context(sock)
        stack.enter_context(_counting(opts, collector, handed))
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
    """Print what would work here. The exit status: 1 where something that is needed fails."""
    # Imported here: it knows all parts.
    from conntrack_textfile import check

    _log(opts)
    results = check.run(opts)
    textfile.stream([check.table(results).encode(errors="backslashreplace")])
    return int(any(result.level == "fail" for result in results))


class _Handed:
    """The sockets that systemd handed over, sorted by what they are."""

    def __init__(self) -> None:
        self.listeners: list[socket.socket] = []  # and whatever else is no netlink socket
        self.events: dict[str, socket.socket] = {}  # by network namespace, "" for our own
        self.dumps: dict[str, list[socket.socket]] = {}  # for dumps, by the same

    @property
    def netlink(self) -> list[socket.socket]:
        """All but the listeners."""
        return [*self.events.values(), *itertools.chain.from_iterable(self.dumps.values())]


def _handed() -> _Handed:
    """What systemd handed over. Those in a network namespace are named netns=NAME."""
    found = _Handed()
    if "LISTEN_FDS" not in os.environ:
        return found
    # Imported here: most runs of write are handed nothing.
    from conntrack_textfile import handover
    from conntrack_textfile.kernel import events
    from conntrack_textfile.kernel.namespace import OWN

    for name, sock in handover.sockets():
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


def _listener(handed: _Handed, buffer_bytes: int, log: Logger | None) -> Listen:
    """What gives the socket with the events of a table: a handed one, or one of its own.

    The latter is made where it is to have a buffer of some size. A log is told of all.
    """
    from conntrack_textfile.kernel import events

    def listen(table: Table) -> tuple[socket.socket | None, bool]:
        # Once: where another namespace has taken the name it is not of that one.
        sock = held = handed.events.pop(table.key, None)
        of = f" of {table.name}" if table.name else ""
        if held is not None and not events.is_in(held, table.identity):
            if log:
                log.warning("systemd's socket%s is of a namespace before: restart its unit", of)
            held.close()
            sock = held = None
        if sock is None and buffer_bytes:
            try:
                sock = table.space.run(lambda: events.listen(buffer_bytes))
            except (OSError, SourceError) as error:
                if log:
                    reason = getattr(error, "strerror", None) or error
                    log.warning("no events of ended connections%s: %s", of, reason)
        if sock is not None and log:
            # There may be hundreds, and write says no more than it has to.
            say = log.debug if of or not buffer_bytes else log.info
            size = events.buffer(sock).size
            say("events of ended connections%s: a buffer of %d bytes", of, size)
        return sock, held is not None

    return listen


@contextlib.contextmanager
def _counting(opts: Options, collector: Collector, handed: _Handed) -> Iterator[None]:
    """Around a run of write with counters: it has a past, and no other run beside it."""
    if "traffic" not in opts.families or not opts.state_file:
        if opts.log_level == "debug":
            _log(opts).debug("no counters: they need --state.file")
        yield
        return
    if not (opts.netns or may_be_netlink(opts.source, opts.proc_root)):
        _log(opts).warning("%s", NO_COUNTERS)
        yield
        return
    # Imported here, as all of counting: without a state there are no counters.
    from conntrack_textfile import state

    held = bool(handed.events)
    with state.run(opts.state_file) as run:
        _begin(opts, collector, _listener(handed, 0, _log(opts)), run)
        yield
        # Not after an error, or where the proc file stood in: events were read and are lost.
        if collector.saved or not held:
            run.end()


def _begin(opts: Options, collector: Collector, listen: Listen, run: state.Run) -> None:
    """Go on with the state file, and mark the run before it reads the first event."""
    from conntrack_textfile import state

    log = _log(opts)
    try:
        saved = state.load(opts.state_file)
    except DamagedStateError as error:
        log.warning("%s: counting from 0", error)
        saved = None
    run.begin(collector.count(listen, saved, interrupted=run.interrupted))


def _top(opts: Options, engine: Engine) -> None:
    # Imported here: only people look at it.
    import time

    from conntrack_textfile import top

    gc.enable()
    _configure_accounting(opts)
    if opts.watch:
        from conntrack_textfile import terminal

        if terminal.is_usable():
            _view(opts, engine)
            return
    rows = top.ROWS if opts.rows is None else opts.rows
    collector = Collector(opts, engine, options.watch_names(opts).current, ranked=max(1, rows))
    with contextlib.closing(collector):
        if opts.watch:
            _measure(opts, collector)
        known: set[str] = set()
        while True:
            began = time.monotonic()
            snapshot = collector.take()
            notes = top.notes(snapshot) if opts.watch else list(snapshot.warnings.values())
            for note in notes:
                if note not in known:
                    _log(opts).warning("%s", note)
            known.update(notes)
            lines = top.plain(snapshot, opts.limit.by, rows, watched=opts.watch)
            read = textfile.stream([("\n".join(lines) + "\n").encode()])
            if not opts.watch or not read:
                return
            time.sleep(max(0.0, began + opts.interval - time.monotonic()))


def _view(opts: Options, engine: Engine) -> None:
    """Show snapshots on the terminal, until a key or a signal ends it."""
    import time

    from conntrack_textfile import logs, terminal, top

    names = options.watch_names(opts)
    view = top.View(opts.limit.by, opts.plan.labels, rows=opts.rows)

    def plan() -> Plan:
        named = names.current()
        include = named.include if view.include is None else view.include
        return named._replace(labels=view.labels, include=include)

    collector = Collector(opts, engine, plan, ranked=top.RANKED)
    with contextlib.closing(collector):
        _measure(opts, collector)
        snapshot = shown = collector.take()
        # The first rates are not waited for so long.
        due = time.monotonic() + min(opts.interval, _FIRST_SECONDS)
        with logs.held(_log(opts)) as held, terminal.opened() as screen:
            while not view.ended:
                if not view.paused:
                    shown = snapshot
                lines = top.screen(shown, view, screen.size(), opts.interval, held)
                keys = screen.keys(due - time.monotonic()) if screen.draw(lines) else None
                if keys is None:
                    return
                kept = view.labels, view.include
                for key in keys:
                    view = top.press(view, key)
                if (view.labels, view.include) != kept or time.monotonic() >= due:
                    due = time.monotonic() + opts.interval
                    held.clear()
                    try:
                        snapshot = collector.take()
                    except SourceError as error:
                        held.append(str(error))


def _measure(opts: Options, collector: Collector) -> None:
    """Begin to count in top, for rates: with the events of sockets of its own."""
    from conntrack_textfile.kernel import events

    if opts.netns or may_be_netlink(opts.source, opts.proc_root):
        # The view says what is missing.
        collector.count(_listener(_Handed(), events.BUFFER_BYTES, None), None, interrupted=0)
        collector.drain()


def _serve(opts: Options, engine: Engine) -> NoReturn:
    # Imported here: one snapshot must not pay for an HTTP server.
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
    handed = _handed()
    listeners = sockets.listening(handed.listeners) if opts.systemd_socket else []
    if not listeners:
        listeners = [sockets.listen(address) for address in opts.listen]
    process.share_one_arena()
    process.block_signals()

    names = options.watch_names(opts)
    collector = Collector(opts, engine, names.current, handed=handed.dumps, carried=GROUPS)
    stack = contextlib.ExitStack()
    if "traffic" in opts.families:
        _count(opts, collector, handed, stack)
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
        access=web_config,
    )
    refresher.start()
    limiter = Limiter(http.MAX_CONNECTIONS)
    servers = [http.start(listener, application, limiter) for listener in listeners]
    _say_who_may_ask(opts, listeners, web_config.current() if web_config else None)

    def read_again() -> None:
        if web_config:
            web_config.reload()
        if opts.networks_file or opts.services_file or opts.hosts_files:
            names.reload()

    def alive() -> bool:
        return refresher.alive() and all(server.alive() for server in servers)

    def stop() -> None:
        collector.stop()
        stack.close()

    process.stay(alive, read_again, stop)


def _say_who_may_ask(
    opts: Options, listeners: list[socket.socket], settings: Settings | None
) -> None:
    """Log where serve listens and what it asks for, and warn where anybody may ask."""
    from conntrack_textfile.web import sockets

    tls, asks = (settings.tls, settings.passwords) if settings else (None, None)
    for listener in listeners:
        address = options.Address(*listener.getsockname()[:2])
        _log(opts).info(
            "listening on %s, %s TLS, %s passwords",
            *(address, "with" if tls else "without", "with" if asks else "without"),
        )
        if not (tls or asks or sockets.is_loopback(listener)):
            _log(opts).warning(
                "whoever reaches %s sees who talks to whom: --web.config.file asks for TLS and "
                "passwords, --web.listen-address=127.0.0.1:%d is for this host alone",
                *(address, address.port),
            )


def _count(
    opts: Options, collector: Collector, handed: _Handed, stack: contextlib.ExitStack
) -> None:
    """Begin to count in serve: with the events of systemd's sockets, or of sockets of its own."""
    from conntrack_textfile import state

    log = _log(opts)
    if not (opts.netns or may_be_netlink(opts.source, opts.proc_root)):
        log.warning("%s", NO_COUNTERS)
        return

    listen = _listener(handed, opts.event_buffer, log)
    if opts.state_file:
        run = stack.enter_context(state.run(opts.state_file))
        _begin(opts, collector, listen, run)
        stack.callback(run.end)
    else:
        collector.count(listen, None, interrupted=0)
    collector.drain()


def _configure_accounting(opts: Options) -> None:
    if not opts.configure_accounting or opts.netns:  # of others the collector does it
        return
    try:
        sysctl.enable_accounting(opts.proc_root)
    except OSError as error:
        reason = error.strerror or error
        _log(opts).warning("cannot set net.netfilter.nf_conntrack_acct=1: %s", reason)
