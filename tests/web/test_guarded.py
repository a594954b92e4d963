"""serve with a web config file, and real clients: TLS, certificates, passwords, Prometheus."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import bcrypt
import pytest

from conntrack_textfile.web.http import REQUEST_SECONDS
from tests.certificates import HASH, TLS, basic, write
from tests.conftest import DATA, need
from tests.program import Serving, listen_address, running, serving
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


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
    client = http.client.HTTPConnection("localhost", program.port, timeout=30)
    if context:
        client = http.client.HTTPSConnection("localhost", program.port, context=context, timeout=30)
    with contextlib.closing(client):
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read(), dict(answer.headers)


def test_tls_and_a_password_protect_all_but_the_health_checks(made: Path, place: Path) -> None:
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
                assert (status, body) == (
                    401,
                    b"Unauthorized: a user name and password are required\n",
                )
                assert headers["WWW-Authenticate"].startswith('Basic realm="conntrack-textfile"')
                assert headers["X-Frame-Options"] == "deny"
        assert b"fd77:1::2" in ask(program, context, "/", Authorization=right)[1]
        assert ask(program, context, "/-/healthy")[:2] == (200, b"OK: healthy\n")
        assert ask(program, context, "/-/ready")[:2] == (200, b"OK: ready\n")
        assert ask(program, None)[0] == 400
        assert "Traceback" not in program.log
        # One line for all that fail within a minute.
        for _ in range(20):
            ask(program, None)
        program.wait_for_log("TLS with 127.0.0.1 failed: http request")
        assert program.log.count("failed: ") == 1


@pytest.mark.parametrize(
    ("kind", "admitted"),
    [
        ("RequestClientCert", {"", "client", "stranger"}),
        ("RequireAnyClientCert", {"client"}),
        ("RequireClientCert", {"client"}),
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


def test_a_truncated_file_admits_no_client_without_a_certificate(made: Path, place: Path) -> None:
    text = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
    with guarded(place, text) as program:
        for cut in (TLS, text[: text.index("  client_ca_file")]):
            write(place, cut)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(program, trusting(made))
            assert ask(program, trusting(made, "client"))[0] == 200
        program.wait_for_log("no longer names client_ca_file: weaker settings need a restart")


def offers(program: Serving, *args: str) -> bool:
    """Return whether a handshake of openssl(1) succeeds."""
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
def test_only_the_configured_versions_are_offered(
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
        program.wait_for_log("must be a mapping; going on with what was read before")


def test_400_slow_clients_do_not_delay_a_scrape(made: Path, place: Path) -> None:
    """Half of them send nothing, and half begin a handshake."""
    with guarded(place, TLS) as program, contextlib.ExitStack() as stack:
        context = trusting(made)
        assert ask(program, context)[0] == 200
        silent, beginning = [
            [
                stack.enter_context(socket.create_connection(("localhost", program.port), 20))
                for _ in range(200)
            ]
            for _ in range(2)
        ]
        for slow in beginning:
            slow.sendall(b"\x16\x03\x01")
        started = time.monotonic()
        for _ in range(5):
            assert ask(program, context)[0] == 200
        assert time.monotonic() - started < REQUEST_SECONDS - 1
        # They are disconnected in the end.
        for slow in (silent[-1], beginning[-1]):
            slow.settimeout(60)
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


# A brute-force attack: 200 clients in a loop, each request with a new password.
# It prints a line when each of them has sent one.
ATTACKERS = """
import base64, http.client, random, sys, threading
port, source = int(sys.argv[1]), sys.argv[2]
sent = threading.Semaphore(0)
def guess():
    waits = True
    while True:
        try:
            client = http.client.HTTPConnection(
                "127.0.0.1", port, timeout=60, source_address=(source, 0)
            )
            credentials = base64.b64encode(f"alice:{random.random()}".encode()).decode()
            client.request("GET", "/metrics", headers={"Authorization": "Basic " + credentials})
            if waits:
                sent.release()
                waits = False
            client.getresponse().read()
            client.close()
        except OSError:
            pass
for _ in range(200):
    threading.Thread(target=guess, daemon=True).start()
for _ in range(200):
    sent.acquire()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def brute_force(program: Serving, source: str) -> Iterator[None]:
    argv = [sys.executable, "-c", ATTACKERS, str(program.port), source]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_brute_force_attack_delays_neither_new_nor_cached_logins(tmp_path: Path) -> None:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode()
    right = basic("alice", "secret")
    with (
        guarded(tmp_path, f"basic_auth_users:\n  alice: {hashed}\n") as program,
        brute_force(program, "127.0.0.2"),
    ):
        started = time.monotonic()
        assert ask(program, None, Authorization=right)[0] == 200
        assert time.monotonic() - started < 10
        seconds = []
        for _ in range(50):
            started = time.monotonic()
            assert ask(program, None, Authorization=right)[0] == 200
            seconds.append(time.monotonic() - started)
        assert statistics.median(seconds) < 1  # a check for each guesser takes 10


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
        argv = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/tsdb"]
        process = stack.enter_context(
            running("prometheus", *argv, "--web.listen-address=127.0.0.1:0")
        )
        url = f"http://{listen_address(process)}/api/v1/query?query=up"

        def up() -> dict[tuple[str, str], str]:
            answer = json.load(urllib.request.urlopen(url, timeout=20))
            found = {
                (result["metric"]["job"], result["metric"]["instance"]): result["value"][1]
                for result in answer["data"]["result"]
            }
            return found if len(found) == 4 else {}

        assert until(up) == {
            ("password", f"127.0.0.1:{one.port}"): "1",
            ("certificate", f"127.0.0.1:{two.port}"): "1",
            ("stranger", f"127.0.0.1:{one.port}"): "0",
            ("stranger", f"127.0.0.1:{two.port}"): "0",
        }
