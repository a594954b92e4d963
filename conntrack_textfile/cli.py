"""The commands: options to pipeline to output, and errors to messages and exit status."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from conntrack_textfile import __version__, activation, exposition, options, textfile
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
from conntrack_textfile.plan import Plan
from conntrack_textfile.snapshot import NO_COUNTERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from logging import Logger

    from conntrack_textfile import state
    from conntrack_textfile.activation import Passed
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.listener import Listen
    from conntrack_textfile.options import Options
    from conntrack_textfile.reload import Reloader
    from conntrack_textfile.web.config import Settings


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name).

    Return the exit status: 0, 1 failed, 2 wrong usage. Raises SystemExit after --help and
    --version.
    """
    _occupy_closed_descriptors()
    with contextlib.suppress(MemoryError):
        return _run(argv)
    # Not in _run(), whose frame still refers to the data.
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
        {"write": _write, "serve": _serve, "top": _top}[opts.command](opts, engine)
    except UsageError as error:
        return _usage(error, opts.command)
    except (EngineError, ListenError, OutputError, SourceError, StateError) as error:
        _log(opts).error("%s", error)
        _log(opts).debug("failed", exc_info=True)
        return 1
    return 0


def _write(opts: Options, engine: Engine) -> None:
    _configure_accounting(opts)
    passed = activation.take()
    collector = Collector(opts, engine, dump_sockets=passed.dumps)
    with contextlib.ExitStack() as stack:
        for sock in passed.netlink:
            stack.enter_context(sock)
        stack.enter_context(_counted_run(opts, collector, passed))
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


def _serve(opts: Options, engine: Engine) -> NoReturn:
    # Imported here: write does not use the HTTP server.
    from conntrack_textfile import namefiles
    from conntrack_textfile.web import http, process, sockets
    from conntrack_textfile.web.application import Application
    from conntrack_textfile.web.history import GROUPS
    from conntrack_textfile.web.limiter import Limiter
    from conntrack_textfile.web.refresh import Refresher

    gc.enable()
    log = _log(opts)
    web_config = _web_config(opts)
    _configure_accounting(opts)
    passed = activation.take()
    listeners = sockets.listening(passed.listeners) if opts.systemd_socket else []
    listeners = listeners or [sockets.listen(address) for address in opts.listen]
    process.limit_malloc_arenas()
    process.block_signals()

    names = namefiles.watch(opts.names, opts.plan, opts.names_until)
    collector = Collector(
        opts, engine, names.current, dump_sockets=passed.dumps, interval_groups=GROUPS
    )
    stack = contextlib.ExitStack()
    if "traffic" in opts.families:
        _count(opts, collector, passed, stack)
    if slow := slowness(engine, sysctl.read(opts.proc_root).entries):
        log.warning("%s", slow)
    refresher = Refresher(collector.take, collector.failure, opts.interval)
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
    settings = web_config.current() if web_config else None
    for listener in listeners:
        sockets.log(
            listener,
            tls=settings is not None and settings.tls is not None,
            passwords=settings is not None and settings.passwords is not None,
        )

    def reload() -> None:
        if web_config:
            web_config.reload()
        if any(opts.names):
            names.reload()

    def alive() -> bool:
        return refresher.alive() and all(server.alive() for server in servers)

    def stop() -> None:
        collector.stop()
        stack.close()

    process.run(alive, reload, stop)


def _web_config(opts: Options) -> Reloader[Settings] | None:
    if not opts.web_config:
        return None
    # Imported here: bcrypt and PyYAML may be missing.
    from conntrack_textfile.web import config

    return config.watch(opts.web_config)


def _top(opts: Options, engine: Engine) -> None:
    # Imported here: write and serve do not use it.
    from conntrack_textfile import terminal, watch

    gc.enable()
    _log(opts)
    _configure_accounting(opts)
    # There are no series by group, so the counters need no slots for them.
    opts = opts._replace(limit=opts.limit._replace(keys=1))
    if opts.watch and terminal.is_usable():
        watch.interactive(opts, engine)
    else:
        watch.lines(opts, engine)


def _check(opts: Options) -> int:
    """Print the results of check. Return the exit status: 1 if something needed fails."""
    # Imported here: it imports all parts.
    from conntrack_textfile import check

    _log(opts)
    results = check.run(opts)
    textfile.stream([check.table(results).encode(errors="backslashreplace")])
    return int(any(result.level == "fail" for result in results))


def _configure_accounting(opts: Options) -> None:
    if not opts.configure_accounting or opts.netns:  # Tables does it in each namespace
        return
    try:
        sysctl.enable_accounting(opts.proc_root)
    except OSError as error:
        reason = error.strerror or error
        _log(opts).warning("cannot set net.netfilter.nf_conntrack_acct=1: %s", reason)


@contextlib.contextmanager
def _counted_run(opts: Options, collector: Collector, passed: Passed) -> Iterator[None]:
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
    if not collector.can_count:
        _log(opts).warning("%s", NO_COUNTERS)
        yield
        return
    # Imported here: without a state file there are no counters.
    from conntrack_textfile import state
    from conntrack_textfile.kernel.listener import listener

    activated = bool(passed.events)
    with state.run(opts.state_file) as run:
        _resume(opts, collector, listener(passed.events, 0, _log(opts)), run)
        yield
        # Else the run counts as interrupted: it took events from the socket of systemd, and
        # did not save them (an error, or the table was read from procfs).
        if collector.saved or not activated:
            run.end()


def _count(
    opts: Options, collector: Collector, passed: Passed, stack: contextlib.ExitStack
) -> None:
    """Count traffic in serve, with event sockets passed by systemd or made here.

    stack: called at the end of serve, it ends the run in the lock file. Raises StateError.
    """
    from conntrack_textfile import state
    from conntrack_textfile.kernel.listener import listener

    if not collector.can_count:
        _log(opts).warning("%s", NO_COUNTERS)
        return
    listen = listener(passed.events, opts.event_buffer, _log(opts))
    if opts.state_file:
        run = stack.enter_context(state.run(opts.state_file))
        _resume(opts, collector, listen, run)
        stack.callback(run.end)
    else:
        collector.start_counting(listen)
    collector.drain()


def _resume(opts: Options, collector: Collector, listen: Listen, run: state.Run) -> None:
    """Continue from the state file, and record the start of the run before any event is read."""
    from conntrack_textfile import state

    try:
        saved = state.load(opts.state_file)
    except DamagedStateError as error:
        _log(opts).warning("%s: counting from 0", error)
        saved = None
    run.begin(collector.start_counting(listen, saved, interrupted=run.interrupted))


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
    """Return the options, without --state.file where that file is of another program.

    Raises StateError if it cannot be read.
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
