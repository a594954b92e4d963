"""Names of hosts: four formats, expiry, and unique labels."""

from __future__ import annotations

import calendar
import contextlib
import ipaddress
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_textfile import hosts, networks
from conntrack_textfile.hosts import NEVER, Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).parent / "data" / "hosts"


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def shown(leases: dict[bytes, Lease]) -> dict[str, tuple[str, float]]:
    """Leases by address, those without a name left out."""
    return {
        str(ipaddress.ip_address(address)): (lease.name, lease.ends)
        for address, lease in leases.items()
        if lease.ends > 0
    }


def parsed(text: str) -> dict[str, tuple[str, float]]:
    return shown(hosts.parse(text))


def names(text: str) -> dict[str, str]:
    return {address: name for address, (name, _) in parsed(text).items()}


# /etc/hosts

ETC_HOSTS = """\
127.0.0.1\tlocalhost
127.0.1.1       gateway.example.org gateway

# The following lines are desirable for IPv6 capable hosts
::1     localhost ip6-localhost ip6-loopback
10.0.0.7  nas.example.org. nas   # in the cellar
10.0.0.7  backup
2001:db8::7     nas6
fe80::1%eth0    router
0.0.0.0 ads.example.com
0.0.0.0 tracker.example.com
\t10.0.0.8 tv"""


def test_a_hosts_file_names_an_address_by_its_first_name() -> None:
    assert names(ETC_HOSTS) == {
        "127.0.0.1": "localhost",
        "127.0.1.1": "gateway.example.org",
        "::1": "localhost",
        "10.0.0.7": "nas.example.org",
        "2001:db8::7": "nas6",
        "10.0.0.8": "tv",
    }
    assert {ends for _, ends in parsed(ETC_HOSTS).values()} == {NEVER}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1 a\n\n10.0.0.256 b\n", "line 3: '10.0.0.256' is not an address"),
        ("10.0.0.1 a\n10.0.0.2\n", "line 2: a line is an address and names"),
        ("10.0.0.1 # a\n", "line 1: a line is an address and names"),
        ("10.0.0.1 \x1b[2J\n", "line 1: the name .* cannot be shown"),
        ("10.0.0.1 \u202egnp\n", "line 1: the name .* cannot be shown"),
        ("10.0.0.1 a\udcff\n", "line 1: the name .* cannot be shown"),
        ("10.0.0.1 .\n", "line 1: the name '.' cannot be shown"),
        ("10.0.0.1 " + "n" * 256, "line 1: the name nnn.* is longer than 255 bytes"),
        ("# mine\nlaptop 10.0.0.1\n", "line 2: it begins neither as /etc/hosts does"),
        ("10.0.0.0/8 company\n", "line 1: it begins neither"),
        ("http 80/tcp\n", "line 1: it begins neither"),
        ("\0\0\0\0", "line 1: it begins neither"),
        ("12345 67\n", "line 1: it begins neither"),
    ],
)
def test_a_bad_line_of_a_hosts_file_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        hosts.parse(text)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "  \n\n#", "#"])
def test_a_file_without_names_has_none(text: str) -> None:
    assert hosts.parse(text) == {}


# dnsmasq


def test_leases_that_dnsmasq_wrote() -> None:
    assert parsed((DATA / "dnsmasq.leases").read_text()) == {
        "10.99.0.73": ("laptop", 1795514532),
        "fd99::8a": ("laptop6", 1795514511),
    }


DNSMASQ = """\
1700003600 02:00:00:00:00:01 10.0.0.1 laptop 01:02:00:00:00:00:01
1700003600 02:00:00:00:00:02 10.0.0.2 * *
0 06-02:00:00:00:00:03 10.0.0.3 tv *
duid 00:01:00:01:2a:11:22:33:02:00:00:00:00:01
1700007200 12345678 2001:db8::1 laptop6 00:01:00:01:11:22
1700007200 T12345678 2001:db8::2 temporary 00:01:00:01:11:22
vendorclass 10.0.0.1 61:62:63
agent-info 10.0.0.1 01:04:00:00:00:01
"""


def test_a_lease_of_dnsmasq_has_a_name_and_an_end() -> None:
    assert parsed(DNSMASQ) == {
        "10.0.0.1": ("laptop", 1700003600),
        "10.0.0.3": ("tv", NEVER),
        "2001:db8::1": ("laptop6", 1700007200),
        "2001:db8::2": ("temporary", 1700007200),
    }


