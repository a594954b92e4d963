"""The command line: the usage text, which specifies it, and what it parses to."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import docopt

from conntrack_textfile import __version__, filters, labels, networks, services
from conntrack_textfile.aggregate import MEASURES, Limit
from conntrack_textfile.errors import UsageError
from conntrack_textfile.networks import WHOLE, Prefix
from conntrack_textfile.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntrack_textfile.filters import Filter
    from conntrack_textfile.reload import Reloader

_SUMMARY = """\
Prometheus metrics from the Linux connection tracking table.
"""

# Of each command: how it is called, what it does, and the options that are its alone.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "write": (
        "  conntrack-textfile write [FILE] [options]\n",
        """\
  write  Take one snapshot and write it to FILE, atomically, for the textfile
         collector of node_exporter. FILE defaults to -, the standard output.
""",
        """\
  --file.mode=MODE                 Permissions of FILE, in octal [default: 0644]
  --file.group=NAME                Group of FILE: that of its writer if not
                                   given
  --state.file=FILE                What must outlive a run: with it there are
                                   counters
""",
    ),
    "serve": (
        "  conntrack-textfile serve [options]\n",
        """\
  serve  Take a snapshot every interval and serve the last one over HTTP.
""",
        """\
  --collector.interval=SECONDS     Time from snapshot to snapshot [default: 60]
  --collector.event-buffer=BYTES   Receive buffer of events of ended
                                   connections, each of about 1,280 bytes; the
                                   kernel doubles it [default: 33554432]
  --state.file=FILE                What must outlive a restart: without it
                                   counters begin at 0
  --web.listen-address=ADDR        HOST:PORT, [IPV6]:PORT, or :PORT for all
                                   addresses; may be given again
                                   [default: :9095]
  --web.telemetry-path=PATH        Path of the metrics [default: /metrics]
  --web.disable-exporter-metrics   Leave out the metrics about serve itself
                                   (process_*, python_*, promhttp_*)
  --web.max-requests=N             Parallel scrapes, above them status 503; 0
                                   for no limit [default: 40]
  --web.config.file=FILE           TLS, passwords and headers, in the format of
                                   the exporter toolkit of Prometheus
  --web.systemd-socket             Serve on the sockets that systemd hands over,
                                   where it does, in place of addresses
""",
    ),
    "top": (
        "  conntrack-textfile top [options]\n",
        """\
  top    Show one snapshot as a table on the terminal, largest first.
""",
        """\
  -n N                             Rows: if not given 20, or as many as fit into
                                   the view of --watch
  --watch                          Repeat it, with rates between snapshots: on
                                   a terminal as a view with keys (? shows them)
  --collector.interval=SECONDS     Time from snapshot to snapshot [default: 2]
""",
    ),
    "check": (
        "  conntrack-textfile check [FILE] [options]\n",
        """\
  check  Say in a few lines what works here and what not, and what to do. Takes
         the options of write and serve, changes nothing, and has exit status 1
         where something that is needed fails.
