from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.kernel import sysctl

if TYPE_CHECKING:
    from pathlib import Path


def proc_root(path: Path, **values: str) -> str:
    directory = path / "sys" / "net" / "netfilter"
    directory.mkdir(parents=True)
    for name, text in values.items():
        (directory / name).write_text(text)
    return str(path)


def test_the_sysctls_are_read(tmp_path: Path) -> None:
    root = proc_root(
        tmp_path,
        nf_conntrack_count="12\n",
        nf_conntrack_max="262144\n",
        nf_conntrack_buckets="65536\n",
        nf_conntrack_acct="0\n",
    )
    assert sysctl.read(root) == sysctl.Conntrack(12, 262144, 65536, accounting=False)


@pytest.mark.parametrize("text", ["", "\n", "-1\n", "many\n", "9" * 40])
def test_a_value_that_is_not_a_number_is_absent(tmp_path: Path, text: str) -> None:
    conntrack = sysctl.read(proc_root(tmp_path, nf_conntrack_count=text))
    assert conntrack.entries is None or text.startswith("9")


def test_a_missing_sysctl_is_absent(tmp_path: Path) -> None:
    assert sysctl.read(str(tmp_path)) == sysctl.Conntrack(None, None, None, None)


def test_accounting_is_enabled(tmp_path: Path) -> None:
    root = proc_root(tmp_path, nf_conntrack_acct="0\n")
    sysctl.enable_accounting(root)
    assert sysctl.read(root).accounting is True


def test_enabled_accounting_need_not_be_writable(tmp_path: Path) -> None:
    root = proc_root(tmp_path)
    acct = tmp_path / "sys" / "net" / "netfilter" / "nf_conntrack_acct"
    acct.write_text("1 \n")  # which a write would change
    sysctl.enable_accounting(root)
    assert acct.read_text() == "1 \n"


def test_a_missing_sysctl_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sysctl.enable_accounting(str(tmp_path))


def test_a_sysctl_that_reads_back_another_value_is_an_error(tmp_path: Path) -> None:
    root = proc_root(tmp_path)
    # A file of the kernel that takes a 1, and gives nothing back.
    acct = tmp_path / "sys" / "net" / "netfilter" / "nf_conntrack_acct"
    acct.symlink_to("/proc/self/clear_refs")
    with pytest.raises(OSError, match="does not keep the value"):
        sysctl.enable_accounting(root)


@pytest.mark.parametrize("name", ["nf_conntrack_count", "nf_conntrack_max", "nf_conntrack_acct"])
def test_a_fifo_does_not_block(tmp_path: Path, name: str) -> None:
    root = proc_root(tmp_path, nf_conntrack_count="1\n", nf_conntrack_max="1\n")
    file = tmp_path / "sys" / "net" / "netfilter" / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    before = sysctl.read(root)
    file.unlink()
    file.write_text("1\n")  # and the next reading is whole
    assert sysctl.read(root).count(None) == before.count(None) - 1


def test_a_fifo_is_not_set(tmp_path: Path) -> None:
    root = proc_root(tmp_path)
    os.mkfifo(tmp_path / "sys" / "net" / "netfilter" / "nf_conntrack_acct")
    with pytest.raises(OSError, match=r"No such device|not a regular file"):
        sysctl.enable_accounting(root)
