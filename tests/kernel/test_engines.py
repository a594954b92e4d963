"""Both engines have the same results for any bytes and any plan."""

from __future__ import annotations

import ipaddress
import random
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_textfile import networks, services
from conntrack_textfile.errors import EngineError
from conntrack_textfile.filters import Filter
from conntrack_textfile.kernel import ctnetlink, procfile
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.uapi import MAX_LINE
from conntrack_textfile.labels import LABELS
from conntrack_textfile.plan import Plan
from tests import conntrack_l, tables
from tests.conftest import DATA
from tests.plans import DRAFTS, FIXED, Draft
from tests.program import run
from tests.tables import LINES, MESSAGES, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tables import Decoder

RANDOM = st.randoms(use_true_random=False)
LIMITS = st.sampled_from([0, 1, 2, 3, 5, 10, 100])
MEASURES = st.sampled_from(["bytes", "packets", "connections"])


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    pytest.importorskip("conntrack_textfile.kernel._speedups", reason="needs the compiled engine")


def text_decoders(plan: Plan) -> list[Decoder]:
    from conntrack_textfile.kernel import _speedups

    return [_speedups.TextDecoder(_speedups.Plan(plan)), procfile.Decoder(plan)]


def netlink_decoders(plan: Plan) -> list[Decoder]:
    from conntrack_textfile.kernel import _speedups

    return [_speedups.NetlinkDecoder(_speedups.Plan(plan)), ctnetlink.Decoder(plan)]


# More labels than by default, to reveal more differences.
ALL = Plan(labels=LABELS)


def agree(
    decoders: Callable[[Plan], list[Decoder]],
    blocks: list[bytes],
    plan: Plan = ALL,
    limit: int = 0,
    by: str = "bytes",
) -> None:
    compiled, pure = (outcome(decoder, blocks, limit, by) for decoder in decoders(plan))
    assert compiled == pure


# The choice of the engine


def test_the_compiled_engine_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONNTRACK_TEXTFILE_ENGINE", raising=False)
    assert make(Plan()).name == "compiled"
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "pure")
    assert make(Plan()).name == "pure"
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "fast")
    with pytest.raises(EngineError, match="must be pure or compiled, not 'fast'"):
        make(Plan())


WITHOUT = """
import sys
sys.modules["conntrack_textfile.kernel._speedups"] = None
from conntrack_textfile.cli import main
sys.exit(main(["write", sys.argv[1]]))
"""


@pytest.mark.parametrize(("wanted", "status"), [("", 0), ("pure", 0), ("compiled", 1)])
def test_without_the_extension_it_is_pure_or_an_error(
    monkeypatch: pytest.MonkeyPatch, wanted: str, status: int
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", wanted)
    argv = [sys.executable, "-c", WITHOUT, f"--path.procfs={DATA / 'kernel-6.18'}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == status
    if status:
        assert done.stderr.count("\n") == 1
        assert "there is no compiled engine" in done.stderr
    else:
        assert 'engine="pure"' in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        [],
        [f"--aggregate.by={','.join(LABELS)}", "--limit.keys=5", "--limit.by=connections"],
        ["--filter.include=egress=10.77.2.1", "--filter.include=mark=0x2a", "--aggregate.by=mark"],
    ],
)
def test_the_output_is_the_same_but_for_the_engines_name(
    monkeypatch: pytest.MonkeyPatch, capture: Path, args: list[str]
) -> None:
    texts = []
    for name in ("pure", "compiled"):
        monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", name)
        text = run("write", f"--path.procfs={capture}", *args).stdout
        texts.append([line for line in text.splitlines() if "_seconds " not in line])
    assert len(texts[0]) > 20
    assert [line.replace("pure", "compiled") for line in texts[0]] == texts[1]


# The engines against each other


def test_the_captures_are_complete() -> None:
    assert len(LINES) == 96
    assert len(MESSAGES) == 98  # with an end for each capture


@given(DRAFTS, RANDOM, LIMITS, MEASURES)
@settings(max_examples=150)  # `make fuzz` goes on for a minute
def test_engines_agree_on_damaged_lines(
    draft: Draft, rand: random.Random, limit: int, by: str
) -> None:
    text = tables.damaged_text(rand)
    agree(text_decoders, tables.cut(text, rand), draft.plan, limit, by)


@given(DRAFTS, RANDOM, LIMITS, MEASURES)
@settings(max_examples=150)  # `make fuzz` goes on for a minute
def test_engines_agree_on_damaged_messages(
    draft: Draft, rand: random.Random, limit: int, by: str
) -> None:
    agree(netlink_decoders, tables.damaged_datagrams(rand), draft.plan, limit, by)


