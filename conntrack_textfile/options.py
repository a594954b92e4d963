"""The command line: the usage text, which specifies it, and what it parses to."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import docopt

from conntrack_textfile import __version__, filters, labels, networks, services, textfile
from conntrack_textfile.aggregate import MEASURES, Limit
from conntrack_textfile.errors import UsageError
from conntrack_textfile.files import regular
from conntrack_textfile.networks import WHOLE, Prefix
from conntrack_textfile.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntrack_textfile.filters import Filter
    from conntrack_textfile.reload import Reloader

_SUMMARY = """\
Prometheus metrics from the Linux connection tracking table.
"""

# For each command: the usage line, the description, and the options of this command only.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "write": (
        "  conntrack-textfile write [FILE] [options]\n",
        """\
  write  Take one snapshot and write it to FILE, atomically, for the textfile
         collector of node_exporter. FILE defaults to -, the standard output.
""",
        """\
  --file.mode=MODE                 Permissions of FILE, in octal [default: 0644]
  --file.group=NAME                Group of FILE; without it, the group of the
                                   process
  --state.file=FILE                Keep the counters from run to run in this
                                   file; without it write has no counters
""",
    ),
    "serve": (
        "  conntrack-textfile serve [options]\n",
        """\
  serve  Take a snapshot every interval and serve the last one over HTTP.
""",
        """\
  --collector.interval=SECONDS     Interval between snapshots [default: 60]
  --collector.event-buffer=BYTES   Receive buffer for events of ended
                                   connections, about 1,280 bytes each; the
                                   kernel doubles the value; 0 for no events
                                   [default: 33554432]
  --state.file=FILE                Keep the counters over a restart in this
                                   file; without it they start at 0
  --web.listen-address=ADDR        HOST:PORT, [IPV6]:PORT, or :PORT for all
                                   addresses; may be repeated [default: :9095]
  --web.telemetry-path=PATH        Path of the metrics [default: /metrics]
  --web.disable-exporter-metrics   Exclude metrics about serve itself
                                   (process_*, python_*, promhttp_*)
  --web.max-requests=N             Maximum number of parallel scrapes; more get
                                   status 503; 0 for no limit [default: 40]
  --web.config.file=FILE           TLS, passwords and headers, in the format of
                                   the exporter toolkit of Prometheus
  --web.systemd-socket             Use the sockets passed by systemd (socket
                                   activation), if any, instead of addresses
""",
    ),
    "top": (
        "  conntrack-textfile top [options]\n",
        """\
  top    Show one snapshot as a table on the terminal, largest first.
""",
        """\
  -n N                             Number of rows; without it 20, or as many as
                                   fit the screen with --watch
  --watch                          Refresh every interval and show rates; on a
                                   terminal interactive (? lists the keys)
  --collector.interval=SECONDS     Interval between snapshots [default: 2]
""",
    ),
    "check": (
        "  conntrack-textfile check [FILE] [options]\n",
        """\
  check  Check what works on this host and print what to do about the rest.
         Takes the options of write and serve, and changes nothing. The exit
         status is 1 if something required does not work.
""",
        "",  # see _own()
    ),
}

# Options that may be repeated, with the placeholders of their values.
REPEATED = {
    "--filter.include": "EXPR",
    "--filter.exclude": "EXPR",
    "--hosts.file": "FILE",
    "--netns": "NAME",
    "--web.listen-address": "ADDR",
}

_HELP = """\
  conntrack-textfile -h | --help
  conntrack-textfile -v | -V | --version
