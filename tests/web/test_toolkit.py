"""The public test cases of Prometheus' exporter toolkit: what it does, and what we do.

They are facts of web/tls_config_test.go, web/handler_test.go and web/testdata at
https://github.com/prometheus/exporter-toolkit (2026, commit 19a7c2d).
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import ssl
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import bcrypt
import pytest

from conntrack_textfile.errors import UsageError
from conntrack_textfile.web.body import EMPTY
from conntrack_textfile.web.config import watch
from tests.certificates import TLS, basic, certificate, write
from tests.conftest import need
from tests.web.serving import application, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
AFTER = PAGE.partition("Differences from exporters written in Go:")[2]
DIFFERENCES = AFTER[: AFTER.index("\n## ")]

GIVEN = f"{TLS}  client_auth_type: VerifyClientCertIfGiven\n"
VERIFIED = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
GCM_128, GCM_256 = (
    *("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
)
SOME_CIPHERS = (
    f"{GIVEN}  cipher_suites: [{GCM_128}, {GCM_256}]\n  min_version: TLS12\n  max_version: TLS12\n"
)
NO_ORDER = SOME_CIPHERS.replace(f"{GCM_128}, {GCM_256}", f"{GCM_256}, {GCM_128}")
NO_ORDER += "  prefer_server_cipher_suites: false\n"
NO_HTTP2 = f"{GIVEN}  cipher_suites: [{GCM_256}]\n  max_version: TLS12\n"
ALL_CIPHERS = (
    *("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    *(GCM_128, GCM_256),
    *("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",),
    *("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"),
    *("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"),
    *("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"),
    *("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"),
)


def hashed(password: str, cost: int) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


# Of the toolkit's costs, that of 12 is 5 here and that of 10 is 4, to be quick; the
# password of bob, of cost 18, is in none of its cases either.
USERS = f"""basic_auth_users:
  alice: {hashed("alice123", 5)}
  bob: {hashed("bob123", 4).replace("$04$", "$18$")}
  carol: {hashed("carol123", 4)}
  dave: {hashed("dave123", 4)}
"""

HEADERS = """http_server_config:
  headers:
    X-Frame-Options: deny
    Strict-Transport-Security: max-age=31536000; includeSubDomains
    X-Content-Type-Options: nosniff
    X-XSS-Protection: 1
    Content-Security-Policy: "default-src 'self' *.test.example.net"