""",
        "",  # see _own
    ),
}

# Options that may be given again, with what stands for their values.
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
  --collector.source=SOURCE        Where the table is read: netlink, procfs, or
                                   auto, which is netlink where the proc root is
                                   /proc and it is permitted [default: auto]
  --collector.families=FAMILIES    live (gauges of live connections by key) and
                                   traffic (counters) [default: live,traffic]
  --configure.nf_conntrack_acct    Try to switch on the kernel's packet and byte
                                   counters (net.netfilter.nf_conntrack_acct=1)
                                   at start
  --collector.nat=WHETHER          on or off: count translated connections and
                                   the source ports they take [default: on]
  --filter.include=EXPR            Keep only what it describes; given again,
                                   what any describes. EXPR is one or more of
                                   src=CIDR, dst=CIDR, l3protocol=NAME,
                                   l4protocol=NAME, dport=N or N-M, zone=N,
                                   mark=VALUE[/MASK], egress=CIDR and
                                   backend=CIDR, joined by commas, which mean
                                   and
  --filter.exclude=EXPR            Leave out what it describes, whatever is
                                   included; may be given again
  --aggregate.by=LABELS            Labels to keep, the others are summed over.
                                   Beside the default there are zone, mark,
                                   egress (the address that the source is
                                   translated to) and backend (the same of the
                                   destination)
                      [default: src,dst,l3protocol,l4protocol,l7protocol,dport]
  --aggregate.src-prefix=V4[,V6]   Show the networks of sources in place of
                                   addresses, by the length of the prefix for
                                   IPv4 and IPv6
  --aggregate.dst-prefix=V4[,V6]   The same for destinations
  --aggregate.ports=PORTS          all, or known: ports without a service name
                                   become other [default: all]
  --aggregate.mark-mask=MASK       Bits of the mark to keep, decimal or 0x and
                                   hexadecimal digits [default: 0xffffffff]
  --networks.file=FILE             Names for networks: lines of CIDR and name
  --hosts.file=FILE                Names for single addresses: as in /etc/hosts,
                                   or leases of dnsmasq, Kea or ISC dhcpd; may
                                   be given again, later files win
  --services.file=FILE             Names for ports, over the built-in ones:
                                   lines as in /etc/services
  --limit.keys=N                   Series of each family: the largest keys, all
                                   others are summed up as other; 0 for no limit
                                   [default: 10000]
  --limit.by=WHAT                  What the largest are by: bytes, packets or
                                   connections [default: bytes]
  --nat.destinations=N             Busiest destinations of each egress address
                                   to show the ports of [default: 10]
  --netns=NAME                     Read the table of another network namespace:
                                   a name under /run/netns, a path, pid:N, host
                                   (one's own), or all, which is all names there
                                   are; may be given again
  --path.procfs=DIR                Where procfs is mounted [default: /proc]
  --log.level=LEVEL                debug, info, warn or error [default: info]
  --log.format=FORMAT              logfmt or json [default: logfmt]
"""

# Answered before docopt sees them.
_ASK = """\
  -h --help                        Show this text, with a command its part
  -v -V --version                  Show the version, the engine and Python
"""

# Of each command.
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


# Which families by key there are.
FAMILIES = ("live", "traffic")


def usage(*commands: str) -> str:
    """The usage text of some commands. One of them alone has all of its options."""
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
            f"Options:\n{_OPTIONS}{_ASK}",
            f"Examples:\n{''.join(examples)}",
        ]
    )


def _own(command: str) -> str:
    """The options that are not of all commands. Of check all that write and serve take."""
    if command != "check":
        return _COMMANDS[command][2]
    found: dict[str, str] = {}
    for text in re.split(r"^(?=  -)", _own("write") + _own("serve"), flags=re.MULTILINE):
        found.setdefault(text.partition("=")[0], text)
    return "".join(found.values())


class Described(NamedTuple):
    """An option as the usage text has it."""

    names: tuple[str, ...]
    value: str  # what stands for its value, "" where it takes none
    text: str  # without what is in brackets at its end


def described(command: str) -> list[Described]:
    """The options that a command takes."""
    found = []
    text = f"{_own(command)}{_OPTIONS}{_ASK}"
    for head, rest in re.findall(r"^  (-.*?)  +(.*(?:\n   .*)*)", text, re.MULTILINE):
        names = tuple(re.findall(r"--?[\w.-]+", re.sub("[= ][A-Z].*", "", head)))
        value = re.search("[= ]([A-Z].*)", head)
        words = " ".join(rest.partition("[default: ")[0].split())
        found.append(Described(names, value[1] if value else "", words))
    return found


def _names(*commands: str) -> list[str]:
    """The names of all options of some commands, each once."""
    rows = [row for command in commands for row in described(command)]
    return list(dict.fromkeys(name for row in rows for name in row.names))


_NO_COMMAND = "say what to do: write, serve, top or check"

_MAX_FILE_SIZE = 1 << 24  # characters
_MAX_REASON_SIZE = 300  # characters
_MAX_NAMESPACE_SIZE = 255  # bytes

_Parsed = TypeVar("_Parsed")