def test_leases_of_ipv6_alone_begin_with_a_duid() -> None:
    assert names(DNSMASQ.partition("*\nduid")[2].join(["duid", ""])) == {
        "2001:db8::1": "laptop6",
        "2001:db8::2": "temporary",
    }


@pytest.mark.parametrize(
    "file", ["dnsmasq.leases", "dhcpd.leases", "dhcpd6.leases", "kea-leases4.csv"]
)
def test_a_file_that_is_half_written_has_no_half_names(file: str) -> None:
    """Whatever its server has written so far: no error, and no name that is not in the end."""
    text = (DATA / file).read_text()
    whole = set(parsed(text).items())
    if file == "dhcpd.leases":  # in the end this one is released
        whole.add(("10.99.0.53", ("tv", 1795514328)))
    for end in range(len(text)):
        try:
            found = parsed(text[:end])
        except ValueError:
            # Not even the first line that tells the format.
            lines = [line for line in text[:end].splitlines() if line and line[0] != "#"]
            assert len(lines) <= 1
            continue
        assert set(found.items()) <= whole


# Kea


def test_leases_that_kea_wrote() -> None:
    assert parsed((DATA / "kea-leases4.csv").read_text()) == {
        "10.99.0.50": ("laptop", 1795514334),
        "10.99.0.51": ("bobs", 1795514334),
        "10.99.0.52": ("laptop", 1795514335),
        "10.99.0.53": ("tv", 1795514335),
    }


KEA6 = """\
address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,\
fqdn_rev,hostname,hwaddr,state,user_context,hwtype,hwaddr_source,pool_id
2001:db8::1,00:01:02,3600,1700003600,1,2250,0,7,128,1,1,laptop.example.org.,02:00,0,,1,0,0
2001:db8:1::,00:01:02,3600,1700003600,1,2250,2,7,56,1,1,router.example.org.,02:00,0,,1,0,0
2001:db8::2,00:01:03,3600,1700003600,1,2250,0,7,128,1,1,declined,02:00,1,,1,0,0
2001:db8::3,00:01:04,3600,1700003600,1,2250,0,7,128,1,1,reclaimed,02:00,2,,1,0,0
2001:db8::4,00:01:05,3600,1700003600,1,2250,0,7,128,1,1,released,02:00,3,,1,0,0
2001:db8::5,00:01:06,3600,1700003600,1,2250,0,7,128,1,1,registered,02:00,4,,1,0,0
2001:db8::6,00:01:07,3600,1700003600,1,2250,0,7,128,1,1,caf&#xc3&#xa9&#x2c bar,02:00,0,,1,0,0
2001:db8::7,00:01:08,4294967295,1700003600,1,2250,0,7,128,1,1,forever,02:00,0,,1,0,0
2001:db8::8,00:01:09,3600,1700003600,1,2250,0,7,128,1,1,,02:00,0,,1,0,0
2001:db8::9,00:01:0a,3600,1700003600,1,2250,0,7,128,1,1,deleted,02:00,0,,1,0,0
2001:db8::9,00:01:0a,0,1700003600,1,2250,0,7,128,1,1,deleted,02:00,0,,1,0,0
2001:db8::a,00:01:0b,3600,1700003600,1,2250,0,7,128,1,1,older
"""


def test_rows_of_kea_by_state_type_and_escape() -> None:
    assert parsed(KEA6) == {
        "2001:db8::1": ("laptop.example.org", 1700003600),
        "2001:db8::5": ("registered", 1700003600),
        "2001:db8::6": ("café, bar", 1700003600),
        "2001:db8::7": ("forever", NEVER),
        "2001:db8::a": ("older", 1700003600),
    }


def test_the_last_row_of_an_address_is_valid() -> None:
    text = (DATA / "kea-leases4.csv").read_text()
    text += "10.99.0.50,02:00,,3600,1795519999,1,0,0,desktop,0,\n"
    text += "10.99.0.51,02:00,,3600,1795519999,1,0,0,,0,\n"
    assert names(text) == {
        "10.99.0.50": "desktop",
        "10.99.0.52": "laptop",
        "10.99.0.53": "tv",
    }


def test_a_csv_file_of_another_program_is_an_error() -> None:
    with pytest.raises(ValueError, match="leases of Kea have no column hostname"):
        parsed("address,valid_lifetime,expire,name\n")