"""


def header(line: str) -> str:
    return f"http_server_config:\n  headers:\n    {line}\n"


class Client(NamedTuple):
    """A client."""

    tls: bool = True
    certificate: str = ""
    ciphers: str = ""  # of OpenSSL, for TLS 1.2
    old: bool = False  # TLS 1.1 at most
    user: str = ""
    password: str = ""


PLAIN = Client(tls=False)
CERT = Client(certificate="client")

REFUSED = "refused"  # by a usage error, at start
NOT_SERVED = "not served"  # for lack of TLS, or of what they have in common


class Case(NamedTuple):
    """A web config file, a client, and the outcomes: status codes, or the constants above."""

    name: str
    text: str | None  # None: there is no such file
    client: Client
    toolkit: str
    ours: str
    told: str = ""  # where they differ: what docs/serve.md says of it


def bad(name: str, text: str | None) -> Case:
    return Case(name, text, PLAIN, REFUSED, REFUSED)


def same(name: str, text: str, client: Client, outcome: str = "200") -> Case:
    return Case(name, text, client, outcome, outcome)


CURVES = GIVEN + "  curve_preferences: [{}]\n"
INLINE = "certificates in the file itself"
SANS = VERIFIED + "  client_allowed_sans: [{}]\n"
RATE = "rate_limit:\n  interval: {}\n  burst: 0\n"
AES_128 = Client(ciphers="ECDHE-RSA-AES128-GCM-SHA256")
AES_BOTH = Client(ciphers="ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384")
AES_CBC = Client(ciphers="ECDHE-RSA-AES256-SHA")

FAKE = Client(tls=False, user="fakeuser", password="fakepassword")

CASES = [
    # TestYAMLFiles
    bad("path to config yml invalid", None),
    same("empty config yml", "", PLAIN),
    bad("invalid structure", "hWkNKCp3fvIx3jKnsaBI\nTuEjdwNS8A2vYdFbiKqr\n"),
    bad("invalid key", "tls_server_config:\n  cert_filse: server.crt\n"),
    bad("cert path empty", TLS.replace("server.crt", '""')),
    bad("cert empty", 'tls_server_config:\n  cert: ""\n  key_file: server.key\n'),
    bad("key path empty", TLS.replace("server.key", '""')),
    bad("key empty", 'tls_server_config:\n  cert_file: server.crt\n  key: ""\n'),
    bad(
        "cert path and key path empty",
        'tls_server_config:\n  cert_file: ""\n  key_file: ""\n  client_auth_type: x\n',
    ),
    bad("cert path invalid", TLS.replace("server.crt", "somefile")),
    bad("key path invalid", TLS.replace("server.key", "somefile")),
    bad("both paths invalid", "tls_server_config:\n  cert_file: some\n  key_file: some\n"),
    bad("client CA without policy", f"{TLS}  client_ca_file: /dev/null\n"),
    bad("invalid client CA path", f"{TLS}  client_ca_file: somefile\n"),
    bad("invalid user list", f"{TLS}basic_auth_users:\n  john: doe\n"),
    bad("bad cipher", f"{GIVEN}  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA2048]\n"),
    bad("bad curves", CURVES.format("CurveP257")),
    bad("bad TLS version", f"{GIVEN}  min_version: TLS111\n"),
    # TestServerBehaviour
    same("no TLS and a TLS client", "", Client(), NOT_SERVED),
    same("TLS and a default client", GIVEN, PLAIN, "400"),
    same("TLS and a TLS client", GIVEN, Client()),
    Case(
        "cert and key inline",
        "tls_server_config:\n  cert: |\n    PEM\n  key: |\n    PEM\n",
        *(Client(), "200", REFUSED, INLINE),
    ),
    same("TLS 1.1 client", GIVEN, Client(old=True), NOT_SERVED),
    same("all ciphers", f"{GIVEN}  cipher_suites: [{', '.join(ALL_CIPHERS)}]\n", Client()),
    same("some ciphers", SOME_CIPHERS, AES_128),
    same("no common cipher", SOME_CIPHERS, AES_CBC, NOT_SERVED),
    same("multiple client ciphers", SOME_CIPHERS, AES_BOTH, "200 ECDHE-RSA-AES128-GCM-SHA256"),
    same("client chooses cipher", NO_ORDER, AES_BOTH, "200 ECDHE-RSA-AES128-GCM-SHA256"),
    Case(
        "all curves",
        CURVES.format("CurveP256, CurveP384, CurveP521, X25519"),
        *(Client(), "200", REFUSED, "`curve_preferences`"),
    ),
    Case(
        "some curves", CURVES.format("CurveP521"), Client(), "200", REFUSED, "`curve_preferences`"
    ),
    Case(
        "no common curves",
        CURVES.format("CurveP521"),
        *(Client(), NOT_SERVED, REFUSED, "`curve_preferences`"),
    ),
    same("non-http2 ciphers", f"{NO_HTTP2}http_server_config:\n  http2: false\n", Client()),
    Case("non-http2 ciphers but http2 enabled", NO_HTTP2, Client(), REFUSED, "200", "`http2`"),
    same("headers", HEADERS, PLAIN),
    bad("invalid X-Content-Type-Options", header("X-Content-Type-Options: sniff")),
    bad("invalid X-Frame-Options", header("X-Frame-Options: foo")),
    bad("header that can not be overridden", header("Content-Type: foo")),
    Case(
        "RequireAnyClientCert, certificate present",
        f"{TLS}  client_auth_type: RequireAnyClientCert\n",
        *(CERT, "200", REFUSED, "`RequireAnyClientCert`"),
    ),
    Case(
        "cert from file and key inline, RequireAnyClientCert",
        "tls_server_config:\n  cert_file: server.crt\n  key: |\n    PEM\n",
        *(CERT, "200", REFUSED, INLINE),
    ),
    same("RequireAndVerifyClientCert, certificate present", VERIFIED, CERT),
    Case("good SAN", SANS.format("localhost"), CERT, "200", REFUSED, "`client_allowed_sans`"),
    Case("invalid SAN", SANS.format("bad"), CERT, NOT_SERVED, REFUSED, "`client_allowed_sans`"),
    Case("no rate limiter", RATE.format(0), PLAIN, "200", REFUSED, "`rate_limit`"),
    Case("rate limiter of one second", RATE.format("1s"), PLAIN, "429", REFUSED, "`rate_limit`"),
    # TestUsers
    same("without basic auth", USERS, PLAIN, "401"),
    same("basic auth", USERS, Client(tls=False, user="dave", password="dave123")),
    same("without basic auth, TLS", TLS + USERS, Client(), "401"),
    same("basic auth, TLS", TLS + USERS, Client(user="dave", password="dave123")),
    same("another basic auth, TLS", TLS + USERS, Client(user="carol", password="carol123")),
    same("bad password", TLS + USERS, Client(user="dave", password="bad"), "401"),
    same("bad username", TLS + USERS, Client(user="nonexistent", password="nonexistent"), "401"),
    # TestBasicAuthWithFakepassword
    same(
        "fake password", USERS, Client(tls=False, user="fakeuser", password="fakepassword"), "401"
    ),
    # TestTLSConfigIsEnabled
    same("empty TLS config", "tls_server_config: {}\n", PLAIN),
    Case(
        "fields that enable nothing",
        "tls_server_config:\n  min_version: TLS12\n  prefer_server_cipher_suites: true\n",
        *(PLAIN, "200", REFUSED, "without `cert_file`"),
    ),
    same("cert and key files", TLS, Client()),
    bad("inline, no PEM", "tls_server_config:\n  cert: cert\n  key: key\n"),
    bad("client CA file alone", "tls_server_config:\n  client_ca_file: ca.crt\n"),
    bad("auth type alone", "tls_server_config:\n  client_auth_type: RequireAndVerifyClientCert\n"),
]


@pytest.fixture(scope="module")
def files(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate with an RSA key, as the cases have it."""
    need("openssl")
    directory = tmp_path_factory.mktemp("toolkit")
    shutil.copytree(made, directory, dirs_exist_ok=True)
    certificate(directory, "server", rsa=True)
    (directory / "server.key").chmod(0o600)
    return directory


