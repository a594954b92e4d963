"""SIGKILL at every step of a one-shot run: nothing falls, nothing is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import need
from tests.netns import check, inside, namespaces, sysctl

if TYPE_CHECKING:
    from pathlib import Path as Directory

PROGRAM = Path(__file__).with_name("interrupt.py")
RULES = """
table inet t {
    chain o {
        type filter hook output priority 0;
        ct state new accept
    }
}
"""


@pytest.mark.parametrize(("engine", "kills"), [("compiled", 200), ("pure", 80)])
def test_no_value_falls_whenever_a_run_is_killed(
    tmp_path: Directory, engine: str, kills: int
) -> None:
    need("ip", "nft", "sysctl", root=True)
    with namespaces("kill") as (name,):
        sysctl(
            name,
            net__netfilter__nf_conntrack_acct=1,
            net__netfilter__nf_conntrack_events=1,
            net__netfilter__nf_conntrack_udp_timeout=600,
            net__netfilter__nf_conntrack_udp_timeout_stream=600,
        )
        check(*inside(name), "nft", "-f", "-", text=RULES)
        done = subprocess.run(
            [
                *inside(name),
                *("env", f"CONNTRACK_TEXTFILE_ENGINE={engine}"),
                *(sys.executable, PROGRAM, str(tmp_path), str(kills)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # At a line, or in the shortest time that a run takes.
    assert found["killed"] > kills / 2
    # A run that was killed before its first event, or after its end, has lost nothing.
    assert found["killed"] / 10 < found["interrupted"] <= found["killed"]
    assert found["sent"] / 10 < found["counted"] <= found["sent"]
    assert found["files"] == ["out.prom", "state", "state.lock"]
