"""The program: options to pipeline to output, and errors to words and exit status."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from conntrack_textfile import exposition, options, snapshot, sysctl, tally, textfile
from conntrack_textfile.options import Options, UsageError
from conntrack_textfile.source import SourceError
from conntrack_textfile.tally import Engine, EngineError
from conntrack_textfile.textfile import OutputError

if TYPE_CHECKING:
    from logging import Logger


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name). The exit status: 0, 1 failed, 2 usage."""
    try:
        opts = options.parse(argv)
    except UsageError as error:
        if sys.stderr is not None:  # closed by the caller
            print(f"conntrack-textfile: {error} (see conntrack-textfile --help)", file=sys.stderr)
        return 2
    try:
        if opts.configure_accounting:
            _enable_accounting(opts)
        engine = tally.engine()
        if opts.serve:
            _serve(opts, engine)
        else:
            _write(opts, engine)
    except (EngineError, SourceError, OutputError) as error:
        _log(opts).error("%s", error)
        _log(opts).debug("failed", exc_info=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _log(opts: Options) -> Logger:
    # Imported here: most runs of write have nothing to say.
    from conntrack_textfile import logs

    return logs.configure(opts.log_level, opts.log_format)


def _write(opts: Options, engine: Engine) -> None:
    gc.disable()  # it ends before there is garbage worth looking for
    taken = snapshot.take(opts, engine)
    for warning in taken.warnings.values():
        _log(opts).warning("%s", warning)
    pieces = exposition.render(taken)
    if opts.file == "-":
        textfile.stream(pieces)
    else:
        textfile.replace(opts.file, pieces)


def _serve(opts: Options, engine: Engine) -> NoReturn:
    # Imported here: one snapshot must not pay for an HTTP server.
    import signal

    from conntrack_textfile import server
    from conntrack_textfile.refresh import Refresher

    log = _log(opts)

    listeners = [server.listen(address) for address in opts.listen]
    # Blocked in every thread, so that only the wait below gets them.
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)

    refresher = Refresher(
        take=lambda: snapshot.take(opts, engine),
        failure=lambda last: snapshot.failure(opts, engine, last),
        interval=opts.interval,
    )
    application = server.Application(
        refresher.current,
        telemetry_path=opts.telemetry_path,
        max_requests=opts.max_requests,
        exporter_metrics=opts.exporter_metrics,
    )
    refresher.start()
    for listener in listeners:
        server.start(listener, application)
        log.info("listening on %s", options.Address(*listener.getsockname()[:2]))
    log.info("stopped by %s", signal.Signals(signal.sigwait(stop)).name)
    # At once: to tidy up after a refresh that is under way would take seconds
    # on a large table, and nothing is left to save.
    os._exit(0)


def _enable_accounting(opts: Options) -> None:
    try:
        sysctl.enable_accounting(opts.proc_root)
    except OSError as error:
        reason = error.strerror or error
        _log(opts).warning("cannot set net.netfilter.nf_conntrack_acct=1: %s", reason)
