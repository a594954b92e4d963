"""The program: options to pipeline to output, and errors to words and exit status."""

from __future__ import annotations

import contextlib
import gc
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
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.options import Options
    from conntrack_textfile.web.config import Settings


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
        return _usage(error)
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
        return _usage(error)
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


def _usage(error: UsageError) -> int:
    tell(f"conntrack-textfile: {error} (see conntrack-textfile --help)")
    return 2


def _log(opts: Options) -> Logger:
    # Imported here: most runs of write have nothing to say.
    from conntrack_textfile import logs

    return logs.configure(opts.log_level, opts.log_format)


def _write(opts: Options, engine: Engine) -> None:
    _configure_accounting(opts)
    collector = Collector(opts, engine)
    with _counting(opts, collector):
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


@contextlib.contextmanager
def _counting(opts: Options, collector: Collector) -> Iterator[None]:
    """Around a run of write with counters: it has a past, and no other run beside it."""
    if "traffic" not in opts.families or not opts.state_file:
        if opts.log_level == "debug":
            _log(opts).debug("no counters: they need --state.file")
        yield
        return
    if not may_be_netlink(opts.source, opts.proc_root):
        _log(opts).warning("%s", NO_COUNTERS)
        yield
        return
    # Imported here, as all of counting: without a state there are no counters.
    from conntrack_textfile import handover, state

    with state.run(opts.state_file) as run:
        handed = handover.sockets()
        held = _held(handed)
        for sock in handed:
            if sock is not held:
                sock.close()
        with contextlib.closing(held) if held else contextlib.nullcontext():
            _begin(opts, collector, held, run, held=True)
            yield
        # Not after an error, or where the proc file stood in: events were read and are lost.
        if collector.saved or held is None:
            run.end()


def _held(handed: list[socket.socket]) -> socket.socket | None:
    """The socket with events among those that systemd handed over."""
    from conntrack_textfile.kernel import events

    return next(filter(events.is_listening, handed), None)


def _begin(
    opts: Options,
    collector: Collector,
    sock: socket.socket | None,
    run: state.Run,
    *,
    held: bool,
) -> None:
    """Go on with the state file, and mark the run before it reads the first event."""
    from conntrack_textfile import state

    log = _log(opts)
    try:
        saved = state.load(opts.state_file)
    except DamagedStateError as error:
        log.warning("%s: counting from 0", error)
        saved = None
    run.begin(collector.count(sock, saved, held=held, interrupted=run.interrupted))


def _top(opts: Options, engine: Engine) -> None:
    # Imported here: only people look at it.
    import time

    from conntrack_textfile import top

    gc.enable()
    _configure_accounting(opts)
    screen = opts.watch and os.isatty(textfile.STDOUT)
    collector = Collector(opts, engine, options.watch_names(opts))
    before, then = None, 0.0
    while True:
        snapshot = collector.take()
        assert snapshot.live is not None
        now = time.monotonic()
        warnings = list(snapshot.warnings.values())
        if screen:
            size = os.get_terminal_size(textfile.STDOUT)
            height, width = size.lines or 24, size.columns or 80
            rows = max(1, min(opts.rows, height - len(warnings) - 5))
            lines = [*warnings, *top.table(snapshot, rows, width - 1, before, now - then)]
            lines = top.frame(lines, height, width)
        else:
            lines = list(top.table(snapshot, opts.rows, None, before, now - then))
            for warning in warnings if before is None else ():
                _log(opts).warning("%s", warning)
        read = textfile.stream([("\n".join(lines) + "\n").encode()])
        if not opts.watch or not read:
            return
        before, then = top.byte_counts(snapshot.live), now
        time.sleep(max(0.0, now + opts.interval - time.monotonic()))


def _serve(opts: Options, engine: Engine) -> NoReturn:
    # Imported here: one snapshot must not pay for an HTTP server.
    from conntrack_textfile import handover
    from conntrack_textfile.web import http, process, sockets
    from conntrack_textfile.web.application import Application
    from conntrack_textfile.web.limiter import Limiter
    from conntrack_textfile.web.refresh import Refresher

    gc.enable()
    log = _log(opts)

    web_config = None
    if opts.web_config:
        from conntrack_textfile.web import config

        web_config = config.watch(opts.web_config)
    _configure_accounting(opts)
    handed = handover.sockets()
    listeners = sockets.listening(handed) if opts.systemd_socket else []
    if not listeners:
        listeners = [sockets.listen(address) for address in opts.listen]
    process.share_one_arena()
    process.block_signals()

    names = options.watch_names(opts)
    collector = Collector(opts, engine, names)
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
        if opts.networks_file or opts.services_file:
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
    opts: Options,
    collector: Collector,
    handed: list[socket.socket],
    stack: contextlib.ExitStack,
) -> None:
    """Begin to count in serve: with the events of systemd's socket, or of one of its own."""
    from conntrack_textfile import state
    from conntrack_textfile.kernel import events

    log = _log(opts)
    if not may_be_netlink(opts.source, opts.proc_root):
        log.warning("%s", NO_COUNTERS)
        return
    run = stack.enter_context(state.run(opts.state_file)) if opts.state_file else None
    held = sock = _held(handed)
    if sock is None:
        try:
            sock = events.listen(opts.event_buffer)
        except OSError as error:
            log.warning("no events of ended connections: %s", error.strerror)
    if sock is not None:
        log.info("events of ended connections: a buffer of %d bytes", events.buffer(sock).size)
    if run:
        _begin(opts, collector, sock, run, held=held is not None)
        stack.callback(run.end)
    else:
        collector.count(sock, None, held=held is not None, interrupted=0)
    collector.drain()


def _configure_accounting(opts: Options) -> None:
    if not opts.configure_accounting:
        return
    try:
        sysctl.enable_accounting(opts.proc_root)
    except OSError as error:
        reason = error.strerror or error
        _log(opts).warning("cannot set net.netfilter.nf_conntrack_acct=1: %s", reason)
