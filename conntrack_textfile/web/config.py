"""The web config file: TLS, passwords and headers of serve.

Its format is that of Prometheus' exporter toolkit, so that files which exist
work: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
"""

from __future__ import annotations

import os
import re
import ssl
import stat
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.errors import UsageError
from conntrack_textfile.logs import LOG
from conntrack_textfile.web.passwords import HASH, Passwords

_MISSING = "needs the packages of the extra web: pip install bcrypt pyyaml in this environment"

try:
    import yaml
except ImportError:
    raise UsageError(f"--web.config.file {_MISSING}") from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_FILE = 1 << 20  # bytes

_HEADERS = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)

# TLS 1.0 and 1.1 (RFC 8996) are known and never offered.
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS = ("TLS10", "TLS11")

# Python's TLS asks for a certificate only to verify it. Not to ask lets in the
# same clients as to ask and not to look; and where any certificate would do, it
# has to be a good one.
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "RequireAnyClientCert": ssl.CERT_REQUIRED,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}

# Go's names of cipher suites, of which OpenSSL has its own.
_SUITE = re.compile(
    r"TLS_(?:(ECDHE)_)?(RSA|ECDSA)_WITH_"
    r"(?:(AES)_(128|256)_(CBC|GCM)_(SHA\d*)|(CHACHA20_POLY1305)(?:_SHA256)?)"
)
_TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

# Seconds between looks at a file that could not be used.
_AGAIN = 10.0

_Parts = dict[str, yaml.Node]
_Stamp = tuple[int, int, int, int]


class Settings(NamedTuple):
    """What a web config file says."""

    seen: dict[str, _Stamp | None]  # itself and the files that it names, as they were
    tls: ssl.SSLContext | None
    passwords: Passwords | None
    headers: dict[str, str]


class Access:
    """The settings of a file, read again when it or a file that it names changes."""

    def __init__(self, path: str) -> None:
        """Read the file. Raises UsageError."""
        self._path = path
        self._settings = load(path)
        self._seen = self._settings.seen
        self._failed = ""
        self._next = 0.0
        self._lock = threading.Lock()

    def current(self) -> Settings:
        """The settings of the file as it is, or as it last was of use."""
        if self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._settings

    def _look(self) -> None:
        seen = {file: _stamp(file) for file in self._seen}
        if seen == self._seen and not (self._failed and time.monotonic() > self._next):
            return
        self._seen = seen
        self._next = time.monotonic() + _AGAIN
        try:
            self._settings = _no_weaker(load(self._path), self._settings, self._path)
        # Whatever it was: the next request must find settings.
        except Exception as error:  # noqa: BLE001
            if str(error) != self._failed:
                LOG.error("%s; going on with the settings before", error)
                self._failed = str(error)
            return
        self._failed = ""
        self._seen = self._settings.seen
        LOG.info("read %s again", self._path)


def _no_weaker(new: Settings, old: Settings, path: str) -> Settings:
    """New settings, if they guard what the old ones did.

    A file is empty, or half, while it is being written.
    """
    for guard in ("tls", "passwords"):
        if getattr(old, guard) is not None and getattr(new, guard) is None:
            raise UsageError(
                f"--web.config.file: {path} no longer asks for {guard}: restart to serve without"
            )
    if old.passwords and new.passwords and old.passwords.users == new.passwords.users:
        return new._replace(passwords=old.passwords)  # with those that it knows
    return new


def load(path: str) -> Settings:
    """Read a web config file and what it names. Raises UsageError with the place of an error."""
    stamp = _stamp(path)  # before it is read, so that no change is missed
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE + 1)
        if len(text) > _MAX_FILE:
            raise UsageError(f"--web.config.file: {path} is too large")
        root = yaml.compose(text, yaml.SafeLoader)
        return _settings(path, stamp, _mapping(root, "the file", _TOP) if root else {})
    except OSError as error:
        raise UsageError(f"--web.config.file: cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"--web.config.file: {path}, line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError):
        raise UsageError(f"--web.config.file: {path} is not usable YAML in UTF-8") from None
    except _WrongError as error:
        line = error.node.start_mark.line + 1
        raise UsageError(f"--web.config.file: {path}, line {line}: {error}") from None