"""

_OPTIONS = """\
  --collector.source=SOURCE        Source of the table: netlink, procfs or auto
                                   (netlink where it is permitted and procfs is
                                   mounted on /proc) [default: auto]
  --collector.families=FAMILIES    Families by key: live (gauges of live
                                   connections) and traffic (counters)
                                   [default: live,traffic]
  --configure.nf_conntrack_acct    Enable the kernel's packet and byte counters
                                   (net.netfilter.nf_conntrack_acct=1) at start
  --collector.nat=SWITCH           on or off: count translated connections and
                                   the source ports they use [default: on]
  --filter.include=EXPR            Count only entries that match; if repeated,
                                   that match any of them. EXPR is one or more
                                   of src=CIDR, dst=CIDR, l3protocol=NAME,
                                   l4protocol=NAME, dport=N or N-M, zone=N,
                                   mark=VALUE[/MASK], egress=CIDR and
                                   backend=CIDR, joined by commas (logical and)
  --filter.exclude=EXPR            Do not count entries that match, even if
                                   included; may be repeated
  --aggregate.by=LABELS            Labels to keep; series are summed over the
                                   others. Not in the default: zone, mark,
                                   egress (the translated source address) and
                                   backend (the translated destination address)
                      [default: src,dst,l3protocol,l4protocol,l7protocol,dport]
  --aggregate.src-prefix=V4[,V6]   Aggregate source addresses by network, with
                                   these prefix lengths for IPv4 and IPv6
  --aggregate.dst-prefix=V4[,V6]   The same for destination addresses
  --aggregate.ports=PORTS          all, or known: ports without a service name
                                   become other [default: all]
  --aggregate.mark-mask=MASK       Mask for the mark, decimal or hexadecimal
                                   after 0x [default: 0xffffffff]
  --networks.file=FILE             Names for networks: a CIDR and a name in each
                                   line
  --hosts.file=FILE                Names for addresses: in the format of
                                   /etc/hosts, or leases of dnsmasq, Kea or ISC
                                   dhcpd; may be repeated, later files win
  --services.file=FILE             Names for ports, which override the built-in
                                   ones: in the format of /etc/services
  --limit.keys=N                   Maximum number of keys in each family; the
                                   smaller ones are summed up as other; 0 for no
                                   limit [default: 10000]
  --limit.by=MEASURE               Rank keys by bytes, packets or connections
                                   [default: bytes]
  --nat.destinations=N             Number of busiest destinations of each egress
                                   address to show the ports of [default: 10]
  --netns=NAME                     Network namespace to read: a name in
                                   /run/netns, a path, pid:N, host (that of the
                                   process) or all (each name in /run/netns);
                                   may be repeated
  --path.procfs=DIR                Mount point of procfs [default: /proc]
  --log.level=LEVEL                debug, info, warn or error [default: info]
  --log.format=FORMAT              logfmt or json [default: logfmt]
"""

# Handled before docopt parses the rest.
_HELP_OPTIONS = """\
  -h --help                        Show help, after a command its own
  -v -V --version                  Show version, engine and Python version
"""

_EXAMPLES = {
    "write": (
        "conntrack-textfile write | head",
        "conntrack-textfile write /var/lib/prometheus/node-exporter/conntrack.prom",
        "conntrack-textfile write --aggregate.by=src,l4protocol --limit.keys=100",
    ),
    "serve": (
        "conntrack-textfile serve --web.listen-address=127.0.0.1:9095",
        "conntrack-textfile serve --web.config.file=web.yml --aggregate.src-prefix=24",
    ),
    "top": (
        "conntrack-textfile top --watch --aggregate.by=src,l7protocol",
        "conntrack-textfile top --filter.include=dport=443 -n 50",
    ),
    "check": (
        "conntrack-textfile check",
        "conntrack-textfile check /var/lib/prometheus/node-exporter/conntrack.prom",
    ),
}

# Values of --collector.families.
FAMILIES = ("live", "traffic")


def usage(*commands: str) -> str:
    """Return the usage text of some commands; of check alone with all of its options."""
    calls, texts, _ = zip(*[_COMMANDS[command] for command in commands], strict=True)
    examples = [f"  {example}\n" for command in commands for example in _EXAMPLES[command]]
    return "\n".join(
        [
            _SUMMARY,
            f"Usage:\n{''.join(calls)}{_HELP}",
            f"Commands:\n{''.join(texts)}",
            *[
                f"{command.title()} options:\n{_own(command)}"
                for command in commands
                if command != "check" or len(commands) == 1
            ],
            f"Options:\n{_OPTIONS}{_HELP_OPTIONS}",
            f"Examples:\n{''.join(examples)}",
        ]
    )


def _own(command: str) -> str:
    """Return the usage lines of a command's own options; for check those of write and serve."""
    if command != "check":
        return _COMMANDS[command][2]
    found: dict[str, str] = {}
    for text in re.split(r"^(?=  -)", _own("write") + _own("serve"), flags=re.MULTILINE):
        found.setdefault(text.partition("=")[0], text)
    return "".join(found.values())


