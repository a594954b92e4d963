"""tally.Groups by their keys, in both engines, and key_parser()."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile.kernel.grouping import key_parser
from conntrack_textfile.labels import LABELS
from conntrack_textfile.networks import Prefix, parse_names
from conntrack_textfile.plan import Plan
from conntrack_textfile.protocols import l4protocol
from conntrack_textfile.services import parse_services
from tests import engines
from tests.flows import Flow

if TYPE_CHECKING:
    from tests.engines import Feed

PLANS = {
    "all labels": Plan(labels=tuple(LABELS)),
    "none": Plan(labels=()),
    "prefixes": Plan(labels=("src", "dst"), src_prefix=Prefix(24, 64), dst_prefix=Prefix(0, 0)),
    "hosts": Plan(
        labels=("src", "dst"),
        hosts={bytes([10, 0, 0, 1]): "z (10.0.0.1)", bytes(15) + b"\1": "a"},
    ),
    "names": Plan(labels=("src", "dst"), networks=parse_names("10.0.0.0/30 a\nfd00::/8 b\n")),
    "ports": Plan(labels=("l7protocol", "dport"), known_ports=True),
    "zones": Plan(labels=("zone", "mark", "l4protocol")),
}
FLOWS = [
    Flow(
        src=src,
        dst=dst,
        l4=l4,
        dport=dport,
        zone=zone,
        counters=(n, n * 10, n, n * 5),
        sport=n,
    )
    for n, (src, dst, l4, dport, zone) in enumerate(
        [
            ("10.0.0.1", "192.0.2.1", 6, 443, 0),
            ("10.0.0.9", "192.0.2.1", 6, 443, 0),
            ("10.0.0.9", "192.0.2.1", 17, 53, 7),
            ("10.0.0.9", "192.0.2.2", 17, 40000, 65535),
            ("fd00::1", "2001:db8::1", 6, 22, 0),
            ("2001:db8:1:2::3", "2001:db8::1", 58, 0, 0),
            ("10.0.0.2", "192.0.2.1", 255, 0, 1),
        ],
        1,
    )
]


@pytest.fixture(params=engines.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_key_parser_is_the_inverse_of_labels(name: str, plan: Plan) -> None:
    groups = engines.make(name, plan).tally(FLOWS).groups
    key_of = key_parser(plan)
    found = groups.largest(100, "bytes")
    assert len(found) == len(groups)
    assert groups.get([key for key, _ in found]) == [sums for _, sums in found]
    for key, _ in found:
        assert key_of(groups.labels(key)) == key


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("by", ["bytes", "packets", "connections"])
def test_engines_agree_on_largest(plan: Plan, by: str) -> None:
    pure, compiled = [engines.make(name, plan).tally(FLOWS).groups for name in engines.NAMES]
    for limit in (0, 1, 3, 1 << 31):
        assert pure.largest(limit, by) == compiled.largest(limit, by)
        without = [key for key, _ in pure.largest(2, by)] + [bytes(len(pure.largest(1, by)[0][0]))]
        assert pure.largest(limit, by, without) == compiled.largest(limit, by, without)
        assert not {key for key, _ in pure.largest(limit, by, without)} & set(without)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**62)), max_size=60),
    st.integers(0, 50),
    st.sets(st.integers(1, 40)),
)
def test_largest_equals_a_sort(rows: list[tuple[int, int]], limit: int, hidden: set[int]) -> None:
    plan = Plan(labels=("src",))
    key_of = key_parser(plan)
    sums: dict[str, int] = {}
    for host, size in rows:
        sums[f"10.0.0.{host}"] = sums.get(f"10.0.0.{host}", 0) + size
    without = [key for host in hidden if (key := key_of((f"10.0.0.{host}",)))]
    wanted = sorted(
        (
            (-size, key)
            for src, size in sums.items()
            if (key := key_of((src,))) and key not in without
        )
    )[:limit]
    for name in engines.NAMES:
        flows = [Flow(src=f"10.0.0.{host}", counters=(0, size, 0, 0)) for host, size in rows]
        found = engines.make(name, plan).tally(flows).groups.largest(limit, "bytes", without)
        assert [(-row.sent_bytes, key) for key, row in found] == wanted


def test_get_returns_none_for_a_missing_key(name: str) -> None:
    plan = Plan(labels=("src",))
    feed: Feed = engines.make(name, plan)
    there, gone = (key_parser(plan)((src,)) for src in ("10.0.0.1", "10.0.0.3"))
    assert there is not None
    assert gone is not None
    sums, none = feed.tally(FLOWS).groups.get([there, gone])
    assert sums is not None
    assert (sums.connections, sums.sent_bytes, none) == (1, 10, None)
    empty = feed.tally([]).groups
    assert empty.get([there]) == [None]
    assert empty.largest(5, "bytes", [there]) == []


def test_a_key_of_another_plan_is_refused_by_the_compiled_engine() -> None:
    groups = engines.make("compiled", Plan(labels=("src",))).tally(FLOWS).groups
    for use in (
        groups.labels,
        lambda key: groups.get([key]),
        lambda key: groups.largest(1, "bytes", [key]),
    ):
        with pytest.raises(ValueError, match="another plan"):
            use(b"12345678")


def test_a_key_with_the_index_of_another_plan_is_refused_by_the_compiled_engine() -> None:
    """Out of bounds it would read memory that is not a name."""
    service, name = b"\0\xff\xff", b"\3\xff\xff\xff\xff" + bytes(12)
    plan = Plan(labels=("l7protocol", "src"))
    groups = engines.make("compiled", plan).tally(FLOWS).groups
    for key in (service + bytes(17), bytes(3) + name, service + name):
        with pytest.raises(ValueError, match="another plan"):
            groups.labels(key + bytes(4))


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("src", "10.0.0.1/32"),
        ("src", "10.0.0.0/24"),
        ("src", "010.0.0.1"),
        ("src", "2001:DB8::1"),
        ("src", "name"),
        ("l3protocol", "ipv5"),
        ("l4protocol", "6"),
        ("l4protocol", "TCP"),
        ("l7protocol", "3"),
        ("l7protocol", "nothing"),
        ("dport", "+5"),
        ("dport", "05"),
        ("dport", "1_0"),
        ("dport", "٣"),
        ("dport", "16777216"),
        ("zone", "65536"),
        ("zone", "-1"),
        ("mark", "0x1"),
        ("mark", ""),
    ],
)
def test_impossible_label_values_have_no_key(label: str, text: str) -> None:
    assert key_parser(Plan(labels=(label,)))((text,)) is None


def test_a_wrong_number_of_labels_has_no_key() -> None:
    assert key_parser(Plan(labels=("src",)))(("10.0.0.1", "tcp")) is None


def test_names_that_were_removed_have_no_key() -> None:
    """A service named "5" is not the fifth service."""
    services = Plan(labels=("l7protocol",), services=parse_services("5 4711/tcp\n"))
    assert key_parser(services)(("5",)) is not None
    assert key_parser(Plan(labels=("l7protocol",)))(("5",)) is None
    named = Plan(labels=("src",), networks=parse_names("10.0.0.1 laptop\n"))
    assert key_parser(named)(("laptop",)) is not None
    assert key_parser(Plan(labels=("src",)))(("laptop",)) is None


def test_an_address_that_has_a_name_has_no_key_of_its_own() -> None:
    """Its series ends when that of the name begins, and vice versa."""
    address = bytes([10, 0, 0, 1])
    named = Plan(labels=("src", "dst"), hosts={address: "laptop"}, dst_prefix=Prefix(24, 64))
    key_of = key_parser(named)
    assert key_of(("laptop", "10.0.0.0/24")) is not None
    assert key_of(("10.0.0.2", "10.0.0.0/24")) is not None
    assert key_of(("10.0.0.1", "10.0.0.0/24")) is None
    assert key_of(("10.0.0.2", "laptop")) is not None  # a name, though the plan has no such host
    assert key_parser(named._replace(hosts={}))(("laptop", "10.0.0.0/24")) is None
    network = Plan(labels=("src",), networks=parse_names("10.0.0.0/8 lan\n"))
    assert key_parser(network)(("10.0.0.1",)) is None
    assert key_parser(network)(("11.0.0.1",)) is not None


def test_each_protocol_has_a_key_of_its_own() -> None:
    key_of = key_parser(Plan(labels=("l4protocol",)))
    keys = [key_of((l4protocol(number),)) for number in range(256)]
    assert [key and key[0] for key in keys] == list(range(256))