def test_kea_has_its_leases_in_more_than_one_file(tmp_path: Path) -> None:
    """After a cleanup the file that is named has what came since, and may have no row."""
    header, *rows = (DATA / "kea-leases4.csv").read_text().splitlines(keepends=True)
    file = tmp_path / "kea-leases4.csv"
    file.write_text(header)
    assert hosts.read([str(file)], 0).names == {}
    (tmp_path / "kea-leases4.csv.2").write_text(header + rows[0] + rows[1])
    (tmp_path / "kea-leases4.csv.1").write_text(header + rows[1].replace("bobs", "alices")[:-1])
    assert hosts.read([str(file)], 0).names == {
        packed("10.99.0.50"): "laptop",
        packed("10.99.0.51"): "bobs",  # a row without its end does not count
    }
    (tmp_path / "kea-leases4.csv.1").write_text(header + rows[1].replace("bobs", "alices"))
    file.write_text(header + rows[0].replace("laptop", "desktop"))
    assert hosts.read([str(file)], 0).names == {
        packed("10.99.0.50"): "desktop",
        packed("10.99.0.51"): "alices",
    }
    (tmp_path / "kea-leases4.csv.completed").write_text(header + rows[3])
    assert hosts.read([str(file)], 0).names == {
        packed("10.99.0.50"): "desktop",
        packed("10.99.0.53"): "tv",
    }
    assert hosts.watched("f") == ["f.completed", "f.2", "f.1", "f"]


# ISC dhcpd


def test_leases_that_dhcpd_wrote() -> None:
    ends = calendar.timegm((2026, 11, 24, 9, 58, 43))
    assert parsed((DATA / "dhcpd.leases").read_text()) == {
        "10.99.0.50": ("laptop", ends),
        "10.99.0.51": ("Bob's", ends + 2),
        "10.99.0.52": ("laptop", ends + 3),
    }
    assert parsed((DATA / "dhcpd6.leases").read_text()) == {}


DHCPD = r"""
server-duid "a#b\"c";
failover peer "partner" state {
  my state normal at 4 2024/01/04 10:00:00;
}
host static {
  dynamic;
  hardware ethernet 02:00:00:00:00:09;
  fixed-address 10.0.0.9;
}
lease 10.0.0.1 {
  starts 4 2024/01/04 10:00:00;
  ends never;
  binding state active;
  next binding state free;
  uid "}\nlease 10.0.0.66 {";
  client-hostname "caf\303\251 \"one\"";
}
lease 10.0.0.2 {
  ends epoch 1704362400; # Thu Jan 04 10:00:00 2024
  binding state active;
  set ddns-fwd-name = "printer.example.org";
}
lease 10.0.0.3 {
  ends 4 2024/01/04 10:00:00;
  binding state backup;
  client-hostname "backup";
}
lease 10.0.0.4 {
  ends 4 2024/13/04 10:00:00;
  client-hostname "no-such-month";
}
lease 10.0.0.5 {
  ends 4 2024/01/04 10:00:00;
  client-hostname "of-openbsd";
}
lease 10.0.0.6 {
  ends 4 2024/01/04 10:00:00;
  abandoned;
  client-hostname "abandoned";
}
lease 10.0.0.7 {
  ends 4 2024/01/04 10:00:00;
  binding state active;
}
ia-na "\023}\000\001" {
  cltt 2 2024/01/04 10:00:00;
  iaaddr 2001:db8::1 {
    binding state active;
    preferred-life 375;
    max-life 600;
    ends 4 2024/01/04 10:00:00;
    set ddns-fwd-name = "laptop6.example.org";
  }
  iaaddr 2001:db8::2 {
    binding state expired;
    ends 4 2024/01/04 10:00:00;
    set ddns-fwd-name = "old.example.org";
  }
}
"""


def test_blocks_of_dhcpd_by_state_and_name() -> None:
    ends = calendar.timegm((2024, 1, 4, 10, 0, 0))
    assert parsed(DHCPD) == {
        "10.0.0.1": ('café "one"', NEVER),
        "10.0.0.2": ("printer.example.org", ends),
        "10.0.0.5": ("of-openbsd", ends),
        "2001:db8::1": ("laptop6.example.org", ends),
    }


# Names of clients


@pytest.mark.parametrize(
    "name",
    ["\\033[2J", "a\\000b", "\\342\\200\\256gnp", "\\377", "x" * 256, " ", ".", "a\\nb\\012c"],
)
def test_the_hostname_of_a_client_is_printable_or_ignored(name: str) -> None:
    text = f'lease 10.0.0.1 {{\n  ends never;\n  client-hostname "{name}";\n}}\n'
    more = 'lease 10.0.0.2 {\n  ends never;\n  client-hostname "tv";\n}\n'
    assert names(text + more) == {"10.0.0.2": "tv"}