class _WrongError(Exception):
    """What is wrong at a node of the file."""

    def __init__(self, node: yaml.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


_TOP = ("tls_server_config", "basic_auth_users", "http_server_config")
_TLS = (
    *("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version"),
    *("max_version", "cipher_suites", "prefer_server_cipher_suites"),
)
_HTTP = ("http2", "headers")


def _settings(path: str, stamp: _Stamp | None, top: _Parts) -> Settings:
    seen = {path: stamp}

    def named(node: yaml.Node, field: str) -> str:
        """A file that is named in the file, relative to it."""
        name = os.path.join(os.path.dirname(path), _text(node, field))
        try:
            seen[name] = _stamp(name)
            open(name, "rb").close()
        except OSError as error:
            raise _WrongError(node, f"cannot read {field} {name}: {error.strerror}") from None
        except ValueError:
            raise _WrongError(node, f"{field} is not the name of a file") from None
        return name

    tls = _part(top, "tls_server_config", _TLS)
    users = _part(top, "basic_auth_users", None)
    http = _part(top, "http_server_config", _HTTP)
    headers = _part(http, "headers", _HEADERS)
    return Settings(
        tls=_tls(top["tls_server_config"], tls, named) if tls else None,
        passwords=_passwords(users),
        headers={name: _header(node, name) for name, node in headers.items()},
        seen=seen,
    )


def _tls(at: yaml.Node, tls: _Parts, named: Callable[[yaml.Node, str], str]) -> ssl.SSLContext:
    for field in ("cert_file", "key_file"):
        if field not in tls:
            raise _WrongError(at, f"tls_server_config needs {field}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    cert, key = named(tls["cert_file"], "cert_file"), named(tls["key_file"], "key_file")
    try:
        # Not to be asked for on a terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "the key needs a passphrase or is none"
        raise _WrongError(
            tls["cert_file"], f"cert_file and key_file are of no use: {_words(reason)}"
        ) from None
    if os.stat(key).st_mode & stat.S_IROTH:
        LOG.warning("everybody on this host can read the key %s: chmod o-r it", key)
    _verify_clients(at, tls, context, named)
    _versions(tls, context)
    if "cipher_suites" in tls:
        _ciphers(tls["cipher_suites"], context)
    return context


def _verify_clients(
    at: yaml.Node,
    tls: _Parts,
    context: ssl.SSLContext,
    named: Callable[[yaml.Node, str], str],
) -> None:
    wanted = _choice(tls, "client_auth_type", tuple(_CLIENT_AUTH)) or "NoClientCert"
    if "client_ca_file" in tls:
        if wanted == "NoClientCert":
            reason = "client_ca_file is of no use without client_auth_type"
            raise _WrongError(tls["client_ca_file"], reason)
        authority = named(tls["client_ca_file"], "client_ca_file")
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError:
            raise _WrongError(
                tls["client_ca_file"], f"client_ca_file {authority} has no certificate"
            ) from None
    elif _CLIENT_AUTH[wanted] != ssl.CERT_NONE:
        raise _WrongError(at, f"client_auth_type {wanted} needs client_ca_file")
    context.verify_mode = _CLIENT_AUTH[wanted]


def _versions(tls: _Parts, context: ssl.SSLContext) -> None:
    names = (*_OLD_VERSIONS, *_VERSIONS)
    least = _choice(tls, "min_version", names) or "TLS12"
    most = _choice(tls, "max_version", names) or "TLS13"
    if most in _OLD_VERSIONS:
        raise _WrongError(tls["max_version"], f"max_version {most} is too old: TLS12 is the least")
    if names.index(least) > names.index(most):
        raise _WrongError(tls["min_version"], "min_version is above max_version")
    context.minimum_version = _VERSIONS.get(least, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = _VERSIONS[most]


def _ciphers(node: yaml.Node, context: ssl.SSLContext) -> None:
    found = []
    for item in _items(node, "cipher_suites"):
        name = _text(item, "a cipher suite")
        if name in _TLS13_SUITES:  # always offered, as by Go
            continue
        try:
            context.set_ciphers(_openssl(name))
        except ssl.SSLError:
            raise _WrongError(item, f"the cipher suite {name} is not offered") from None
        found.append(_openssl(name))
    if found:
        context.set_ciphers(":".join(found))
    elif context.maximum_version == ssl.TLSVersion.TLSv1_2:
        raise _WrongError(node, "cipher_suites has none of TLS 1.2")
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_3


def _openssl(name: str) -> str:
    match = _SUITE.fullmatch(name)
    if match is None:
        return ""
    exchange, signed, aes, bits, mode, digest, chacha = match.groups()
    parts = [exchange, signed] if exchange else []
    parts += ["CHACHA20", "POLY1305"] if chacha else [aes + bits]
    parts += ["GCM"] if mode == "GCM" else []
    return "-".join([*parts, *([digest] if digest else [])])


def _passwords(users: _Parts) -> Passwords | None:
    hashes = {}
    for name, node in users.items():
        place = f"the password of {_shown(name)}"
        hashes[name] = _text(node, place)
        if not HASH.fullmatch(hashes[name]):
            raise _WrongError(node, f"{place} is not a bcrypt hash: htpasswd -nBC 10 makes one")
    if not hashes:
        return None
    try:
        return Passwords(hashes)
    except ImportError:
        raise UsageError(f"--web.config.file with basic_auth_users {_MISSING}") from None


def _header(node: yaml.Node, name: str) -> str:
    value = _text(node, name)
    if not value.isprintable() or not value.isascii():
        raise _WrongError(node, f"{name} is not one line of ASCII")
    return value


def _part(parts: _Parts, field: str, known: tuple[str, ...] | None) -> _Parts:
    """A mapping in a mapping, empty where it is absent or empty."""
    node = parts.get(field)
    if node is None or _is_null(node):
        return {}
    return _mapping(node, field, known)


def _mapping(node: yaml.Node, place: str, known: tuple[str, ...] | None) -> _Parts:
    if not isinstance(node, yaml.MappingNode):
        raise _WrongError(node, f"{place} must be a mapping")
    found: _Parts = {}
    for key, value in node.value:
        name = _text(key, f"a field of {place}")
        if known is not None and name not in known:
            reason = f"{_shown(name)} is not known in {place}; {', '.join(known)} are"
            raise _WrongError(key, reason)
        if name in found:
            raise _WrongError(key, f"{_shown(name)} stands twice in {place}")
        found[name] = value
    return found


def _items(node: yaml.Node, place: str) -> Iterator[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise _WrongError(node, f"{place} must be a list")
    yield from node.value


def _text(node: yaml.Node, place: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        raise _WrongError(node, f"{place} must be a text")
    value: str = node.value
    return value


def _choice(parts: _Parts, field: str, choices: tuple[str, ...]) -> str:
    """One of some words, "" where it is absent or empty."""
    if field not in parts or _is_null(parts[field]) or not parts[field].value:
        return ""
    value = _text(parts[field], field)
    if value not in choices:
        reason = f"{field} must be one of {', '.join(choices)}, not {value!r}"
        raise _WrongError(parts[field], reason)
    return value


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def _stamp(file: str) -> _Stamp | None:
    """What changes when a file is written or replaced."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