class Address(NamedTuple):
    """Where to listen. An empty host stands for all addresses, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_ADDRESS = Address("", 9095)


class Options(NamedTuple):
    """All that the user asked for."""

    command: str  # write, serve, top or check
    source: str
    configure_accounting: bool
    proc_root: str
    plan: Plan
    limit: Limit
    log_level: str
    log_format: str
    families: tuple[str, ...] = FAMILIES  # some of these
    networks_file: str = ""  # "": none
    services_file: str = ""
    netns: tuple[str, ...] = ()  # none: one's own, without a label
    hosts_files: tuple[str, ...] = ()
    names_until: float = float("inf")  # when a name of plan ends, in seconds since the epoch

    # Of write, and of check, where it is "" if it was not given:
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
    rows: int | None = None  # None: as many as there is room for, or 20
    watch: bool = False


def parse(argv: list[str], version: Callable[[], str] = lambda: __version__) -> Options:
    """The options of a command line (without the program's name).

    Raises UsageError, and SystemExit after --help and --version, which print. What
    follows the name of the program in the latter is asked for only then.
    """
    command = command_of(argv)
    if any(word[:2] in _ASKS or word[:3] in _ASKS for word in argv):
        _answer(argv, command, version)
    if not command:
        raise UsageError(_without_command(argv))
    texts = f"{_own(command)}{_OPTIONS}"
    if command == "check":
        # So that an address that was given is told from the default.
        texts = texts.replace(f"[default: {DEFAULT_ADDRESS}]", "")
    again = [f"[{name}={value}]..." for name, value in REPEATED.items() if _is_option(name, texts)]
    try:
        # Of one command, and without what is said to people: it takes time by both.
        given = docopt.docopt(
            f"Usage:\n{_COMMANDS[command][0].rstrip()} {' '.join(again)}\n\nOptions:\n{texts}",
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
    # It says of the files too whether they are right.
    return options if command == "check" else with_names(options)


_ASKS = ("-h", "-v", "-V", "--h", "--v")


def _answer(argv: list[str], command: str, version: Callable[[], str]) -> None:
    """Print what was asked for, and end. Nothing where it was the value of an option."""
    for word in _words(argv):
        short = re.fullmatch("-[hvV]+", word)
        if (short and "h" in word) or (len(word) > 2 and "--help".startswith(word)):
            print(usage(command) if command else usage(*_COMMANDS), end="")
            raise SystemExit
        if short or (len(word) > 2 and "--version".startswith(word)):
            print(f"conntrack-textfile {version()}")
            raise SystemExit


def _words(argv: list[str]) -> Iterator[str]:
    """The words that are no value of an option before them, up to a --."""
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
    """Whether an option, as it was written, takes the next word."""
    texts = _OPTIONS + "".join([text for *_, text in _COMMANDS.values()])
    rest = r"[\w.-]*" if name.startswith("--") else ""  # docopt takes the beginning of a long one
    return re.search(rf"^ +{re.escape(name)}{rest}[= ][A-Z]", texts, re.MULTILINE) is not None


def _without_command(argv: list[str]) -> str:
    """What is wrong with a command line that has no command."""
    for word in _words(argv):
        name = word.partition("=")[0]
        if not word.startswith("-"):
            return f"unexpected argument {word!r}{_meant(word, list(_COMMANDS))}"
        names = _names(*_COMMANDS)
        if not any(known.startswith(name) or word[:2] == known for known in names):
            return f"{name} is not an option{_meant(name, names)}"
    return _NO_COMMAND


def _meant(word: str, known: list[str]) -> str:
    """A question, where a misspelt word is like one that is known."""
    # Imported here: for an error alone.
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return f": did you mean {close[0]}?" if close else ""


def _write(options: Options, given: docopt.ParsedOptions) -> Options:
    return options._replace(
        file=_not_empty("FILE", "-" if given["FILE"] is None else given["FILE"]),
        file_mode=_mode(given, "--file.mode"),
        file_group=_group(given, "--file.group"),
        state_file=_optional(given, "--state.file"),
    )


def _check(options: Options, given: docopt.ParsedOptions) -> Options:
    file = None if given["FILE"] is None else _not_empty("FILE", given["FILE"])
    options = _serve(_write(options, given), given)
    return options._replace(file="" if file is None else file)


def _serve(options: Options, given: docopt.ParsedOptions) -> Options:
    return options._replace(
        interval=_seconds(given, "--collector.interval"),
        state_file=_optional(given, "--state.file"),
        event_buffer=_bytes(given, "--collector.event-buffer"),
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
    """Options with the names that are in the files now. Raises UsageError."""
    plan = options.plan
    if options.networks_file:
        named = _file("--networks.file", options.networks_file, networks.parse_names)
        plan = plan._replace(networks=named)
    if options.services_file:
        ports = _file("--services.file", options.services_file, services.parse_services)
        plan = plan._replace(services=ports)
    if options.hosts_files:
        # Imported here, as most runs have none.
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
    """The plan with the names of the files, read again when they change or a name ends."""
    # Imported here: one snapshot reads them once.
    from conntrack_textfile import hosts
    from conntrack_textfile.reload import Reloader, Stamps, stamp

    files = [file for file in (options.networks_file, options.services_file) if file]
    stamped = [*files, *(other for file in options.hosts_files for other in hosts.watched(file))]
    latest = options

    def read(before: Plan | None) -> tuple[Plan, Stamps]:
        nonlocal latest
        stamps = {file: stamp(file) for file in stamped}
        # At start they have been read, and found right.
        if before is None:
            return options.plan, stamps
        latest = with_names(options)
        # A lease that is renewed changes its file and no name.
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
    """What a text file says, in UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as file:
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
    """Its reason, which may quote a word of a file."""
    reason = str(error)
    return reason if len(reason) <= _MAX_REASON_SIZE else f"{reason[:_MAX_REASON_SIZE]}..."


def _some_of(given: docopt.ParsedOptions, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Words of a list, in the order in which they are known."""
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
    """What docopt refused, in a line."""
    reason = str(error.code).partition("\n")[0]
    # It names what it could not place as "[Option(None, '--name', …)]" and the like.
    left = re.search(r"\[(Option|Argument)\(.*?['\"](.*?)['\"]", reason)
    if left is None:
        return reason  # "--log.level requires argument"
    if left[1] == "Argument":
        return f"unexpected argument {left[2]!r}{_instead(command, argv)}"
    name = left[2]
    if _is_option(name, _own(command) + _OPTIONS):
        return f"{name} may be given only once"
    if of := [other for other, (_, _, text) in _COMMANDS.items() if _is_option(name, text)]:
        return f"{name} is an option of {' and '.join(of)}, not of {command}"
    return f"{name} is not an option{_meant(name, _names(command))}"


def _instead(command: str, argv: list[str]) -> str:
    """What stands where an argument that is one too many should."""
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


def _bytes(given: docopt.ParsedOptions, name: str) -> int:
    value = _count(given, name)
    if value < 1 << 31:  # the kernel doubles it, and takes an int
        return value
    raise UsageError(f"{name} must be below 2147483648, not {value}")


def _seconds(given: docopt.ParsedOptions, name: str) -> float:
    value = given[name]
    whole, point, part = value.partition(".")
    if _is_number(whole) and (_is_number(part) or not point) and float(value) > 0:
        return float(value)
    raise UsageError(f"{name} must be a number of seconds above 0, not {value!r}")


def _count(given: docopt.ParsedOptions, name: str) -> int:
    value = given[name]
    if _is_number(value):
        return int(value)
    raise UsageError(f"{name} must be a whole number, 0 or more, not {value!r}")


def _netns(given: docopt.ParsedOptions) -> tuple[str, ...]:
    """The network namespaces, each once."""
    names = tuple(dict.fromkeys(map(_namespace, given["--netns"])))
    if given["--collector.source"] == "procfs" and set(names) - {"host"}:
        raise UsageError(
            "--netns: the proc file is that of one's own network namespace: "
            "others are read by --collector.source=netlink"
        )
    return names


def _namespace(name: str) -> str:
    """What --netns may be: it is the value of a label too."""
    kind, colon, number = name.partition(":")
    by_number = bool(colon) and kind == "pid"
    if (
        name not in ("", ".", "..")
        and "\0" not in name
        and len(os.fsencode(name)) <= _MAX_NAMESPACE_SIZE
        and name.isprintable()  # not bytes that are no text either
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
    # A file that all may write is anybody's, and none of this is a program.
    if len(digits) == 3 and set(digits) <= set("046") and digits[2] != "6":
        return int(digits, 8)
    raise UsageError(
        f"{name} must be in octal, such as 0640: read (4) and write (2) for owner and group, "
        f"read for others, not {value!r}"
    )


def _group(given: docopt.ParsedOptions, name: str) -> int | None:
    if given[name] is None:
        return None
    # Imported here: few runs ask for it.
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
    # Imported here: the default address has no need of it.
    from socket import AF_INET6, inet_pton

    try:
        inet_pton(AF_INET6, text.partition("%")[0])  # fe80::1%eth0
    except (OSError, ValueError):
        return False
    return True
