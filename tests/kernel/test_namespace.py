from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.collector import Collector
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events, namespace, netlink, source, statistics
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.namespace import OWN, Namespace
from conntrack_textfile.options import parse
from conntrack_textfile.plan import Plan
from tests.conftest import need
from tests.netns import check, inside, namespaces, sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RULES = "table inet t {\nchain o {\ntype filter hook output priority 0\nct state new accept\n}\n}\n"


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    """Make a namespace with five connections."""
    need("ip", "nft", "conntrack", "ping", "sysctl", root=True)
    with namespaces("ns") as (made,):
        check(*inside(made), "nft", "-f", "-", text=RULES)
        sysctl(made, net__netfilter__nf_conntrack_icmp_timeout=600)
        for host in range(1, 6):
            check(*inside(made), "ping", "-q", "-c", "1", f"127.0.0.{host}")
        yield made


def passed(space: Namespace, count: int) -> list[socket.socket]:
    """Return sockets for dumps, as systemd passes them."""
    kind = socket.AF_NETLINK, socket.SOCK_RAW, 12
    return [space.run(lambda: socket.socket(*kind)) for _ in range(count)]


def test_names_are_resolved_to_paths() -> None:
    wanted = ["blue", "pid:7", "/run/x", "./y", "host"]
    assert namespace.find(wanted, "/host/proc") == {
        "./y": "./y",
        "/run/x": "/run/x",
        "blue": "/run/netns/blue",
        "host": "",
        "pid:7": "/host/proc/7/ns/net",
    }


def test_all_is_each_name_in_run_netns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespace, "DIRECTORY", str(tmp_path / "none"))
    assert namespace.find(["all"], "/proc") == {}
    monkeypatch.setattr(namespace, "DIRECTORY", str(tmp_path))
    (tmp_path / "file").touch()  # as ip netns add makes first
    (tmp_path / "passed").touch()  # with sockets from systemd, but its mount is not visible here
    for link in ("blue", "host", "pid:1", "all"):
        (tmp_path / link).symlink_to("/proc/self/ns/net")
    os.symlink("/proc/self/ns/net", os.fsencode(tmp_path) + b"/\xff")
    found = namespace.find(["all"], "/proc", ["passed"])
    # A name with another meaning in --netns is replaced by its path.
    others = {f"{tmp_path}/{other}" for other in ("all", "host", "pid:1")}
    assert found.keys() == {"blue", "passed", "\\xff"} | others


def test_only_the_thread_that_enters_is_inside(name: str) -> None:
    space = Namespace(f"/run/netns/{name}")
    before = os.readlink("/proc/thread-self/ns/net")
    within = space.run(lambda: os.readlink("/proc/thread-self/ns/net"))
    assert within != before
    assert os.readlink("/proc/thread-self/ns/net") == before
    assert space.identity()[1] == within
    assert OWN.identity()[1] == before
    assert space.identity()[2] != OWN.identity()[2]
    assert threading.active_count() == len(threading.enumerate())


def test_errors_of_the_function_are_raised(name: str) -> None:
    def fails() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        Namespace(f"/run/netns/{name}").run(fails)


def test_a_path_that_cannot_be_entered_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^there is no /run/netns/nope$"):
        Namespace("/run/netns/nope").run(list)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null", "/etc/passwd"):
        with pytest.raises(SourceError, match="it is not a network namespace"):
            Namespace(str(path)).run(list)


def test_names_that_cannot_be_listed_are_a_source_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(namespace, "DIRECTORY", str(file))
    reason = f"cannot list the network namespaces: {file}: Not a directory"
    with pytest.raises(SourceError, match=f"^{reason}$"):
        namespace.find(["all"], "/proc")
    options = parse(["serve", "--netns=all"])
    collector = Collector(options, make(options.plan))
    with pytest.raises(SourceError, match=f"^{reason}$"):
        collector.take()
    parts = collector.failure(None).parts
    assert parts is not None
    assert set(parts) == {"all"}


def test_a_thread_that_cannot_be_started_is_a_source_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:  # as by TasksMax= of a unit
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(SourceError, match=f"cannot enter /run/netns/{name}: can't start new"):
        Namespace(f"/run/netns/{name}").run(list)


def test_the_size_is_what_conntrack_counts(name: str) -> None:
    entries, limit = statistics.size(Namespace(f"/run/netns/{name}"))
    assert entries == int(check(*inside(name), "conntrack", "-C")) == 5
    with open("/proc/sys/net/netfilter/nf_conntrack_max") as file:
        assert limit == int(file.read())


def test_passed_sockets_serve_one_request_each(name: str) -> None:
    path = f"/run/netns/{name}"
    space = Namespace(path, passed(Namespace(path), 2))
    with space.socket() as one, space.socket() as other:
        assert one.fileno() != other.fileno()
        with pytest.raises(OSError, match="in use") as raised, space.socket():
            pass
        assert raised.value.errno == errno.EBUSY
    space.check()
    assert space.identity() == Namespace(path).identity()
    space.close()


def test_datagrams_of_a_killed_run_are_discarded(name: str) -> None:
    path = f"/run/netns/{name}"
    (sock,) = passed(Namespace(path), 1)
    with netlink.dump(space=Namespace(path, [sock])):
        pass  # nothing of it is read: a dump is under way
    with netlink.dump(space=Namespace(path, [sock])) as dump:
        netlink.datagram(dump)
    _, tally = source.read("netlink", "/proc", make(Plan()), None, Namespace(path, [sock]))
    assert tally.entries == 5
    sock.close()


def test_sockets_of_a_replaced_namespace_are_not_read(name: str) -> None:
    sockets = passed(OWN, 1)
    with pytest.raises(SourceError, match="was replaced"):
        Namespace(f"/run/netns/{name}", sockets).check()
    with pytest.raises(SourceError, match="there is no"):
        Namespace("/run/netns/nope", sockets).check()
    assert events.groups(sockets[0]) == 0
    sockets[0].close()


def test_a_namespace_that_cannot_be_identified_is_a_source_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sock,) = passed(Namespace(f"/run/netns/{name}"), 1)
    sock.close()
    with pytest.raises(SourceError, match="cannot identify the network namespace"):
        Namespace(f"/run/netns/{name}", [sock]).identity()

    def refused() -> socket.socket:  # as where systemd allows no such sockets
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(namespace, "_socket", refused)
    with pytest.raises(SourceError, match="Address family not supported"):
        OWN.identity()
