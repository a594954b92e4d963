from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.errors import UsageError
from conntrack_textfile.namefiles import read, watch
from conntrack_textfile.plan import NameFiles, Plan

if TYPE_CHECKING:
    from pathlib import Path


def test_names_of_all_files(tmp_path: Path) -> None:
    for name, text in {
        "networks": "198.51.100.0/24 office\n",
        "services": "game 7777/udp\n",
        "first": "192.0.2.1 one\n192.0.2.2 two\n",
        "second": "192.0.2.1 uno\n",
    }.items():
        (tmp_path / name).write_text(text)
    hosts = (f"{tmp_path}/first", f"{tmp_path}/second")
    files = NameFiles(f"{tmp_path}/networks", f"{tmp_path}/services", hosts)
    plan, until = read(files, Plan())
    assert plan.address_names == ["office", "two", "uno"]  # of hosts the last file wins
    assert "game" in plan.service_names
    assert until == float("inf")
    assert read(NameFiles(), plan) == (plan, until)


@pytest.mark.parametrize("option", ["networks", "services", "hosts"])
def test_an_error_names_option_and_file(tmp_path: Path, option: str) -> None:
    missing = f"{tmp_path}/none"
    files = NameFiles(**{option: (missing,) if option == "hosts" else missing})  # type: ignore[arg-type]
    with pytest.raises(UsageError) as error:
        read(files, Plan())
    assert str(error.value) == (
        f"--{option}.file: cannot read {missing}: No such file or directory"
    )


def test_names_expire_with_their_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = tmp_path / "leases"
    leases.write_text("100 02:00 192.0.2.1 laptop *\n200 02:00 192.0.2.2 tv *\n")
    one, two = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
    now = 50.0
    monkeypatch.setattr("time.time", lambda: now)
    files = NameFiles(hosts=(str(leases),))
    plans = watch(files, *read(files, Plan()))
    first = plans.current()
    assert first.hosts == {one: "laptop", two: "tv"}
    now = 99.0
    assert plans.current() is first
    now = 100.0
    assert plans.current().hosts == {two: "tv"}
    now = 200.0
    assert plans.current().hosts == {}
    # Renewed leases of the same names are the same plan: nothing has to begin anew.
    leases.write_text("300 02:00 192.0.2.1 laptop *\n300 02:00 192.0.2.2 tv *\n#\n")
    renewed = plans.current()
    assert renewed == first
    leases.write_text("400 02:00 192.0.2.2 tv *\n400 02:00 192.0.2.1 laptop *\n# \n")
    assert plans.current() is renewed
    now = 300.0
    assert plans.current() is renewed
    now = 400.0
    assert plans.current().hosts == {}
