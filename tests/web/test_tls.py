from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.logs import LOG
from conntrack_textfile.web.config import load
from tests.certificates import TLS, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("NoClientCert", ssl.CERT_NONE),
        ("RequestClientCert", ssl.CERT_NONE),
        ("RequireAnyClientCert", ssl.CERT_REQUIRED),
        ("RequireClientCert", ssl.CERT_REQUIRED),
        ("VerifyClientCertIfGiven", ssl.CERT_OPTIONAL),
        ("RequireAndVerifyClientCert", ssl.CERT_REQUIRED),
    ],
)
def test_gos_names_of_client_authentication(place: Path, kind: str, mode: ssl.VerifyMode) -> None:
    authorities = "" if kind == "NoClientCert" else "  client_ca_file: ca.crt\n"
    settings = load(write(place, f"{TLS}  client_auth_type: {kind}\n{authorities}"))
    assert settings.tls is not None
    assert settings.tls.verify_mode == mode


def test_client_certificates_without_client_ca_file_are_verified_by_the_cas_of_this_host(
    place: Path,
) -> None:
    for kind, mode in (
        ("VerifyClientCertIfGiven", ssl.CERT_OPTIONAL),
        ("RequireAndVerifyClientCert", ssl.CERT_REQUIRED),
    ):
        tls = load(write(place, f"{TLS}  client_auth_type: {kind}\n")).tls
        assert tls is not None
        assert tls.verify_mode == mode
        expected = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        expected.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        assert tls.cert_store_stats() == expected.cert_store_stats()


@pytest.mark.parametrize(
    "text", [TLS, TLS + "  cipher_suites:\n", TLS + "  cipher_suites: []\n  client_ca_file: ''\n"]
)
def test_empty_fields_are_as_absent_ones(place: Path, text: str) -> None:
    tls = load(write(place, text)).tls
    assert tls is not None
    assert tls.minimum_version == ssl.TLSVersion.TLSv1_2
    assert len(tls.get_ciphers()) > 10


@pytest.mark.parametrize("value", ["true", "false", "yes", "off", "", "True"])
def test_prefer_server_cipher_suites(place: Path, value: str) -> None:
    text = f"{TLS}  prefer_server_cipher_suites: {value}\nhttp_server_config:\n  http2: {value}\n"
    tls = load(write(place, text)).tls
    assert tls is not None
    preferred = bool(tls.options & ssl.OP_CIPHER_SERVER_PREFERENCE)
    assert preferred == (value not in ("false", "off"))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_world_readable_key_is_warned_of(
    place: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    LOG.propagate = True
    (place / "server.key").chmod(mode)
    load(write(place, TLS))
    assert ("all users of this host can read the key" in caplog.text) == warned