@given(RANDOM)
@settings(max_examples=400)
def test_engines_agree_on_damage_in_blocks_of_one_byte(rand: random.Random) -> None:
    text = tables.damaged_text(rand)
    agree(text_decoders, [text])
    agree(text_decoders, [bytes([byte]) for byte in text])
    agree(netlink_decoders, tables.damaged_datagrams(rand))


@given(DRAFTS, RANDOM, LIMITS, MEASURES)
@settings(max_examples=100)
def test_engines_agree_on_the_largest_groups(
    draft: Draft, rand: random.Random, limit: int, by: str
) -> None:
    # Of few values, so that many are equally large.
    made = [tables.made(rand) for _ in range(rand.randrange(200))]
    agree(text_decoders, [b"".join(entry.line for entry in made)], draft.plan, limit, by)
    agree(netlink_decoders, [entry.message for entry in made], draft.plan, limit, by)


@pytest.mark.parametrize("error", [-1, -4, -4095, -4096, 1, 2**31 - 1, -(2**31), 0])
@pytest.mark.parametrize("kind", [2, 3])
def test_engines_agree_on_errors_of_the_kernel(error: int, kind: int) -> None:
    agree(netlink_decoders, [struct.pack("=IHHIIi", 20, kind, 2, 1, 0, error)])


@given(st.binary(max_size=300))
def test_engines_agree_on_any_bytes(junk: bytes) -> None:
    agree(text_decoders, [junk])
    agree(netlink_decoders, [junk])


@pytest.mark.parametrize("address", tables.ODD_ADDRESSES)
def test_engines_agree_on_odd_addresses(address: bytes) -> None:
    for line in (LINES[0], next(line for line in LINES if line.startswith(b"ipv6"))):
        for name in (b" src=", b" dst="):
            before, _, rest = line.partition(name)
            agree(text_decoders, [before + name + address + b" " + rest.partition(b" ")[2]])
            before, _, rest = line.rpartition(name)
            agree(text_decoders, [before + name + address + b" " + rest.partition(b" ")[2]])


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("step", [1 << 20, 777, 1])
def test_engines_agree_on_the_limit_of_a_line(more: int, step: int) -> None:
    length = MAX_LINE + more
    text = LINES[0].rstrip(b"\n").ljust(length, b"x") + b"\n" + LINES[1]
    agree(text_decoders, [text[i : i + step] for i in range(0, len(text), step)])


def test_sums_of_many_large_numbers_do_not_wrap() -> None:
    line = (
        b"ipv4 2 udp 17 src=10.0.0.1 dst=10.0.0.2 dport=53 packets=%d bytes=%d src=10.0.0.2 "
        b"dst=10.0.0.1 packets=%d bytes=0 use=1\n" % (2**64 - 1, 2**63, 2**64 - 2)
    )
    row = [1000, 1000 * (2**64 - 1), 1000 * 2**63, 1000 * (2**64 - 2), 0]
    for decoder in text_decoders(Plan()):
        decoder.feed(line * 1000)
        tally = decoder.finish()
        assert [list(sums) for sums in tally.protocols.values()] == [row]
        assert list(tables.sums(tally).values()) == [row]


@pytest.mark.parametrize("by", ["bytes", "packets"])
def test_the_largest_beyond_64_bits_are_the_largest(by: str) -> None:
    line = (
        "ipv4 2 udp 17 src=10.0.0.{} dst=10.0.0.2 dport=53 packets={} bytes={} src=10.0.0.2 "
        "dst=10.0.0.1 packets={} bytes={} use=1\n"
    )
    most = 2**64 - 1
    # Wrapped at 64 bits the first two would be small.
    text = line.format(1, most, most, 2, 2) + line.format(2, 2, 2, most, most)
    text += line.format(3, most, most, 0, 0) + line.format(4, most, most, 0, 0) * 3
    for decoder in text_decoders(Plan(labels=("src",))):
        decoder.feed(text.encode())
        rows = decoder.finish().groups.rows(3, by)
        assert [*rows.groups] == [("10.0.0.1",), ("10.0.0.2",), ("10.0.0.4",)]
    agree(text_decoders, [text.encode()], Plan(labels=("src",)), 2, by)


def test_a_finished_decoder_raises_value_error() -> None:
    for decoders, more in ((text_decoders, LINES[0]), (netlink_decoders, MESSAGES[0])):
        compiled, _ = decoders(Plan())
        groups = compiled.finish().groups
        for again in (False, True):
            with pytest.raises(ValueError, match="finished"):
                compiled.feed(more)
            with pytest.raises(ValueError, match="finished"):
                compiled.finish()
            if again:
                with pytest.raises(ValueError, match="taken"):
                    groups.rows(0, "bytes")
            else:
                groups.rows(0, "bytes")