class Described(NamedTuple):
    """An option in the usage text."""

    names: tuple[str, ...]
    value: str  # the placeholder of its value, "" if it takes none
    text: str  # its description, without the default


def described(command: str) -> list[Described]:
    """Return the options of a command, in the order of the usage text."""
    found = []
    text = f"{_own(command)}{_OPTIONS}{_HELP_OPTIONS}"
    for head, rest in re.findall(r"^  (-.*?)  +(.*(?:\n   .*)*)", text, re.MULTILINE):
        names = tuple(re.findall(r"--?[\w.-]+", re.sub("[= ][A-Z].*", "", head)))
        value = re.search("[= ]([A-Z].*)", head)
        words = " ".join(rest.partition("[default: ")[0].split())
        found.append(Described(names, value[1] if value else "", words))
    return found


def _names(*commands: str) -> list[str]:
    """Return the option names of some commands, without duplicates."""
    rows = [row for command in commands for row in described(command)]
    return list(dict.fromkeys(name for row in rows for name in row.names))


_COMMANDS_ARE = "the commands are write, serve, top and check"

_MAX_FILE_SIZE = 1 << 24  # characters
_MAX_REASON_SIZE = 300  # characters
_MAX_NAMESPACE_SIZE = 255  # bytes

_Parsed = TypeVar("_Parsed")


