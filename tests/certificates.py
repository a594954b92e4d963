"""Certificates made by openssl(1), and web config files that name them."""

from __future__ import annotations

import base64
import subprocess
from typing import TYPE_CHECKING

import bcrypt

if TYPE_CHECKING:
    from pathlib import Path

# Of the lowest cost: tests check many.
HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def _openssl(directory: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)


def authority(directory: Path, name: str = "ca") -> None:
    """Make the certificate and key of an authority: name.crt and name.key."""
    files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    usage = ["-addext", "keyUsage=critical,keyCertSign", "-subj", f"/CN={name}"]
    _openssl(directory, "req", "-x509", *_KEY, *files, "-days", "2", *usage)


def certificate(directory: Path, name: str, by: str = "ca", *, rsa: bool = False) -> None:
    """Make name.crt and name.key for localhost, signed by an authority."""
    files = ["-keyout", f"{name}.key", "-out", f"{name}.csr"]
    key = ["-newkey", "rsa:2048", "-nodes"] if rsa else _KEY
    _openssl(directory, "req", *key, *files, "-subj", f"/CN={name}")
    # The extensions that strict clients require.
    (directory / "ext").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    signed = ["-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-days", "2", "-extfile", "ext"]
    _openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)


def write(place: Path, text: str) -> str:
    """Write a web config file; return its path."""
    file = place / "web.yml"
    file.write_text(text)
    return str(file)


def basic(name: str, password: str) -> str:
    """Return the value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
