from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest

from conntrack_textfile import webconfig
from conntrack_textfile.logs import LOG
from conntrack_textfile.options import UsageError
from conntrack_textfile.webconfig import Access, Passwords, load
from tests.certificates import authority, certificate
from tests.conftest import DATA, need
from tests.program import COMMAND, Serving, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"
# Quick to check, as tests check many.
HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with certificates of one authority and of another."""
    need("openssl")
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        authority(directory, name)
    for name in ("server", "second", "client"):
        certificate(directory, name)
    certificate(directory, "stranger", by="other")
    return directory


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A directory with the files of a server, to be changed."""
    for name in ("ca.crt", "server.crt", "server.key", "second.crt", "second.key", "client.key"):
        shutil.copy(made / name, tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def log() -> None:
    LOG.propagate = True
    LOG.setLevel("INFO")


def write(place: Path, text: str) -> str:
    file = place / "web.yml"
    file.write_text(text)
    return str(file)


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


# The file


def test_a_file_of_the_exporter_toolkit_is_understood(place: Path) -> None:
    settings = load(
        write(
            place,
            f"""
tls_server_config:
  cert_file: server.crt
  key_file: {place}/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS12
  max_version: TLS13
  prefer_server_cipher_suites: true
  cipher_suites:
    - TLS_AES_128_GCM_SHA256
    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    - TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305
    - TLS_RSA_WITH_AES_256_CBC_SHA
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=31536000
basic_auth_users:
  alice: {HASH}
  bob: {HASH.replace("$2b$", "$2y$")}
""",
        )
    )
    assert set(settings.seen) == {
        *(str(place / name) for name in ("web.yml", "server.crt", "server.key", "ca.crt")),
    }
    assert settings.headers == {"Strict-Transport-Security": "max-age=31536000"}
    assert settings.passwords is not None
    assert settings.passwords.admit(basic("alice", "secret"))
    assert settings.passwords.admit(basic("bob", "secret"))
    assert settings.tls is not None
    assert settings.tls.verify_mode == ssl.CERT_REQUIRED
    offered = {cipher["name"] for cipher in settings.tls.get_ciphers()}
    assert {name for name in offered if not name.startswith("TLS_")} == {
        *("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "AES256-SHA"),
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "tls_server_config:\nbasic_auth_users: {}\n"])
def test_an_empty_file_asks_for_nothing(tmp_path: Path, text: str) -> None:
    settings = load(write(tmp_path, text))
    assert (settings.tls, settings.passwords, settings.headers) == (None, None, {})


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("NoClientCert", ssl.CERT_NONE),
        ("RequestClientCert", ssl.CERT_NONE),
        ("RequireAnyClientCert", ssl.CERT_REQUIRED),
        ("VerifyClientCertIfGiven", ssl.CERT_OPTIONAL),
        ("RequireAndVerifyClientCert", ssl.CERT_REQUIRED),
    ],
)
def test_gos_names_of_client_authentication(place: Path, kind: str, mode: ssl.VerifyMode) -> None:
    authorities = "" if kind == "NoClientCert" else "  client_ca_file: ca.crt\n"
    settings = load(write(place, f"{TLS}  client_auth_type: {kind}\n{authorities}"))
    assert settings.tls is not None
    assert settings.tls.verify_mode == mode