class Address(NamedTuple):
    """A TCP address to listen on. An empty host stands for all addresses, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_ADDRESS = Address("", 9095)


class Options(NamedTuple):
    """A parsed command line."""

    command: str  # write, serve, top or check
    source: str
    configure_accounting: bool
    proc_root: str
    plan: Plan
    limit: Limit
    log_level: str
    log_format: str
    families: tuple[str, ...] = FAMILIES  # a subset
    networks_file: str = ""  # "": none
    services_file: str = ""
    netns: tuple[str, ...] = ()  # (): that of the process, without a label
    hosts_files: tuple[str, ...] = ()
    names_until: float = float("inf")  # Unix time at which a name in plan expires

    # Of write and check; in check "" if it was not given:
    file: str = "-"
    file_mode: int = 0o644
    file_group: int | None = None

    # Of write, serve and check:
    state_file: str = ""  # "": none

    # Of serve, check and top:
    interval: float = 60.0  # seconds

    # Of serve and check:
    event_buffer: int = 0  # bytes
    listen: tuple[Address, ...] = ()  # of check: () if none was given
    telemetry_path: str = ""
    exporter_metrics: bool = True
    max_requests: int = 0  # 0: no limit
    web_config: str = ""  # "": none
    systemd_socket: bool = False

    # Of top:
    rows: int | None = None  # None: as many as fit the screen, or 20
    watch: bool = False


def parse(argv: list[str], version: Callable[[], str] = lambda: __version__) -> Options:
    """Parse a command line, without the name of the program.

    version: called for --version; returns what is printed after the name of the program.
    Raises UsageError, SystemExit after --help and --version, and OutputError where these
    cannot be printed.
    """
    command = command_of(argv)
    if any(word[:2] in _HELP_FLAGS or word[:3] in _HELP_FLAGS for word in argv):
        _print_help(argv, command, version)
    if not command:
        raise UsageError(_without_command(argv))
    texts = f"{_own(command)}{_OPTIONS}"
    if command == "check":
        # An address that the user gave is distinguished from the default.
        texts = texts.replace(f"[default: {DEFAULT_ADDRESS}]", "")
    again = [f"[{name}={value}]..." for name, value in REPEATED.items() if _is_option(name, texts)]
    try:
        # After -- a FILE may begin with -.
        pattern = _COMMANDS[command][0].rstrip().replace("[FILE]", "[--] [FILE]")
        # docopt's time grows with the text: one command, without descriptions.
        given = docopt.docopt(
            f"Usage:\n{pattern} {' '.join(again)}\n\nOptions:\n{texts}",
            argv,
            default_help=False,
        )
    except docopt.DocoptExit as error:
        raise UsageError(_explain(error, command, argv)) from None
    options = Options(
        command=command,
        netns=_netns(given),
        source=_choice(given, "--collector.source", ("auto", "procfs", "netlink")),
        families=_some_of(given, "--collector.families", FAMILIES),
        configure_accounting=given["--configure.nf_conntrack_acct"],
        proc_root=_not_empty("--path.procfs", given["--path.procfs"]),
        plan=_plan(given),
        networks_file=_optional(given, "--networks.file"),
        services_file=_optional(given, "--services.file"),
        hosts_files=tuple(_not_empty("--hosts.file", file) for file in given["--hosts.file"]),
        limit=Limit(
            keys=_count(given, "--limit.keys"),
            by=_choice(given, "--limit.by", tuple(MEASURES)),
            destinations=_count(given, "--nat.destinations"),
        ),
        log_level=_choice(given, "--log.level", ("debug", "info", "warn", "error")),
        log_format=_choice(given, "--log.format", ("logfmt", "json")),
    )
    options = {"write": _write, "serve": _serve, "top": _top, "check": _check}[command](
        options, given
    )
    # check reads the files of names itself and reports each that is wrong.
    return options if command == "check" else with_names(options)


_HELP_FLAGS = ("-h", "-v", "-V", "--h", "--v")


def _print_help(argv: list[str], command: str, version: Callable[[], str]) -> None:
    """Print the help or the version and exit, unless the word is the value of an option."""
    for word in _words(argv):
        short = re.fullmatch("-[hvV]+", word)
        if (short and "h" in word) or (len(word) > 2 and "--help".startswith(word)):
            textfile.stream([(usage(command) if command else usage(*_COMMANDS)).encode()])
            raise SystemExit
        if short or (len(word) > 2 and "--version".startswith(word)):
            line = f"conntrack-textfile {version()}\n"
            textfile.stream([line.encode(errors="backslashreplace")])
            raise SystemExit


def _words(argv: list[str]) -> Iterator[str]:
    """Yield the options and arguments, without the values of options, up to a --."""
    words = iter(argv)
    for word in words:
        if word == "--":
            return
        yield word
        if word.startswith("-") and _takes_value(word):
            next(words, None)


def command_of(argv: list[str]) -> str:
    """Return the command of a command line, "" if there is none.

    It is the first word that is neither an option nor the value of one.
    """
    for word in _words(argv):
        if not word.startswith("-"):
            return word if word in _COMMANDS else ""
    return ""


def _takes_value(name: str) -> bool:
    """Return whether an option, possibly abbreviated, takes the next word as its value."""
    texts = _OPTIONS + "".join([text for *_, text in _COMMANDS.values()])
    rest = r"[\w.-]*" if name.startswith("--") else ""  # docopt accepts abbreviated long options
    return re.search(rf"^ +{re.escape(name)}{rest}[= ][A-Z]", texts, re.MULTILINE) is not None


def _without_command(argv: list[str]) -> str:
    """Return the error message for a command line without a command."""
    for word in _words(argv):
        name = word.partition("=")[0]
        if not word.startswith("-"):
            meant = _suggestion(word, list(_COMMANDS)) or f": {_COMMANDS_ARE}"
            return f"unexpected argument {word!r}{meant}"
        names = _names(*_COMMANDS)
        if not any(known.startswith(name) or word[:2] == known for known in names):
            return f"{name} is not an option{_suggestion(name, names)}"
    return f"a command is missing: {_COMMANDS_ARE}"


def _suggestion(word: str, known: list[str]) -> str:
    """Return ": did you mean ...?" for a word close to a known one, else ""."""
    # Imported here: only errors need it.
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return f": did you mean {close[0]}?" if close else ""


def _write(options: Options, given: docopt.ParsedOptions) -> Options:
    file = _not_empty("FILE", "-" if given["FILE"] is None else given["FILE"])
    state_file = _optional(given, "--state.file")
    if state_file and file != "-":
        of_state = map(os.path.realpath, (state_file, f"{state_file}.lock"))
        if os.path.realpath(file) in of_state:
            raise UsageError(f"FILE and --state.file are both {file}: name two files")
    return options._replace(
        file=file,
        file_mode=_mode(given, "--file.mode"),
        file_group=_group(given, "--file.group"),
        state_file=state_file,
    )


def _check(options: Options, given: docopt.ParsedOptions) -> Options:
    file = None if given["FILE"] is None else _not_empty("FILE", given["FILE"])
    options = _serve(_write(options, given), given)
    return options._replace(file="" if file is None else file)


def _serve(options: Options, given: docopt.ParsedOptions) -> Options:
    return options._replace(
        interval=_seconds(given, "--collector.interval"),
        state_file=_optional(given, "--state.file"),
        event_buffer=_count(given, "--collector.event-buffer"),
        listen=tuple(map(_address, given["--web.listen-address"])),
        telemetry_path=_path(given, "--web.telemetry-path"),
        exporter_metrics=not given["--web.disable-exporter-metrics"],
        max_requests=_count(given, "--web.max-requests"),
        web_config=given["--web.config.file"] or "",
        systemd_socket=given["--web.systemd-socket"],
    )


def _top(options: Options, given: docopt.ParsedOptions) -> Options:
    return options._replace(
        interval=_seconds(given, "--collector.interval"),
        rows=None if given["-n"] is None else _count(given, "-n"),
        watch=given["--watch"],
    )


def _plan(given: docopt.ParsedOptions) -> Plan:
    parsed = Plan(
        labels=_some_of(given, "--aggregate.by", labels.LABELS),
        src_prefix=_prefix(given, "--aggregate.src-prefix"),
        dst_prefix=_prefix(given, "--aggregate.dst-prefix"),
        known_ports=_choice(given, "--aggregate.ports", ("all", "known")) == "known",
        mark_mask=_bits(given, "--aggregate.mark-mask"),
        nat=_choice(given, "--collector.nat", ("on", "off")) == "on",
    )
    if given["--filter.include"] or given["--filter.exclude"]:
        parsed = parsed._replace(
            include=_filters(given, "--filter.include"),
            exclude=_filters(given, "--filter.exclude"),
        )
    return parsed


def with_names(options: Options) -> Options:
    """Return the options with the names read from the files. Raises UsageError."""
    plan = options.plan
    if options.networks_file:
        named = _file("--networks.file", options.networks_file, networks.parse_names)
        plan = plan._replace(networks=named)
    if options.services_file:
        ports = _file("--services.file", options.services_file, services.parse_services)
        plan = plan._replace(services=ports)
    if options.hosts_files:
        # Imported here: most runs have no such file.
        from conntrack_textfile import hosts

        try:
            found = hosts.read(options.hosts_files, time.time())
        except OSError as error:
            reason = f"cannot read {error.filename}: {error.strerror}"
            raise UsageError(f"--hosts.file: {reason}") from None
        except ValueError as error:
            raise UsageError(f"--hosts.file: {_short(error)}") from None
        plan = plan._replace(hosts=hosts.labels(found.names, plan.networks))
        options = options._replace(names_until=found.until)
    return options._replace(plan=plan)


def watch_names(options: Options) -> Reloader[Plan]:
    """Return a reloader of the plan: reads the files again when one changes or a name expires."""
    # Imported here: write reads them once.
    from conntrack_textfile import hosts
    from conntrack_textfile.reload import Reloader, Stamps, stamp

    files = [file for file in (options.networks_file, options.services_file) if file]
    stamped = [*files, *(other for file in options.hosts_files for other in hosts.watched(file))]
    latest = options

    def read(before: Plan | None) -> tuple[Plan, Stamps]:
        nonlocal latest
        stamps = {file: stamp(file) for file in stamped}
        # parse() has read them already.
        if before is None:
            return options.plan, stamps
        latest = with_names(options)
        # The renewal of a lease changes the file but no name.
        return before if latest.plan == before else latest.plan, stamps

    return Reloader(
        " and ".join([*files, *options.hosts_files]),
        read,
        lambda: time.time() >= latest.names_until,
    )


def _filters(given: docopt.ParsedOptions, name: str) -> tuple[Filter, ...]:
    try:
        return tuple(filters.parse(text, labels.CONDITIONS) for text in given[name])
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _file(name: str, path: str, parse: Callable[[str], _Parsed]) -> _Parsed:
    """Read and parse a text file in UTF-8. Raises UsageError."""
    try:
        with open(path, encoding="utf-8-sig", opener=regular) as file:
            text = file.read(_MAX_FILE_SIZE + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(f"{name}: cannot read {path}: {reason}") from None
    if len(text) > _MAX_FILE_SIZE:
        raise UsageError(f"{name}: {path} is too large, over {_MAX_FILE_SIZE >> 20} MiB")
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{name}: {path}, {_short(error)}") from None


def _short(error: ValueError) -> str:
    """Return the message of an error, truncated: it may quote a file."""
    reason = str(error)
    return reason if len(reason) <= _MAX_REASON_SIZE else f"{reason[:_MAX_REASON_SIZE]}..."


def _some_of(given: docopt.ParsedOptions, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a comma-separated list, in the order of the known ones."""
    value = given[name]
    wanted = value.split(",") if value else []
    for word in wanted:
        if word not in known:
            raise UsageError(f"{name} takes some of {','.join(known)}, not {word!r}")
        if wanted.count(word) > 1:
            raise UsageError(f"{name} has {word} twice")
    return tuple(word for word in known if word in wanted)