def test_rows_raise_index_error_at_their_end() -> None:
    for decoder in text_decoders(Plan()):
        decoder.feed(LINES[0] + LINES[1])
        rows = decoder.finish().groups.rows(1, "bytes")
        for column in (rows.groups, *rows.columns):
            assert len(column) == 1
            with pytest.raises(IndexError):
                column[1]


def test_engines_agree_on_many_groups() -> None:
    line = (
        "ipv4 2 udp 17 src=10.{}.{}.1 dst=10.0.0.2 sport=1 dport={} packets=1 bytes={} "
        "src=10.0.0.2 dst=10.0.0.1 packets=2 bytes=0 use=1\n"
    )
    text = "".join(line.format(i >> 8, i & 255, i % 7 * 9999, i) for i in range(50_000))
    for limit, by in ((0, "bytes"), (1000, "bytes"), (1000, "connections")):
        agree(text_decoders, [text.encode()], limit=limit, by=by)


# Both engines against a model


@given(DRAFTS, st.sampled_from(tables.CAPTURES))
@settings(max_examples=150)
def test_captures_are_grouped_by_the_plan(draft: Draft, capture: Path) -> None:
    printed = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    expected, filtered = draft.sums(conntrack_l.entries((capture / "conntrack-L.txt").read_text()))
    text = (capture / "net" / "nf_conntrack").read_bytes()
    dump = (capture / "ctnetlink.bin").read_bytes()
    for decoders, data in ((text_decoders, text), (netlink_decoders, dump)):
        for decoder in decoders(draft.plan):
            decoder.feed(data)
            tally = decoder.finish()
            assert (tally.filtered, tally.malformed) == (filtered, 0)
            assert (tally.uncounted, tally.entries) == (printed.uncounted, printed.entries)
            assert (tally.states, tally.flags) == (printed.states, printed.flags)
            assert tables.sums(tally) == expected


@given(DRAFTS, RANDOM)
@settings(max_examples=150)
def test_entries_are_grouped_by_the_plan(draft: Draft, rand: random.Random) -> None:
    made = [tables.made(rand) for _ in range(rand.randrange(60))]
    expected, filtered = draft.sums(entry.entry for entry in made)
    text = [entry.line for entry in made]
    dump = [entry.message for entry in made]
    for decoders, blocks in ((text_decoders, text), (netlink_decoders, dump)):
        for decoder in decoders(draft.plan):
            for block in blocks:
                decoder.feed(block)
            tally = decoder.finish()
            assert (tally.filtered, tally.malformed) == (filtered, 0)
            assert tally.uncounted == sum(not entry.entry.counted for entry in made)
            assert sum(tally.states.values()) == sum(bool(entry.entry.state) for entry in made)
            assert sum(tally.flags.values()) == sum(len(entry.entry.flags) for entry in made)
            assert tables.sums(tally) == expected


@given(RANDOM, st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=150)
def test_translated_entries_are_counted(rand: random.Random, limit: int, destinations: int) -> None:
    made = [tables.made(rand) for _ in range(rand.randrange(80))] * rand.randrange(1, 3)
    expected = conntrack_l.translated(entry.entry for entry in made)
    busiest, in_use = expected.busiest(), expected.in_use()
    for decoders, blocks in (
        (text_decoders, [entry.line for entry in made]),
        (netlink_decoders, [entry.message for entry in made]),
    ):
        # Filters are for groups alone.
        for decoder in decoders(Plan(exclude=(Filter(),))):
            for block in blocks:
                decoder.feed(block)
            tally = decoder.finish()
            assert tally.nat is not None
            nat = tally.nat.nat(limit, destinations)
            assert nat.connections == expected.connections
            shown = [row for row in nat.egress if row.address != "other"]
            others = [row for row in nat.egress if row.address == "other"]
            assert len(shown) == min(limit or len(expected.snat), len(expected.snat))
            sizes = {key: (busiest.get(key, 0), n) for key, n in expected.snat.items()}
            left = dict(sizes)
            for row in shown:
                key = row.address, row.l4protocol
                assert (row.ports, row.connections) == left.pop(key)
                ports = in_use.get(key, {})
                assert [n for *_, n in row.destinations] == sorted(ports.values(), reverse=True)[
                    :destinations
                ]
                assert all(ports[dst, dport] == n for dst, dport, n in row.destinations)
                assert len({row[:2] for row in row.destinations}) == len(row.destinations)
            kept = [sizes[row.address, row.l4protocol] for row in shown]
            assert not left or not kept or max(left.values()) <= min(kept)
            sums: dict[str, tuple[int, int]] = {}
            for (_, l4), (ports_, connections) in left.items():
                most, total = sums.get(l4, (0, 0))
                sums[l4] = max(most, ports_), total + connections
            assert {row.l4protocol: (row.ports, row.connections) for row in others} == sums