NETWORKS = "10.0.0.0/8 company\n192.0.2.9 printer\n192.0.2.8 scanner\n0.0.0.0/1 half\n"


def labels(given: dict[str, str], named: str = "") -> dict[str, str]:
    found = hosts.labels(
        {packed(address): name for address, name in given.items()}, networks.parse_names(named)
    )
    return {str(ipaddress.ip_address(address)): label for address, label in found.items()}


def test_a_name_of_two_addresses_is_followed_by_the_address() -> None:
    assert labels({"192.0.2.7": "laptop", "2001:db8::7": "laptop", "192.0.2.6": "tv"}) == {
        "192.0.2.7": "laptop (192.0.2.7)",
        "2001:db8::7": "laptop (2001:db8::7)",
        "192.0.2.6": "tv",
    }


@pytest.mark.parametrize(
    "name", ["other", "company", "192.0.2.1", "2001:db8::/32", "laptop (192.0.2.7)", "scanner"]
)
def test_no_client_takes_an_existing_label(name: str) -> None:
    assert labels({"192.0.2.66": name}, NETWORKS) == {"192.0.2.66": f"{name} (192.0.2.66)"}


def test_networks_go_before_hosts_and_hosts_before_single_addresses() -> None:
    given = {"10.1.2.3": "laptop", "192.0.2.9": "lp0", "192.0.2.8": "scanner", "126.0.0.1": "x"}
    assert labels(given, NETWORKS) == {"192.0.2.9": "lp0", "192.0.2.8": "scanner"}


_ADDRESSES = st.sampled_from(
    ["192.0.2.7", "192.0.2.8", "10.0.0.1", "127.0.0.1", "2001:db8::7", "::"]
)
_SAID = st.sampled_from(["a", "b", "other", "company", "192.0.2.7", "::"])
_CLIENT_NAMES = st.one_of(
    _SAID,
    st.builds("{} ({})".format, _SAID, _ADDRESSES),
    st.builds("{} ({}) ({})".format, _SAID, _ADDRESSES, _ADDRESSES),
)


@given(st.dictionaries(_ADDRESSES, _CLIENT_NAMES), st.sampled_from(["", NETWORKS]))
def test_no_two_addresses_have_one_label(given: dict[str, str], named: str) -> None:
    found = labels(given, named)
    assert len(set(found.values())) == len(found)
    addresses = {text for text in found.values() if networks.reads_as_address(text)}
    assert not addresses & {"192.0.2.7", "::", "company", "other"}


# Files


