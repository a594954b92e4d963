"""The two engines give the same for the same bytes, whatever the bytes."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_textfile import ctnetlink, procfile
from conntrack_textfile.errors import EngineError
from conntrack_textfile.tally import Engine, engine
from tests import fuzz_engines
from tests.conftest import DATA
from tests.fuzz_engines import LINES, MESSAGES, outcome
from tests.program import run
from tests.test_procfile import tables

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Engine:
    try:
        from conntrack_textfile import _speedups
    except ImportError:
        pytest.skip("needs the compiled engine")
    assert _speedups.MAX_LINE_BYTES == procfile.MAX_LINE
    return engine()


def test_the_compiled_engine_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONNTRACK_TEXTFILE_ENGINE", raising=False)
    assert engine().name == "compiled"
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "pure")
    assert engine().name == "pure"
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "fast")
    with pytest.raises(EngineError, match="must be pure or compiled, not 'fast'"):
        engine()


WITHOUT = """
import sys
sys.modules["conntrack_textfile._speedups"] = None
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


def test_the_output_is_the_same_but_for_the_engines_name(
    monkeypatch: pytest.MonkeyPatch, capture: Path
) -> None:
    texts = []
    for name in ("pure", "compiled"):
        monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", name)
        text = run("write", f"--path.procfs={capture}").stdout
        texts.append([line for line in text.splitlines() if "_seconds " not in line])
    assert [line.replace("pure", "compiled") for line in texts[0]] == texts[1]


def agree_on_text(blocks: list[bytes]) -> None:
    from conntrack_textfile import _speedups

    assert outcome(_speedups.TextCounter(), blocks) == outcome(procfile.Counter(), blocks)


def agree_on_netlink(datagrams: list[bytes]) -> None:
    from conntrack_textfile import _speedups

    assert outcome(_speedups.NetlinkCounter(), datagrams) == outcome(ctnetlink.Counter(), datagrams)


def test_the_corpora_are_there() -> None:
    assert len(LINES) == 96
    assert len(MESSAGES) == 98  # with an end for each capture


@given(tables(), st.lists(st.integers(1, 400), max_size=10))
def test_engines_agree_on_damaged_lines(table: bytes, cuts: list[int]) -> None:
    blocks = []
    for cut in cuts:
        blocks.append(table[:cut])
        table = table[cut:]
    agree_on_text([*blocks, table])
    agree_on_text([bytes([byte]) for byte in table])


@given(st.randoms(use_true_random=False))
@settings(max_examples=1500)
def test_engines_agree_on_more_damaged_lines(random: fuzz_engines.Random) -> None:
    agree_on_text([fuzz_engines.damaged_text(random)])


@given(st.randoms(use_true_random=False))
@settings(max_examples=1500)
def test_engines_agree_on_damaged_messages(random: fuzz_engines.Random) -> None:
    agree_on_netlink(fuzz_engines.damaged_datagrams(random))


@pytest.mark.parametrize("error", [-1, -4, -4095, -4096, 1, 2**31 - 1, -(2**31), 0])
@pytest.mark.parametrize("kind", [2, 3])
def test_engines_agree_on_errors_of_the_kernel(error: int, kind: int) -> None:
    agree_on_netlink([struct.pack("=IHHIIi", 20, kind, 2, 1, 0, error)])


@given(st.binary(max_size=300))
def test_engines_agree_on_any_bytes(junk: bytes) -> None:
    agree_on_text([junk])
    agree_on_netlink([junk])


@pytest.mark.parametrize("address", fuzz_engines.ADDRESSES)
def test_engines_agree_on_odd_addresses(address: bytes) -> None:
    for line in (LINES[0], next(line for line in LINES if line.startswith(b"ipv6"))):
        before, _, rest = line.partition(b" src=")
        agree_on_text([before + b" src=" + address + b" " + rest.partition(b" ")[2]])


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("step", [1 << 20, 777, 1])
def test_engines_agree_on_the_limit_of_a_line(more: int, step: int) -> None:
    length = procfile.MAX_LINE + more
    text = LINES[0].rstrip(b"\n").ljust(length, b"x") + b"\n" + LINES[1]
    agree_on_text([text[i : i + step] for i in range(0, len(text), step)])


def test_sums_of_many_large_numbers_do_not_wrap() -> None:
    from conntrack_textfile import _speedups

    line = (
        b"ipv4 2 udp 17 src=10.0.0.1 dst=10.0.0.2 dport=53 packets=%d bytes=%d src=10.0.0.2 "
        b"dst=10.0.0.1 packets=%d bytes=0 use=1\n" % (2**64 - 1, 2**63, 2**64 - 2)
    )
    for counter in (procfile.Counter(), _speedups.TextCounter()):
        counter.feed(line * 1000)
        ((_, sums),) = counter.finish().sums.items()
        assert sums == (1000, 1000 * (2**64 - 1), 1000 * 2**63, 1000 * (2**64 - 2), 0)


def test_a_finished_counter_takes_no_more() -> None:
    from conntrack_textfile import _speedups

    text, netlink = _speedups.TextCounter(), _speedups.NetlinkCounter()
    text.finish()
    netlink.finish()
    with pytest.raises(ValueError, match="finished"):
        text.feed(LINES[0])
    with pytest.raises(ValueError, match="finished"):
        netlink.feed(MESSAGES[0])


def test_engines_agree_on_many_keys() -> None:
    line = (
        "ipv4 2 udp 17 src=10.{}.{}.1 dst=10.0.0.2 sport=1 dport={} packets=1 bytes={} "
        "src=10.0.0.2 dst=10.0.0.1 packets=2 bytes=0 use=1\n"
    )
    text = "".join(line.format(i >> 8, i & 255, i % 7 * 9999, i) for i in range(50_000))
    agree_on_text([text.encode()])