@given(RANDOM, st.integers(1, 30), MEASURES)
@settings(max_examples=50)
def test_the_largest_groups_are_kept_and_of_equal_ones_the_first(
    rand: random.Random, limit: int, by: str
) -> None:
    text = b"".join(tables.made(rand).line for _ in range(rand.randrange(200)))
    every = procfile.Decoder(ALL)
    every.feed(text)
    rows = tables.sums(every.finish())  # they ascend
    measure = {"bytes": (2, 4), "packets": (1, 3), "connections": (0,)}[by]
    sizes = {group: sum(row[i] for i in measure) for group, row in rows.items()}
    order = {group: number for number, group in enumerate(rows)}
    largest = sorted(rows, key=lambda group: (-sizes[group], order[group]))[:limit]
    for decoder in text_decoders(ALL):
        decoder.feed(text)
        kept = decoder.finish().groups.rows(limit, by)
        assert [*kept.groups] == sorted(largest, key=order.__getitem__)
        assert [*zip(*kept.columns, strict=True)] == [tuple(rows[group]) for group in kept.groups]


def test_each_fixed_plan_has_results_of_its_own() -> None:
    seen = {
        str(draft.sums([tables.made(random.Random(n)).entry for n in range(50)])) for draft in FIXED
    }
    assert len(seen) == len(FIXED)


def test_a_networks_file_of_many_lines(tmp_path: Path) -> None:
    rand = random.Random(1)
    names: dict[ipaddress.IPv4Network | ipaddress.IPv6Network, str] = {}
    while len(names) < 100_000:
        if rand.randrange(2):
            length = rand.choice((16, 20, 24, 28, 32))
            value = (10 << 24 | rand.getrandbits(24)) >> 32 - length << 32 - length
            names[ipaddress.IPv4Network((value, length))] = f"n{len(names)}"
        else:
            length = rand.choice((32, 48, 56, 64, 128))
            value = (0x20010DB8 << 96 | rand.getrandbits(96)) >> 128 - length << 128 - length
            names[ipaddress.IPv6Network((value, length))] = f"n{len(names)}"
    text = "".join(f"{network} {name}\n" for network, name in names.items())
    started = time.monotonic()
    parsed = networks.parse_names(text)
    plan = Plan(labels=("src",), networks=parsed)
    decoders = text_decoders(plan)
    assert time.monotonic() - started < 20  # it takes half a second

    inside = rand.sample(sorted(names, key=str), 1000)
    addresses = [network[rand.randrange(min(network.num_addresses, 1 << 16))] for network in inside]
    line = "ipv{0.version} {1} udp 17 9 src={0} dst={0} src={0} dst={0} use=1\n"
    table = "".join(line.format(a, 2 if a.version == 4 else 10) for a in addresses).encode()
    expected: dict[tuple[str, ...], list[int]] = {}
    for address in addresses:
        lengths = range(address.max_prefixlen, -1, -1)
        holding = (ipaddress.ip_network((address, length), strict=False) for length in lengths)
        name = next(names[network] for network in holding if network in names)
        conntrack_l.add(expected, (name,), (1, 0, 0, 0, 0))
    for decoder in decoders:
        decoder.feed(table)
        assert tables.sums(decoder.finish()) == expected
    assert len(expected) > 500

    file = tmp_path / "networks"
    file.write_text(text)
    done = run("write", f"--networks.file={file}", f"--path.procfs={DATA / 'kernel-6.18'}")
    assert (done.returncode, done.stderr) == (0, "")


def test_more_than_65536_services() -> None:
    text = "".join(f"s{n} {n & 0xFFFF}/{'tcp' if n >> 16 else 'udp'}\n" for n in range(1 << 17))
    plan = Plan(labels=("l7protocol", "dport"), services=services.parse_services(text))
    line = "ipv4 2 {} src=10.0.0.1 dst=10.0.0.2 dport={} src=10.0.0.2 dst=10.0.0.1 use=1\n"
    ports = (0, 1, 255, 256, 443, 65534, 65535)
    table = "".join(line.format(l4, port) for l4 in ("tcp 6", "udp 17") for port in ports)
    for decoder in text_decoders(plan):
        decoder.feed(table.encode())
        assert set(tables.sums(decoder.finish())) == {
            (f"s{number}", str(port)) for port in ports for number in (port, port | 1 << 16)
        }