def _prefix(given: docopt.ParsedOptions, name: str) -> Prefix:
    value = given[name]
    if value is None:
        return WHOLE
    v4, comma, v6 = value.partition(",")
    if _is_number(v4) and int(v4) <= 32:
        if not comma:
            return Prefix(int(v4), 128)
        if _is_number(v6) and int(v6) <= 128:
            return Prefix(int(v4), int(v6))
    raise UsageError(
        f"{name} must be a prefix length for IPv4, up to 32, and may have another "
        f"for IPv6, up to 128, after a comma, not {value!r}"
    )


def _bits(given: docopt.ParsedOptions, name: str) -> int:
    try:
        return filters.parse_bits(given[name])
    except ValueError as error:
        raise UsageError(f"{name}: {error}, not {given[name]!r}") from None


def _explain(error: docopt.DocoptExit, command: str, argv: list[str]) -> str:
    """Return the error message for a command line that docopt rejected."""
    reason = str(error.code).partition("\n")[0]
    # docopt lists what is left over as "[Option(None, '--name', ...), Argument(None, 'word')]".
    left = re.search(r"\[(Option|Argument)\(.*?['\"](.*?)['\"]", reason)
    if left is None:
        return reason  # "--log.level requires argument"
    if left[1] == "Argument":
        return f"unexpected argument {left[2]!r}{_file_twice(command, argv)}"
    name = left[2]
    if _is_option(name, _own(command) + _OPTIONS):
        return f"{name} may be given only once"
    if of := [other for other, (_, _, text) in _COMMANDS.items() if _is_option(name, text)]:
        return f"{name} is an option of {' and '.join(of)}, not of {command}"
    return f"{name} is not an option{_suggestion(name, _names(command))}"


