"""Certificates of the tests' own, made by openssl(1)."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def _openssl(directory: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)


def authority(directory: Path, name: str = "ca") -> None:
    """Make name.crt and name.key, which sign others."""
    files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    usage = ["-addext", "keyUsage=critical,keyCertSign", "-subj", f"/CN={name}"]
    _openssl(directory, "req", "-x509", *_KEY, *files, "-days", "2", *usage)


def certificate(directory: Path, name: str, by: str = "ca") -> None:
    """Make name.crt and name.key, for localhost and signed by an authority."""
    files = ["-keyout", f"{name}.key", "-out", f"{name}.csr"]
    _openssl(directory, "req", *_KEY, *files, "-subj", f"/CN={name}")
    # All that strict clients ask for.
    (directory / "ext").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    signed = ["-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-days", "2", "-extfile", "ext"]
    _openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
