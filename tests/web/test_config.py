from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile.errors import UsageError
from conntrack_textfile.logs import LOG
from conntrack_textfile.web import config, yamlfile
from conntrack_textfile.web.config import load, watch
from tests.certificates import HASH, TLS, basic, write
from tests.conftest import DATA
from tests.program import COMMAND

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


@pytest.fixture(autouse=True)
def log() -> None:
    LOG.propagate = True
    LOG.setLevel("INFO")


# Content of the file


def test_a_file_of_the_exporter_toolkit(place: Path) -> None:
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
    - TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    - TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA
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
    assert set(settings.stamps) == {
        *(str(place / name) for name in ("web.yml", "server.crt", "server.key", "ca.crt")),
    }
    assert settings.headers == {"Strict-Transport-Security": "max-age=31536000"}
    assert settings.passwords is not None
    assert settings.passwords.verify(basic("alice", "secret"), b"")
    assert settings.passwords.verify(basic("bob", "secret"), b"")
    assert settings.tls is not None
    assert settings.tls.verify_mode == ssl.CERT_REQUIRED
    offered = {cipher["name"] for cipher in settings.tls.get_ciphers()}
    assert {name for name in offered if not name.startswith("TLS_")} == {
        *("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        "ECDHE-RSA-AES256-SHA",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "tls_server_config:\nbasic_auth_users: {}\n"])
def test_an_empty_file_requires_nothing(tmp_path: Path, text: str) -> None:
    settings = load(write(tmp_path, text))
    assert (settings.tls, settings.passwords, settings.headers) == (None, None, {})


WRONG = [
    (
        "tls_server_confg: {}\n",
        1,
        "unknown field tls_server_confg in the file; valid are tls_server_config,",
    ),
    ("[]\n", 1, "the file must be a mapping"),
    ("a: [\n", 2, "expected the node content"),
    ("tls_server_config: 5\n", 1, "tls_server_config must be a mapping"),
    ("tls_server_config:\n  cert_file: server.crt\n", 2, "tls_server_config needs key_file"),
    (TLS + "  curve_preferences: []\n", 4, "unknown field curve_preferences in tls_server_config"),
    (TLS + "  key_file: server.key\n", 4, "duplicate field key_file in tls_server_config"),
    (TLS.replace("server.crt", "none.crt"), 2, "cannot read cert_file"),
    (TLS.replace("server.key", "none.key"), 3, "none.key: No such file or directory"),
    (TLS.replace("server.key", "second.key"), 3, "second.key is not the key of cert_file "),
    (TLS.replace("server.crt", "server.key"), 2, "server.key is not a certificate in PEM"),
    (TLS.replace("server.key", "server.crt"), 3, "server.crt is not a key in PEM, or has"),
    (TLS + "  min_version: TLS14\n", 4, "min_version must be one of TLS10, TLS11, TLS12, TLS13"),
    (TLS + "  max_version: TLS11\n", 4, "max_version TLS11 is too old"),
    (TLS + "  min_version: TLS13\n  max_version: TLS12\n", 4, "min_version is above max_version"),
    (TLS + "  cipher_suites: TLS_X\n", 4, "cipher_suites must be a list"),
    (TLS + "  cipher_suites:\n    - TLS_X\n", 5, "the cipher suite 'TLS_X' is unknown"),
    *(
        (f"{TLS}  max_version: TLS12\n  cipher_suites: [{name}]\n", 5, reason)
        for name, reason in {
            "TLS_RSA_WITH_RC4_128_SHA": "'TLS_RSA_WITH_RC4_128_SHA' is unknown, or without forward",
            "TLS_RSA_WITH_AES_128_GCM_SHA256": "is unknown, or without forward secrecy",
            "TLS_RSA_WITH_AES_256_CBC_SHA": "is unknown, or without forward secrecy",
            "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256": "is unknown, or without forward secrecy",
            "TLS_AES_128_GCM_SHA256": "cipher_suites has none of TLS 1.2",
        }.items()
    ),
    (TLS + "  prefer_server_cipher_suites: banana\n", 4, "must be true or false"),
    (TLS + "  prefer_server_cipher_suites: []\n", 4, "must be true or false"),
    ("tls_server_config:\n  cert_file: [a]\n", 2, "cert_file must be a string"),
    (TLS + "  client_auth_type: {}\n", 4, "client_auth_type must be a string"),
    (TLS + "  min_version: {}\n", 4, "min_version must be a string"),
    ("http_server_config:\n  http2: banana\n", 2, "http2 must be true or false"),
    ("http_server_config:\n  http2: 1\n", 2, "http2 must be true or false"),
    ("http_server_config:\n  http2: !!bool banana\n", 2, "http2 must be true or false"),
    (TLS + "  client_auth_type: Maybe\n", 4, "client_auth_type must be one of NoClientCert, Req"),
    (TLS + "  client_ca_file: ca.crt\n", 4, "has no effect without client_auth_type"),
    (TLS + "  client_auth_type: RequireAnyClientCert\n", 2, "needs client_ca_file"),
    (TLS + "  client_auth_type: RequireClientCert\n", 2, "RequireClientCert needs client_ca_file"),
    (
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: server.key\n",
        *(5, "has no certificate"),
    ),
    ("basic_auth_users:\n  alice: secret\n", 2, "the password of alice is not a bcrypt hash"),
    (f"basic_auth_users:\n  alice: {HASH}x\n", 2, "the password of alice is not a bcrypt hash"),
    (f"basic_auth_users:\n  alice: {HASH[:28]}z{HASH[29:]}\n", 2, "is not a bcrypt hash"),
    ('basic_auth_users:\n  "a\\n\\e[2J": x\n', 2, "the password of 'a\\n\\x1b[2J' is not"),
    ('tls_server_config:\n  cert_file: "a\\0b"\n  key_file: x\n', 2, "is not a file name"),
    ("basic_auth_users: !!null {a: b}\n", 1, "is not a bcrypt hash"),
    ("basic_auth_users:\n  alice:\n", 2, "the password of alice must be a string"),
    ("http_server_config:\n  headers:\n    X-Mine: a\n", 3, "unknown field X-Mine in headers"),
    (
        'http_server_config:\n  headers:\n    X-Frame-Options: "a\\r\\nb"\n',
        *(3, "X-Frame-Options is not one line"),
    ),
    *(
        (f"http_server_config:\n  headers:\n    {name}: {value}\n", 3, f"{name} must be {allowed}")
        for name, value, allowed in [
            ("X-Content-Type-Options", "sniff", "nosniff, not 'sniff'"),
            ("X-Content-Type-Options", '""', "nosniff, not ''"),
            ("X-Frame-Options", "foo", "deny or sameorigin, not 'foo'"),
            ("X-Frame-Options", "DENY", "deny or sameorigin, not 'DENY'"),
            ("X-Frame-Options", '""', "deny or sameorigin, not ''"),
        ]
    ),
]


@pytest.mark.parametrize(("text", "line", "reason"), WRONG)
def test_an_error_names_its_line(place: Path, text: str, line: int, reason: str) -> None:
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
        with pytest.raises(UsageError, match=r"web\.yml is not valid YAML"):
            load(str(tmp_path / "web.yml"))
    # Its first MiB alone would be valid, without the passwords.
    (tmp_path / "web.yml").write_text("#" * (1 << 20) + f"\nbasic_auth_users:\n  alice: {HASH}\n")
    with pytest.raises(UsageError, match=r"web\.yml is too large"):
        load(str(tmp_path / "web.yml"))


def test_packages_of_a_distribution_are_not_for_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert f"{sys.executable} -m pip install" in yamlfile.missing_packages()
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert "Debian: python3-bcrypt python3-yaml" in yamlfile.missing_packages()


def test_an_empty_file_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, "# nothing\n")
    with caplog.at_level("WARNING", "conntrack_textfile"):
        settings = load(str(file))
    assert (settings.tls, settings.passwords) == (None, None)
    assert f"{file} is empty: serving without TLS and without passwords" in caplog.text


@pytest.mark.parametrize("missing", ["yaml", "bcrypt"])
def test_missing_packages_are_named_with_the_command_to_install_them(
    tmp_path: Path, missing: str
) -> None:
    file = write(tmp_path, f"basic_auth_users:\n  alice: {HASH}\n")
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from conntrack_textfile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", code, "serve", SAMPLE, f"--web.config.file={file}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    pip = f"{sys.executable} -m pip install bcrypt pyyaml"
    assert f"needs the packages of the extra web: {pip}" in done.stderr


def test_an_invalid_file_is_exit_status_2(tmp_path: Path) -> None:
    file = write(tmp_path, "basic_auth_users:\n  alice: secret\n")
    argv = [*COMMAND, "serve", SAMPLE, f"--web.config.file={file}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "line 2: the password of alice is not a bcrypt hash" in done.stderr


# Reloading


def test_a_file_is_reloaded_when_it_or_a_certificate_changes(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web_config = watch(write(place, TLS))
    first = web_config.current()
    assert web_config.current() is first
    write(place, TLS + f"basic_auth_users:\n  alice: {HASH}\n")
    second = web_config.current()
    assert second.passwords is not None
    shutil.copy(place / "second.crt", place / "server.crt")
    assert web_config.current() is second  # the certificate does not fit the key
    shutil.copy(place / "second.key", place / "server.key")
    assert web_config.current().tls is not second.tls
    assert [record.levelname for record in caplog.records if record.levelno > 30] == ["ERROR"]
    assert "is not the key of cert_file" in caplog.text
    assert "going on with what was read before" in caplog.text


WHOLE = f"""{TLS}\
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS13
basic_auth_users:
  alice: {HASH}
"""


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("", "no longer requires tls"),
        ("# a comment\n", "no longer requires tls"),
        (WHOLE[: WHOLE.index("basic_auth")], "no longer requires passwords"),
        (TLS, "no longer requires passwords"),
        (
            WHOLE.replace("  client_auth_type: RequireAndVerifyClientCert\n", "").replace(
                "  client_ca_file: ca.crt\n", ""
            ),
            "no longer names client_ca_file",
        ),
        (WHOLE.replace("  client_ca_file: ca.crt\n", ""), "no longer names client_ca_file"),
        (WHOLE.replace("RequireAndVerify", "Request"), "does not require client certificates"),
        (
            WHOLE.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"),
            "does not require client certificates",
        ),
        (WHOLE.replace("TLS13", "TLS12"), "allows older versions of TLS"),
        (WHOLE.replace("  min_version: TLS13\n", ""), "allows older versions of TLS"),
    ],
)
def test_a_half_written_file_weakens_nothing(
    place: Path, caplog: pytest.LogCaptureFixture, text: str, lost: str
) -> None:
    web_config = watch(write(place, WHOLE))
    first = web_config.current()
    write(place, text)
    assert web_config.current() is first
    assert f"{place}/web.yml {lost}" in caplog.text
    assert ": weaker settings need a restart; going on with what was read before" in caplog.text
    write(place, WHOLE + f"  bob: {HASH}\n")
    second = web_config.current()
    assert second.passwords is not None
    assert set(second.passwords.users) == {"alice", "bob"}


@pytest.mark.parametrize(
    ("before", "after", "weaker"),
    [
        (
            f"{TLS}  client_auth_type: VerifyClientCertIfGiven\n",
            TLS,
            "does not verify client certificates any more",
        ),
        (
            f"{TLS}  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n",
            TLS,
            "allows more cipher suites",
        ),
        (f"{TLS}  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", TLS, "allows older versions of TLS"),
        (TLS, f"{TLS}  min_version: TLS13\n", ""),
        (TLS, f"{TLS}  client_auth_type: VerifyClientCertIfGiven\n", ""),
        (TLS, f"{TLS}  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n", ""),
        (
            f"basic_auth_users:\n  alice: {HASH}\n  bob: {HASH}\n",
            f"basic_auth_users:\n  alice: {HASH}\n",
            "",
        ),
        ("", f"{TLS}basic_auth_users:\n  alice: {HASH}\n", ""),
    ],
)
def test_only_weaker_settings_need_a_restart(
    place: Path, caplog: pytest.LogCaptureFixture, before: str, after: str, weaker: str
) -> None:
    web_config = watch(write(place, before))
    first = web_config.current()
    write(place, f"{after}# changed\n")
    assert (web_config.current() is first) == bool(weaker)
    assert weaker in caplog.text


def test_a_change_during_a_reload_is_not_missed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_config = watch(write(place, TLS))
    settings = config._settings

    def slow(*args: Any) -> config.Settings:
        found = settings(*args)
        monkeypatch.undo()
        write(place, f"{TLS}basic_auth_users:\n  alice: {HASH}\n")
        return found

    monkeypatch.setattr(config, "_settings", slow)
    write(place, f"{TLS}# changed\n")
    assert web_config.current().passwords is None
    assert web_config.current().passwords is not None


def test_any_error_of_a_reload_is_logged(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_config = watch(write(place, TLS))
    first = web_config.current()

    def oops(_: str) -> config.Settings:
        raise KeyError("oops")

    monkeypatch.setattr(config, "load", oops)
    write(place, f"{TLS}# changed\n")
    assert web_config.current() is first
    assert "'oops'; going on with what was read before" in caplog.text


def test_cached_passwords_survive_a_new_certificate(place: Path) -> None:
    web_config = watch(write(place, f"{TLS}basic_auth_users:\n  alice: {HASH}\n"))
    before = web_config.current().passwords
    for kind in ("key", "crt"):
        shutil.copy(place / f"second.{kind}", place / f"server.{kind}")
    assert web_config.current().passwords is before


def test_a_broken_file_keeps_the_settings_and_is_logged_once(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_config = watch(write(place, TLS))
    first = web_config.current()
    write(place, "tls_server_config: [")
    now = time.monotonic()
    for later in (0, 60, 120):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        assert web_config.current() is first
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    write(place, TLS)
    assert web_config.current() is not first


def test_a_missing_file_is_retried(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web_config = watch(write(place, ""))
    write(place, TLS.replace("server.crt", "late.crt"))
    assert web_config.current().tls is None
    shutil.copy(place / "server.crt", place / "late.crt")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert web_config.current().tls is not None