WRONG = [
    ("tls_server_confg: {}\n", 1, "tls_server_confg is not known in the file; tls_server_config,"),
    ("[]\n", 1, "the file must be a mapping"),
    ("a: [\n", 2, "expected the node content"),
    ("tls_server_config: 5\n", 1, "tls_server_config must be a mapping"),
    ("tls_server_config:\n  cert_file: server.crt\n", 2, "tls_server_config needs key_file"),
    (TLS + "  curve_preferences: []\n", 4, "curve_preferences is not known in tls_server_config"),
    (TLS + "  key_file: server.key\n", 4, "key_file stands twice in tls_server_config"),
    (TLS.replace("server.crt", "none.crt"), 2, "cannot read cert_file"),
    (TLS.replace("server.key", "none.key"), 3, "none.key: No such file or directory"),
    (TLS.replace("server.key", "second.key"), 2, "of no use: key values mismatch"),
    (TLS.replace("server.crt", "server.key"), 2, "cert_file and key_file are of no use"),
    (TLS + "  min_version: TLS14\n", 4, "min_version must be one of TLS10, TLS11, TLS12, TLS13"),
    (TLS + "  max_version: TLS11\n", 4, "max_version TLS11 is too old"),
    (TLS + "  min_version: TLS13\n  max_version: TLS12\n", 4, "min_version is above max_version"),
    (TLS + "  cipher_suites: TLS_X\n", 4, "cipher_suites must be a list"),
    (TLS + "  cipher_suites:\n    - TLS_X\n", 5, "the cipher suite TLS_X is not offered"),
    (TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", 4, "RC4_128_SHA is not offered"),
    (TLS + "  max_version: TLS12\n  cipher_suites: []\n", 5, "cipher_suites has none of TLS 1.2"),
    (TLS + "  client_auth_type: Maybe\n", 4, "client_auth_type must be one of NoClientCert, Req"),
    (TLS + "  client_ca_file: ca.crt\n", 4, "is of no use without client_auth_type"),
    (TLS + "  client_auth_type: RequireAndVerifyClientCert\n", 2, "needs client_ca_file"),
    (
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: server.key\n",
        *(5, "has no certificate"),
    ),
    ("basic_auth_users:\n  alice: secret\n", 2, "the password of alice is not a bcrypt hash"),
    (f"basic_auth_users:\n  alice: {HASH}x\n", 2, "the password of alice is not a bcrypt hash"),
    (f"basic_auth_users:\n  alice: {HASH[:28]}z{HASH[29:]}\n", 2, "is not a bcrypt hash"),
    ('basic_auth_users:\n  "a\\n\\e[2J": x\n', 2, "the password of 'a\\n\\x1b[2J' is not"),
    ('tls_server_config:\n  cert_file: "a\\0b"\n  key_file: x\n', 2, "is not the name of a file"),
    ("basic_auth_users: !!null {a: b}\n", 1, "is not a bcrypt hash"),
    ("basic_auth_users:\n  alice:\n", 2, "the password of alice must be a text"),
    ("http_server_config:\n  headers:\n    X-Mine: a\n", 3, "X-Mine is not known in headers"),
    (
        'http_server_config:\n  headers:\n    X-Frame-Options: "a\\r\\nb"\n',
        *(3, "X-Frame-Options is not one line"),
    ),
]


@pytest.mark.parametrize(("text", "line", "reason"), WRONG)
def test_what_is_wrong_has_a_place(place: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        load(write(place, text))
    assert str(error.value).startswith(f"--web.config.file: {place}/web.yml, line {line}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert HASH[:20] not in str(error.value)


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read /nowhere: No such file"):
        load("/nowhere")
    for junk in (b"\xff\xfe\x00", b"a: " + b"[" * 3000, b'x: "\\UFFFFFFFF"'):
        (tmp_path / "web.yml").write_bytes(junk)
        with pytest.raises(UsageError, match=r"web\.yml is not usable YAML"):
            load(str(tmp_path / "web.yml"))
    # A part of it would be settings, without what follows.
    (tmp_path / "web.yml").write_text("#" * (1 << 20) + f"\nbasic_auth_users:\n  alice: {HASH}\n")
    with pytest.raises(UsageError, match=r"web\.yml is too large"):
        load(str(tmp_path / "web.yml"))


@pytest.mark.parametrize("missing", ["yaml", "bcrypt"])
def test_missing_packages_are_named_with_what_to_do(tmp_path: Path, missing: str) -> None:
    file = write(tmp_path, f"basic_auth_users:\n  alice: {HASH}\n")
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from conntrack_textfile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", code, "serve", SAMPLE, f"--web.config.file={file}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs the packages of the extra web: pip install bcrypt pyyaml" in done.stderr


def test_a_wrong_file_is_exit_status_2(tmp_path: Path) -> None:
    file = write(tmp_path, "basic_auth_users:\n  alice: secret\n")
    argv = [*COMMAND, "serve", SAMPLE, f"--web.config.file={file}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "line 2: the password of alice is not a bcrypt hash" in done.stderr


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_others_can_read_is_warned_of(
    place: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    (place / "server.key").chmod(mode)
    load(write(place, TLS))
    assert ("everybody on this host can read the key" in caplog.text) == warned


# Changes


def test_a_file_is_read_again_when_it_or_a_certificate_changes(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(write(place, TLS))
    first = access.current()
    assert access.current() is first
    write(place, TLS + f"basic_auth_users:\n  alice: {HASH}\n")
    second = access.current()
    assert second.passwords is not None
    shutil.copy(place / "second.crt", place / "server.crt")
    assert access.current() is second  # the certificate does not fit the key
    shutil.copy(place / "second.key", place / "server.key")
    assert access.current().tls is not second.tls
    assert [record.levelname for record in caplog.records if record.levelno > 30] == ["ERROR"]
    assert "key values mismatch; going on with the settings before" in caplog.text


@pytest.mark.parametrize(
    ("text", "lost"), [("", "tls"), (TLS, "passwords"), ("# a comment\n", "tls")]
)
def test_a_file_that_is_half_written_opens_nothing(
    place: Path, caplog: pytest.LogCaptureFixture, text: str, lost: str
) -> None:
    whole = f"{TLS}basic_auth_users:\n  alice: {HASH}\n"
    access = Access(write(place, whole))
    first = access.current()
    write(place, text)
    assert access.current() is first
    assert f"no longer asks for {lost}: restart to serve without; going on" in caplog.text
    write(place, whole + f"  bob: {HASH}\n")
    second = access.current()
    assert second.passwords is not None
    assert set(second.passwords.users) == {"alice", "bob"}


def test_a_change_while_it_is_read_is_not_missed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access(write(place, TLS))
    settings = webconfig._settings

    def slow(*args: Any) -> webconfig.Settings:
        found = settings(*args)
        monkeypatch.undo()
        write(place, f"{TLS}basic_auth_users:\n  alice: {HASH}\n")
        return found

    monkeypatch.setattr(webconfig, "_settings", slow)
    write(place, f"{TLS}# changed\n")
    assert access.current().passwords is None
    assert access.current().passwords is not None


def test_whatever_goes_wrong_with_a_new_file_is_logged(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access(write(place, TLS))
    first = access.current()

    def oops(_: str) -> webconfig.Settings:
        raise KeyError("oops")

    monkeypatch.setattr(webconfig, "load", oops)
    write(place, f"{TLS}# changed\n")
    assert access.current() is first
    assert "'oops'; going on with the settings before" in caplog.text


def test_known_clients_stay_known_when_a_certificate_changes(place: Path) -> None:
    access = Access(write(place, f"{TLS}basic_auth_users:\n  alice: {HASH}\n"))
    before = access.current().passwords
    for kind in ("key", "crt"):
        shutil.copy(place / f"second.{kind}", place / f"server.{kind}")
    assert access.current().passwords is before


def test_a_broken_file_keeps_the_settings_and_is_logged_once(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access(write(place, TLS))
    first = access.current()
    write(place, "tls_server_config: [")
    now = time.monotonic()
    for later in (0, 60, 120):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        assert access.current() is first
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    write(place, TLS)
    assert access.current() is not first


def test_what_was_missing_is_looked_for_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(write(place, ""))
    write(place, TLS.replace("server.crt", "late.crt"))
    assert access.current().tls is None
    shutil.copy(place / "server.crt", place / "late.crt")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert access.current().tls is not None


# Passwords


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !",
        "Basic é",
        "Bearer " + basic("alice", "secret")[6:],
        "Basic " + base64.b64encode(b"alice").decode(),
        basic("alice", ""),
        basic("alice", "Secret"),
        basic("alice", "secret\0"),
        basic("alice", "secret" + "x" * 100),
        basic("", ""),
        basic("nobody", "secret"),
        basic("Alice", "secret"),
    ],
)
def test_what_is_not_a_name_and_its_password_is_refused(authorization: str) -> None:
    assert not Passwords({"alice": HASH}).admit(authorization)


def test_names_and_passwords_of_any_letters() -> None:
    password = "pä:ss " * 3
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    assert Passwords({"älice": hashed}).admit(basic("älice", password))
    assert Passwords({"älice": hashed}).admit(basic("älice", password).replace("Basic", "basic"))


def test_a_name_that_does_not_exist_is_checked_all_the_same() -> None:
    """As much work for a name as for no name: counted, since time is noisy here."""
    passwords = Passwords({"alice": HASH, "bob": HASH.replace("$04$", "$05$")})
    checked: list[bytes] = []

    def noted(_: bytes, hashed: bytes) -> bool:
        checked.append(hashed)
        return False

    passwords._checkpw = noted
    work = []
    for name in ("nobody", "bob", "alice"):
        passwords.admit(basic(name, "x"))
        work.append([hashed[:7] for hashed in checked])
        checked.clear()
    assert work == [[b"$2b$05$"], [b"$2b$05$"], [b"$2b$04$", b"$2b$05$"]]
    assert not bcrypt.checkpw(b"x", passwords._nobody.encode())  # bcrypt works on it


def test_answers_are_remembered_right_and_wrong_apart() -> None:
    passwords = Passwords({"alice": HASH})
    assert passwords.admit(basic("alice", "secret"))
    checks = 0

    def counted(_: bytes, __: bytes) -> bool:
        nonlocal checks
        checks += 1
        return False

    passwords._checkpw = counted
    for n in range(600):
        assert not passwords.admit(basic("alice", f"guess {n}"))
    assert checks == 600
    assert not passwords.admit(basic("alice", "guess 599"))
    assert passwords.admit(basic("alice", "secret"))  # not driven out by those who guess
    assert checks == 600
    assert len(passwords._wrong) <= 256


def test_a_known_client_does_not_wait_for_those_who_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webconfig, "_PATIENCE", 0.05)
    passwords = Passwords({"alice": HASH})
    assert passwords.admit(basic("alice", "secret"))
    with Passwords._one_at_a_time:
        assert passwords.admit(basic("alice", "secret"))
        with pytest.raises(TimeoutError):
            passwords.admit(basic("alice", "guess"))


def test_the_same_password_at_once_is_checked_once() -> None:
    passwords = Passwords({"alice": HASH})
    checks: list[bytes] = []

    def slow(_: bytes, hashed: bytes) -> bool:
        time.sleep(0.2)
        checks.append(hashed)
        return True

    passwords._checkpw = slow
    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(passwords.admit, [basic("alice", "secret")] * 10))
    assert len(checks) == 1


def test_few_wait_to_be_checked() -> None:
    passwords = Passwords({"alice": HASH})
    go_on = threading.Event()
    passwords._checkpw = lambda *_: go_on.wait(20) and False
    with ThreadPoolExecutor(100) as pool:
        guesses = [pool.submit(passwords.admit, basic("alice", str(n))) for n in range(100)]
        time.sleep(1)
        refused = [guess for guess in guesses if guess.done() and guess.exception()]
        go_on.set()
        assert len(refused) == 100 - 64


# The real thing


@contextlib.contextmanager
def guarded(place: Path, text: str, *args: str) -> Iterator[Serving]:
    with serving(SAMPLE, f"--web.config.file={write(place, text)}", *args) as program:
        yield program


def trusting(made: Path, client: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(made / "ca.crt"))
    if client:
        context.load_cert_chain(made / f"{client}.crt", made / f"{client}.key")
    return context


def ask(
    program: Serving, context: ssl.SSLContext | None, path: str = "/metrics", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    if context:
        client = http.client.HTTPSConnection("localhost", program.port, context=context, timeout=30)
    else:
        client = http.client.HTTPConnection("localhost", program.port, timeout=30)  # type: ignore[assignment]
    with contextlib.closing(client):
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read(), dict(answer.headers)


def test_tls_and_a_password_guard_all_but_the_health(made: Path, place: Path) -> None:
    text = f"{TLS}basic_auth_users:\n  alice: {HASH}\n"
    text += "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    with guarded(place, text) as program:
        context = trusting(made)
        right = basic("alice", "secret")
        status, body, headers = ask(program, context, Authorization=right)
        assert status == 200
        assert b"conntrack_total_connections 91\n" in body
        assert headers["X-Frame-Options"] == "deny"
        for path in ("/metrics", "/", "/nowhere"):
            for wrong in (basic("alice", "x"), basic("x", "secret"), ""):
                status, body, headers = ask(program, context, path, Authorization=wrong)
                assert (status, body) == (401, b"Unauthorized: name and password, please\n")
                assert headers["WWW-Authenticate"].startswith('Basic realm="conntrack-textfile"')
                assert headers["X-Frame-Options"] == "deny"
        assert b"fd77:1::2" in ask(program, context, "/", Authorization=right)[1]
        assert ask(program, context, "/-/healthy")[:2] == (200, b"OK: healthy\n")
        assert ask(program, context, "/-/ready")[:2] == (200, b"OK: ready\n")
        with pytest.raises((http.client.BadStatusLine, ConnectionError)):
            ask(program, None)
        assert "Traceback" not in program.log
        # One line for all that fail within a minute.
        for _ in range(20):
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(program, None)
        program.wait_for_log("TLS with 127.0.0.1 failed: http request")
        assert program.log.count("failed: ") == 1


@pytest.mark.parametrize(
    ("kind", "admitted"),
    [
        ("RequestClientCert", {"", "client", "stranger"}),
        ("RequireAnyClientCert", {"client"}),
        ("VerifyClientCertIfGiven", {"", "client"}),
        ("RequireAndVerifyClientCert", {"client"}),
    ],
)
def test_client_certificates(made: Path, place: Path, kind: str, admitted: set[str]) -> None:
    text = f"{TLS}  client_auth_type: {kind}\n  client_ca_file: ca.crt\n"
    with guarded(place, text) as program:
        found = set()
        for client in ("", "client", "stranger"):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert ask(program, trusting(made, client))[0] == 200
                found.add(client)
        assert found == admitted


def offers(program: Serving, *args: str) -> bool:
    """Whether openssl(1) can agree with the server."""
    argv = ["openssl", "s_client", "-connect", f"localhost:{program.port}", *args]
    done = subprocess.run(argv, input="", capture_output=True, text=True, timeout=30, check=False)
    return "Cipher is (NONE)" not in done.stdout and "BEGIN CERTIFICATE" in done.stdout


@pytest.mark.parametrize(
    ("more", "versions"),
    [
        ("", {"-tls1_2", "-tls1_3"}),
        ("  min_version: TLS10\n", {"-tls1_2", "-tls1_3"}),
        ("  min_version: TLS13\n", {"-tls1_3"}),
        ("  max_version: TLS12\n", {"-tls1_2"}),
        ("  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", {"-tls1_3"}),
    ],
)
def test_only_the_versions_that_are_wanted_are_spoken(
    place: Path, more: str, versions: set[str]
) -> None:
    with guarded(place, TLS + more) as program:
        weak = "-cipher=ALL:@SECLEVEL=0"
        spoken = {
            version
            for version in ("-tls1", "-tls1_1", "-tls1_2", "-tls1_3")
            if offers(program, version, weak)
        }
        assert spoken == versions
        for cipher in ("NULL", "RC4", "3DES", "aNULL", "EXPORT"):
            assert not offers(program, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")


def test_a_new_certificate_needs_no_restart(made: Path, place: Path) -> None:
    def subject(program: Serving) -> object:
        context = trusting(made)
        with (
            socket.create_connection(("localhost", program.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            certificate = secured.getpeercert()
            assert certificate is not None
            return certificate["subject"]

    with guarded(place, TLS) as program:
        assert subject(program) == ((("commonName", "server"),),)
        for kind in ("key", "crt"):
            shutil.copy(place / f"second.{kind}", place / "new")
            (place / "new").rename(place / f"server.{kind}")
        assert subject(program) == ((("commonName", "second"),),)
        write(place, "tls_server_config: broken")
        assert subject(program) == ((("commonName", "second"),),)
        program.wait_for_log("must be a mapping; going on with the settings before")


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x01"])
def test_200_slow_clients_do_not_keep_a_scrape_waiting(
    made: Path, place: Path, greeting: bytes
) -> None:
    with guarded(place, TLS) as program, contextlib.ExitStack() as stack:
        context = trusting(made)
        assert ask(program, context)[0] == 200
        for _ in range(200):
            slow = stack.enter_context(socket.create_connection(("localhost", program.port), 10))
            slow.sendall(greeting)
        started = time.monotonic()
        for _ in range(5):
            assert ask(program, context)[0] == 200
        assert time.monotonic() - started < 5
        # They are not there for ever.
        slow.settimeout(20)
        assert slow.recv(1) == b""


def test_40_scrapes_at_once_with_one_password(made: Path, place: Path) -> None:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode()
    text = f"{TLS}basic_auth_users:\n  alice: {hashed}\n"
    with guarded(place, text) as program, ThreadPoolExecutor(40) as pool:
        context = trusting(made)
        statuses = pool.map(
            lambda _: ask(program, context, Authorization=basic("alice", "secret"))[0], range(120)
        )
        assert set(statuses) == {200}


PROMETHEUS = """
scrape_configs:
  - job_name: password
    scrape_interval: 1s
    scheme: https
    tls_config: {{ca_file: {made}/ca.crt, server_name: localhost}}
    basic_auth: {{username: alice, password: secret}}
    static_configs: [{{targets: ["127.0.0.1:{password}"]}}]
  - job_name: certificate
    scrape_interval: 1s
    scheme: https
    tls_config:
      ca_file: {made}/ca.crt
      cert_file: {made}/client.crt
      key_file: {made}/client.key
    static_configs: [{{targets: ["127.0.0.1:{certificate}"]}}]
  - job_name: stranger
    scrape_interval: 1s
    scheme: https
    tls_config: {{ca_file: {made}/ca.crt}}
    static_configs: [{{targets: ["127.0.0.1:{password}", "127.0.0.1:{certificate}"]}}]
"""


def test_a_real_prometheus_by_password_and_by_certificate(made: Path, tmp_path: Path) -> None:
    need("prometheus")
    places = [tmp_path / name for name in ("one", "two")]
    for directory in places:
        shutil.copytree(made, directory)
    verified = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(guarded(places[0], f"{TLS}basic_auth_users:\n  alice: {HASH}\n"))
        two = stack.enter_context(guarded(places[1], verified))
        config = tmp_path / "prometheus.yml"
        config.write_text(PROMETHEUS.format(made=made, password=one.port, certificate=two.port))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        argv = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/tsdb"]
        process = subprocess.Popen(
            ["prometheus", *argv, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        up: dict[tuple[str, str], str] = {}
        end = time.monotonic() + 60
        while len(up) < 4 and time.monotonic() < end:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                url = f"http://{address}/api/v1/query?query=up"
                answer = json.load(urllib.request.urlopen(url, timeout=5))
                up = {
                    (result["metric"]["job"], result["metric"]["instance"]): result["value"][1]
                    for result in answer["data"]["result"]
                }
        assert up == {
            ("password", f"127.0.0.1:{one.port}"): "1",
            ("certificate", f"127.0.0.1:{two.port}"): "1",
            ("stranger", f"127.0.0.1:{one.port}"): "0",
            ("stranger", f"127.0.0.1:{two.port}"): "0",
        }


# Sockets of systemd

ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
os.set_inheritable(listener.fileno(), True)
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_socket_of_systemd_is_served() -> None:
    argv = [sys.executable, "-c", ACTIVATE, *COMMAND[1:], "serve", "--web.systemd-socket", SAMPLE]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read()
        assert b"conntrack_total_connections 91\n" in answer
    finally:
        process.terminate()
        assert "listening on 127.0.0.1:" in process.communicate()[1]


GIVEN = """
import os, sys
os.environ.update(LISTEN_PID=sys.argv[1].replace("own", str(os.getpid())), LISTEN_FDS=sys.argv[2])
os.dup2(0, 3)
from conntrack_textfile.cli import main
sys.exit(main(sys.argv[3:]))
"""


def test_what_is_no_listening_socket_is_an_error() -> None:
    argv = [sys.executable, "-c", GIVEN, "own", "1", "serve", "--web.systemd-socket", SAMPLE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not a listening TCP socket" in done.stderr


@pytest.mark.parametrize(("pid", "count"), [("", ""), ("1", "1"), ("own", "0"), ("own", "x")])
def test_without_such_a_socket_it_listens_itself(pid: str, count: str) -> None:
    listen = "--web.listen-address=127.0.0.1:0"
    argv = [sys.executable, "-c", GIVEN, pid, count, "serve", "--web.systemd-socket", SAMPLE]
    argv.append(listen)
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening on 127.0.0.1:" in process.stderr.readline()
        process.terminate()