def _file_twice(command: str, argv: list[str]) -> str:
    """Return ": FILE is ... already" where FILE was given twice, else ""."""
    words = [word for word in _words(argv) if word == "-" or not word.startswith("-")]
    if "[FILE]" not in _COMMANDS[command][0] or len(words) < 3:
        return ""
    return f": FILE is {words[1]!r} already"


def _is_option(name: str, text: str) -> bool:
    return re.search(rf"^ +(-\w )?{re.escape(name)}(?=[= ])", text, re.MULTILINE) is not None


def _not_empty(name: str, value: str) -> str:
    if not value or "\0" in value:
        raise UsageError(f"{name} must not be empty")
    return value


def _optional(given: docopt.ParsedOptions, name: str) -> str:
    return "" if given[name] is None else _not_empty(name, given[name])


def _seconds(given: docopt.ParsedOptions, name: str) -> float:
    value = given[name]
    whole, point, part = value.partition(".")
    if _is_number(whole) and (_is_number(part) or not point) and float(value) > 0:
        return float(value)
    raise UsageError(f"{name} must be above 0 and below 1000000000 seconds, not {value!r}")


def _count(given: docopt.ParsedOptions, name: str) -> int:
    value = given[name]
    if _is_number(value):
        return int(value)
    raise UsageError(f"{name} must be a whole number, 0 to 999999999, not {value!r}")


