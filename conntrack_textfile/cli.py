"""The program: options to pipeline to output, and errors to words and exit status."""

from __future__ import annotations

import contextlib
import gc
import os
from typing import TYPE_CHECKING, NoReturn

from conntrack_textfile import exposition, options, snapshot, textfile
from conntrack_textfile.errors import (
    EngineError,
    ListenError,
    OutputError,
    SourceError,
    UsageError,
    tell,
)
from conntrack_textfile.kernel import sysctl
from conntrack_textfile.kernel.engine import make

if TYPE_CHECKING:
    from logging import Logger

    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.options import Options


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name). The exit status: 0, 1 failed, 2 usage."""
    with contextlib.suppress(MemoryError):
        return _run(argv)
    # Here, where nothing holds any more what did not fit.
    tell("conntrack-textfile: out of memory: fewer keys take less (--aggregate.by, filters)")
    return 1


def _run(argv: list[str]) -> int:
    try:
        opts = options.parse(argv)
    except UsageError as error:
        return _usage(error)
    if opts.log_level == "debug":
        _log(opts)
    try:
        engine = make(opts.plan)
        run = {"write": _write, "serve": _serve, "top": _top}[opts.command]
        run(opts, engine)
    except UsageError as error:
        return _usage(error)
    except (EngineError, ListenError, OutputError, SourceError) as error:
        _log(opts).error("%s", error)
        _log(opts).debug("failed", exc_info=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _usage(error: UsageError) -> int:
    tell(f"conntrack-textfile: {error} (see conntrack-textfile --help)")
    return 2


def _log(opts: Options) -> Logger:
    # Imported here: most runs of write have nothing to say.
    from conntrack_textfile import logs

    return logs.configure(opts.log_level, opts.log_format)


def _write(opts: Options, engine: Engine) -> None:
    _configure_accounting(opts)
    taken = snapshot.take(opts, engine)
    for warning in taken.warnings.values():
        _log(opts).warning("%s", warning)
    pieces = exposition.render(taken)
    if opts.file == "-":
        textfile.stream(pieces)
    else:
        textfile.replace(opts.file, pieces, opts.file_mode, opts.file_group)


def _top(opts: Options, engine: Engine) -> None:
    # Imported here: only people look at it.
    import time

    from conntrack_textfile import top

    gc.enable()
    _configure_accounting(opts)
    screen = opts.watch and os.isatty(textfile.STDOUT)
    before, then = None, 0.0
    while True:
        taken = snapshot.take(opts, engine)
        assert taken.live is not None
        now = time.monotonic()
        warnings = list(taken.warnings.values())
        if screen:
            size = os.get_terminal_size(textfile.STDOUT)
            height, width = size.lines or 24, size.columns or 80
            rows = max(1, min(opts.rows, height - len(warnings) - 5))
            lines = [*warnings, *top.table(taken, rows, width - 1, before, now - then)]
            lines = top.frame(lines, height, width)
        else:
            lines = list(top.table(taken, opts.rows, None, before, now - then))
            for warning in warnings if before is None else ():
                _log(opts).warning("%s", warning)
        read = textfile.stream([("\n".join(lines) + "\n").encode()])
        if not opts.watch or not read:
            return
        before, then = top.carried(taken.live), now
        time.sleep(max(0.0, now + opts.interval - time.monotonic()))


def _serve(opts: Options, engine: Engine) -> NoReturn:
    # Imported here: one snapshot must not pay for an HTTP server.
    from conntrack_textfile.web import http, process, sockets
    from conntrack_textfile.web.application import Application
    from conntrack_textfile.web.places import Places
    from conntrack_textfile.web.refresh import Refresher

    gc.enable()
    log = _log(opts)

    access = None
    if opts.web_config:
        from conntrack_textfile.web.config import WebConfig

        access = WebConfig(opts.web_config)
    _configure_accounting(opts)
    listeners = sockets.handed_over() if opts.systemd_socket else []
    if not listeners:
        listeners = [sockets.listen(address) for address in opts.listen]
    process.share_one_arena()
    process.block_signals()

    refresher = Refresher(
        take=lambda: snapshot.take(opts, engine),
        failure=lambda last: snapshot.failure(opts, engine, last),
        interval=opts.interval,
    )
    application = Application(
        refresher,
        telemetry_path=opts.telemetry_path,
        max_requests=opts.max_requests,
        exporter_metrics=opts.exporter_metrics,
        access=access,
    )
    refresher.start()
    places = Places(http.MAX_CONNECTIONS)
    servers = [http.start(listener, application, places) for listener in listeners]
    for listener in listeners:
        log.info("listening on %s", options.Address(*listener.getsockname()[:2]))

    def read_again() -> None:
        if access:
            access.reload()

    def alive() -> bool:
        return refresher.alive() and all(server.alive() for server in servers)

    process.stay(alive, read_again)


def _configure_accounting(opts: Options) -> None:
    if not opts.configure_accounting:
        return
    try:
        sysctl.enable_accounting(opts.proc_root)
    except OSError as error:
        reason = error.strerror or error
        _log(opts).warning("cannot set net.netfilter.nf_conntrack_acct=1: %s", reason)