def ask(port: int, client: Client, files: Path) -> str:
    """Return the status of a response, with the cipher suite if the client offered some."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    if client.tls:
        context = ssl.create_default_context(cafile=str(files / "ca.crt"))
        if client.certificate:
            certificate = files / client.certificate
            context.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
        if client.ciphers:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(client.ciphers)
        if client.old:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    headers = {"Authorization": basic(client.user, client.password)} if client.user else {}
    with contextlib.closing(connection):
        try:
            connection.connect()
            cipher = (
                connection.sock.cipher() if isinstance(connection.sock, ssl.SSLSocket) else None
            )
            connection.request("GET", "/metrics", headers=headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return NOT_SERVED
    return f"{status} {cipher[0]}" if cipher and ":" in client.ciphers else str(status)


@contextlib.contextmanager
def served(files: Path, text: str) -> Iterator[int]:
    with listening(application(lambda: (b"", EMPTY), watch(write(files, text)))) as port:
        yield port


def outcome(files: Path, case: Case) -> str:
    if case.text is None:
        with pytest.raises(UsageError):
            watch(str(files / "somefile"))
        return REFUSED
    try:
        with served(files, case.text) as port:
            return ask(port, case.client, files)
    except UsageError:
        return REFUSED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_of_the_toolkit(files: Path, case: Case) -> None:
    assert outcome(files, case) == case.ours


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_difference_is_in_the_documentation(case: Case) -> None:
    assert (case.toolkit != case.ours) == bool(case.told)
    assert case.told in DIFFERENCES


def test_without_a_file_there_is_no_tls(files: Path) -> None:
    with listening(application(lambda: (b"", EMPTY))) as port:
        assert ask(port, PLAIN, files) == "200"
        assert ask(port, Client(), files) == NOT_SERVED


def test_300_logins_at_once_right_and_wrong(files: Path) -> None:
    """TestBasicAuthCache: as there, all are answered."""
    clients = [Client(tls=False, user="alice", password=word) for word in ("alice123", "alice1234")]
    with served(files, USERS) as port, ThreadPoolExecutor(300) as pool:
        answers = list(pool.map(lambda client: ask(port, client, files), clients * 150))
    assert answers == ["200", "401"] * 150


def test_a_verdict_is_of_one_name_and_password(files: Path) -> None:
    """TestByPassBasicAuthVuln: where one ends and the other begins makes a difference."""
    alice = hashed("alice123", 4)
    with served(files, f"basic_auth_users:\n  alice: {alice}\n") as port:
        for user, password in (
            (f"alice{alice}", "fakepassword"),
            ("alice", f"{alice}fakepassword"),
        ):
            client = Client(tls=False, user=user, password=password)
            assert ask(port, client, files) == "401"


def test_headers_are_sent(files: Path) -> None:
    """TestHTTPHeaders."""
    with served(files, HEADERS) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            sent = connection.getresponse().headers
    for name, value in {
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "X-Frame-Options": "deny",
        "X-Content-Type-Options": "nosniff",
        "X-XSS-Protection": "1",
    }.items():
        assert sent[name] == value


def test_a_new_file_that_asks_for_less_has_no_effect(files: Path) -> None:
    """TestConfigReloading: there it has; here it needs a restart."""
    assert "Weaker settings need a restart" in DIFFERENCES
    with served(files, f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n") as port:
        assert ask(port, Client(), files) == NOT_SERVED
        write(files, GIVEN)
        assert ask(port, Client(), files) == NOT_SERVED
    with served(files, GIVEN) as port:
        assert ask(port, Client(), files) == "200"
