"""The command line: the usage text, a row for each option, and how both are parsed.

A new option is a line of the usage text, a row of _ROWS and a field of Options.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import docopt

from conntrack_textfile import __version__, labels, textfile, values
from conntrack_textfile.aggregate import MEASURES, Limit
from conntrack_textfile.errors import UsageError
from conntrack_textfile.plan import NameFiles, Plan
from conntrack_textfile.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


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
                                   smaller ones are folded into other; 0 for no
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
    """Return the usage text of some commands. Options of check are in it only for check alone."""
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
    names: NameFiles = NameFiles()  # read into plan, but for check
    names_until: float = float("inf")  # Unix time at which a name in plan expires
    netns: tuple[str, ...] = ()  # (): that of the process, without a label

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


class _Row(NamedTuple):
    """How an option is parsed."""

    field: str  # of Options, or of its plan, limit or names
    parse: Callable[[str, Any], object]  # takes the name and the value, raises UsageError
    repeated: bool = False  # parse takes a list


# A row for each option of the usage text, and for FILE. Without a value the field keeps its
# default.
_ROWS = {
    "FILE": _Row("file", values.not_empty),
    "--file.mode": _Row("file_mode", values.mode),
    "--file.group": _Row("file_group", values.group),
    "--state.file": _Row("state_file", values.not_empty),
    "--collector.interval": _Row("interval", values.seconds),
    "--collector.event-buffer": _Row("event_buffer", values.count),
    "--web.listen-address": _Row("listen", values.each(values.address), repeated=True),
    "--web.telemetry-path": _Row("telemetry_path", values.path),
    "--web.disable-exporter-metrics": _Row("exporter_metrics", values.inverse),
    "--web.max-requests": _Row("max_requests", values.count),
    "--web.config.file": _Row("web_config", values.unchanged),
    "--web.systemd-socket": _Row("systemd_socket", values.unchanged),
    "-n": _Row("rows", values.count),
    "--watch": _Row("watch", values.unchanged),
    "--collector.source": _Row("source", values.choice("auto", "procfs", "netlink")),
    "--collector.families": _Row("families", values.some_of(*FAMILIES)),
    "--configure.nf_conntrack_acct": _Row("configure_accounting", values.unchanged),
    "--collector.nat": _Row("plan.nat", values.is_word("on", ("on", "off"))),
    "--filter.include": _Row("plan.include", values.each(values.condition), repeated=True),
    "--filter.exclude": _Row("plan.exclude", values.each(values.condition), repeated=True),
    "--aggregate.by": _Row("plan.labels", values.some_of(*labels.LABELS)),
    "--aggregate.src-prefix": _Row("plan.src_prefix", values.prefix),
    "--aggregate.dst-prefix": _Row("plan.dst_prefix", values.prefix),
    "--aggregate.ports": _Row("plan.known_ports", values.is_word("known", ("all", "known"))),
    "--aggregate.mark-mask": _Row("plan.mark_mask", values.bits),
    "--networks.file": _Row("names.networks", values.not_empty),
    "--hosts.file": _Row("names.hosts", values.each(values.not_empty), repeated=True),
    "--services.file": _Row("names.services", values.not_empty),
    "--limit.keys": _Row("limit.keys", values.count),
    "--limit.by": _Row("limit.by", values.choice(*MEASURES)),
    "--nat.destinations": _Row("limit.destinations", values.count),
    "--netns": _Row("netns", values.namespaces, repeated=True),
    "--path.procfs": _Row("proc_root", values.not_empty),
    "--log.level": _Row("log_level", values.choice("debug", "info", "warn", "error")),
    "--log.format": _Row("log_format", values.choice("logfmt", "json")),
}

# Options that may be repeated.
REPEATED = tuple([name for name, row in _ROWS.items() if row.repeated])


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
    again = [f"[{name}=VALUE]..." for name in REPEATED if f"  {name}=" in texts]
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
    options = _from(command, given)
    # check reads the files of names itself and reports each that is wrong.
    if command == "check" or not any(options.names):
        return options
    # Imported here: most runs have no such file.
    from conntrack_textfile import namefiles

    plan, until = namefiles.read(options.names, options.plan)
    return options._replace(plan=plan, names_until=until)


def _from(command: str, given: Mapping[str, Any]) -> Options:
    """Return the options of a command line as docopt parsed it. Raises UsageError."""
    fields: dict[str, dict[str, Any]] = {"": {}, "plan": {}, "limit": {}, "names": {}}
    for name, row in _ROWS.items():
        value = given.get(name)
        if value is not None:
            part, _, field = row.field.rpartition(".")
            fields[part][field] = row.parse(name, value)
    if command == "check":
        fields[""].setdefault("file", "")
    options = Options(
        command=command,
        plan=Plan(**fields["plan"]),
        limit=Limit(**fields["limit"]),
        names=NameFiles(**fields["names"]),
        **fields[""],
    )
    if options.source == "procfs" and set(options.netns) - {"host"}:
        raise UsageError(
            "--netns: the proc file shows the network namespace of the process only; "
            "others are read with --collector.source=netlink"
        )
    state_files = (options.state_file, f"{options.state_file}.lock")
    if (
        options.state_file
        and options.file != "-"
        and os.path.realpath(options.file) in map(os.path.realpath, state_files)
    ):
        raise UsageError(f"FILE and --state.file are both {options.file}: name two files")
    return options


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