def test_of_several_files_the_last_names_an_address(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("192.0.2.1 one\n192.0.2.2 two\n")
    (tmp_path / "b").write_text(
        "1700000000 02:00 192.0.2.2 deux *\n1700000001 02:00 192.0.2.3 * *\n"
    )
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = hosts.read(files, 1699999999)
    assert found.names == {packed("192.0.2.1"): "one", packed("192.0.2.2"): "deux"}
    assert found.until == 1700000000
    # A lease that has ended does not take away what another file says.
    assert hosts.read(files, 1700000000) == (
        {packed("192.0.2.1"): "one", packed("192.0.2.2"): "two"},
        NEVER,
    )


def test_a_bad_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.1 a\nb\n")
    with pytest.raises(ValueError, match=f"{file}, line 2: 'b' is not an address"):
        hosts.read([str(file)], 0)
    # The kernel answers EIO to a read of the last of these at its beginning.
    for name in (str(tmp_path / "none"), str(tmp_path), "/proc/self/mem"):
        with pytest.raises(OSError, match=r"No such file|Is a directory|Input/output") as raised:
            hosts.read([name], 0)
        assert raised.value.filename == name


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.1 a\n" * 10)
    monkeypatch.setattr(hosts, "_MAX_FILE_SIZE", 100)
    with pytest.raises(OSError, match="it is larger than 0 MiB"):
        hosts.read([str(file)], 0)
    monkeypatch.setattr(hosts, "_MAX_FILE_SIZE", 1 << 26)
    lines = "".join(f"10.{n >> 8}.{n & 255}.1 {n:0255}\n" for n in range(16500))
    file.write_text(lines)
    with pytest.raises(ValueError, match="names are together longer than 4 MiB"):
        hosts.read([str(file)], 0)


def test_a_name_that_is_not_utf_8_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "leases"
    file.write_bytes(
        b"1700000000 02:00 192.0.2.1 a\xff *\n1700000000 02:00 192.0.2.2 \xc3\xa9t\xc3\xa9 *\n"
    )
    assert hosts.read([str(file)], 0).names == {packed("192.0.2.2"): "été"}


def test_a_file_that_is_being_rewritten_is_read_again(tmp_path: Path) -> None:
    """dnsmasq empties its file, and then writes it."""
    file = tmp_path / "leases"
    file.write_text(DNSMASQ)
    for _ in range(20):
        os.truncate(file, 0)
        writer = threading.Timer(0.005, file.write_text, [DNSMASQ])
        writer.start()
        found = hosts.read([str(file)], 0)
        writer.join()
        assert len(found.names) == 4


# Hostile texts

_PIECES = st.sampled_from(
    [
        *("\n", "\n", "\n", " ", ",", "{", "}", ";", '"', "\\", "#", "%", "&#x", "&#x2c", "\\012"),
        *("10.0.0.1", "2001:db8::1", "fe80::1%x", "0.0.0.0", "1700000000", "0", "9" * 25, "-1"),
        *("lease ", "iaaddr ", "ends ", "never;", "binding state active;", "client-hostname "),
        *(
            "address,valid_lifetime,expire,hostname",
            ",state,lease_type",
            "duid 00:01",
            "4294967295",
        ),
        *("epoch 1;", "4 2024/01/04 10:00:00;", "4 0000/00/99 99:99:99;", "ia-na ", "tv", "*"),
        *("\r", "\0", "\udcff", "\u202e", "é", "\t", "\x85", "\u2028"),
    ]
)
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=5)), max_size=60).map("".join)
_BEGUN = st.sampled_from(
    [
        *("", "10.0.0.1 a\n", "duid 00\n", "1700000000 02:00 10.0.0.1 a *\n", "#,,,\n"),
        *("address,valid_lifetime,expire,hostname\n", "lease 10.0.0.1 {\n", "a b;\n", DHCPD, KEA6),
        *("hostname\naddress,hostname,expire,valid_lifetime,state\n", ETC_HOSTS, DNSMASQ),
    ]
)


@settings(max_examples=300)
@given(_BEGUN, _TEXTS)
def test_any_text_has_names_or_a_reason(begun: str, text: str) -> None:
    try:
        found = hosts.parse(begun + text)
    except ValueError:
        return
    for address, lease in found.items():
        assert len(address) in (4, 16)
        assert isinstance(lease.ends, (int, float))
        assert lease.ends < 0 or lease.name.isprintable()
        assert len(lease.name.encode()) <= 255
    hosts.labels({address: lease.name for address, lease in found.items() if lease.name}, ())


_LONG = 300_000  # characters


def hostile() -> Iterator[tuple[str, str]]:
    """Texts on which time could grow with the square of their length."""
    for begun in ("lease 10.0.0.1 {\n", "10.0.0.1 a\n", "1 2 10.0.0.1 a *\n", KEA6, ""):
        for piece in (
            *('"', "\\", '\\"', "{", " ", "\n", ",", "lease ", 'client-hostname "', "\t\n", "#"),
            *("&#x", "\\0", "ends ", "address,", "10.0.0.1 ", "}\n", "\nlease 10.0.0.1 {", "a;\n"),
            *('\nclient-hostname "' + "\\" * 50, "address,valid_lifetime,expire,hostname\n"),
        ):
            yield begun, piece


@pytest.mark.parametrize(("begun", "piece"), [*hostile()])
def test_time_grows_with_the_length_of_a_text(begun: str, piece: str) -> None:
    text = begun + piece * (_LONG // len(piece)) + "\n"
    started = time.process_time()
    with contextlib.suppress(ValueError):
        hosts.parse(text)
    assert time.process_time() - started < 5  # it takes 0.3 s; with the square, minutes


def test_leases_of_many_hosts_take_a_second() -> None:
    count = 100_000
    row = "10.{}.{}.{},02:00:00:00:00:01,01:02,3600,1795514334,1,0,0,host-{}.example.org,0,\n"
    header = (DATA / "kea-leases4.csv").read_text().partition("\n")[0]
    rows = [row.format(n >> 16, n >> 8 & 255, n & 255, n) for n in range(count)]
    started = time.process_time()
    found = hosts.parse("".join([f"{header}\n", *rows]))
    shown_by = hosts.labels({address: lease.name for address, lease in found.items()}, ())
    assert time.process_time() - started < 20
    assert len(set(shown_by.values())) == count