def _netns(given: docopt.ParsedOptions) -> tuple[str, ...]:
    """Return the values of --netns, without duplicates. Raises UsageError."""
    names = tuple(dict.fromkeys(map(_namespace, given["--netns"])))
    if given["--collector.source"] == "procfs" and set(names) - {"host"}:
        raise UsageError(
            "--netns: the proc file shows the network namespace of the process only; "
            "others are read with --collector.source=netlink"
        )
    return names


def _namespace(name: str) -> str:
    """Return a value of --netns, which is also the value of a label. Raises UsageError."""
    kind, colon, number = name.partition(":")
    by_number = bool(colon) and kind == "pid"
    if (
        name not in ("", ".", "..")
        and "\0" not in name
        and len(os.fsencode(name)) <= _MAX_NAMESPACE_SIZE
        and name.isprintable()  # nor undecodable bytes (surrogates)
        and (not by_number or (_is_number(number) and int(number) > 0))
    ):
        return name
    raise UsageError(
        "--netns must be a name under /run/netns, a path, pid: and the number of a process, host "
        f"or all, in at most {_MAX_NAMESPACE_SIZE} bytes, not {name[:_MAX_NAMESPACE_SIZE]!r}"
    )


def _mode(given: docopt.ParsedOptions, name: str) -> int:
    value: str = given[name]
    digits = value[1:] if len(value) == 4 and value[0] == "0" else value
    # Neither writable for others nor executable.
    if len(digits) == 3 and set(digits) <= set("046") and digits[2] != "6":
        return int(digits, 8)
    raise UsageError(
        f"{name} must be in octal, such as 0640: read (4) and write (2) for owner and group, "
        f"read for others, not {value!r}"
    )


def _group(given: docopt.ParsedOptions, name: str) -> int | None:
    if given[name] is None:
        return None
    # Imported here: few runs need it.
    import grp

    value = _not_empty(name, given[name])
    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        raise UsageError(f"{name}: there is no group {value!r}") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _choice(given: docopt.ParsedOptions, name: str, choices: tuple[str, ...]) -> str:
    value: str = given[name]
    if value in choices:
        return value
    raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _path(given: docopt.ParsedOptions, name: str) -> str:
    value: str = given[name]
    plain = all("!" <= letter <= "~" and letter not in "?#%" for letter in value)
    if plain and value.startswith("/") and not value.startswith(("//", "/-/")):
        return value
    raise UsageError(f"{name} must be a path that begins with / (and not with /-/), not {value!r}")


def _address(value: str) -> Address:
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]\s]*)):([0-9]{1,5})", value)
    if match and int(match[3]) <= 65535 and (match[1] is None or _is_ipv6(match[1])):
        return Address(match[1] or match[2] or "", int(match[3]))
    raise UsageError(
        "--web.listen-address must be HOST:PORT, [IPV6]:PORT or :PORT "
        f"with a port up to 65535, not {value!r}"
    )


def _is_ipv6(text: str) -> bool:
    # Imported here: the default address does not need it.
    from socket import AF_INET6, inet_pton

    try:
        inet_pton(AF_INET6, text.partition("%")[0])  # fe80::1%eth0
    except (OSError, ValueError):
        return False
    return True
