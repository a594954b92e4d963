"""An ssl.SSLContext of the fields of tls_server_config."""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from conntrack_textfile.logs import LOG
from conntrack_textfile.web.yamlfile import Fields, NodeError, choice, items, text

if TYPE_CHECKING:
    import yaml

FIELDS = (
    *("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version"),
    *("max_version", "cipher_suites", "prefer_server_cipher_suites"),
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

# The path of a file that a node names. Raises NodeError where it cannot be read.
_FilePath = Callable[["yaml.Node", str], str]


def server_context(at: yaml.Node, fields: Fields, file_path: _FilePath) -> ssl.SSLContext:
    """The TLS of a server. Raises NodeError with the field that is wrong, or the section."""
    for field in ("cert_file", "key_file"):
        if field not in fields:
            raise NodeError(at, f"tls_server_config needs {field}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    cert = file_path(fields["cert_file"], "cert_file")
    key = file_path(fields["key_file"], "key_file")
    try:
        # Not to be asked for on a terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "the key needs a passphrase or is none"
        raise NodeError(
            fields["cert_file"],
            f"cert_file and key_file are of no use: {reason.replace('_', ' ').lower()}",
        ) from None
    if os.stat(key).st_mode & stat.S_IROTH:
        LOG.warning("everybody on this host can read the key %s: chmod o-r it", key)
    _verify_clients(at, fields, context, file_path)
    _limit_versions(fields, context)
    if "cipher_suites" in fields:
        _limit_ciphers(fields["cipher_suites"], context)
    return context


def _verify_clients(
    at: yaml.Node, fields: Fields, context: ssl.SSLContext, file_path: _FilePath
) -> None:
    kind = choice(fields, "client_auth_type", tuple(_CLIENT_AUTH)) or "NoClientCert"
    if "client_ca_file" in fields:
        if kind == "NoClientCert":
            reason = "client_ca_file is of no use without client_auth_type"
            raise NodeError(fields["client_ca_file"], reason)
        authority = file_path(fields["client_ca_file"], "client_ca_file")
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError:
            raise NodeError(
                fields["client_ca_file"], f"client_ca_file {authority} has no certificate"
            ) from None
    elif _CLIENT_AUTH[kind] != ssl.CERT_NONE:
        raise NodeError(at, f"client_auth_type {kind} needs client_ca_file")
    context.verify_mode = _CLIENT_AUTH[kind]


def _limit_versions(fields: Fields, context: ssl.SSLContext) -> None:
    names = (*_OLD_VERSIONS, *_VERSIONS)
    least = choice(fields, "min_version", names) or "TLS12"
    most = choice(fields, "max_version", names) or "TLS13"
    if most in _OLD_VERSIONS:
        reason = f"max_version {most} is too old: TLS12 is the least"
        raise NodeError(fields["max_version"], reason)
    if names.index(least) > names.index(most):
        raise NodeError(fields["min_version"], "min_version is above max_version")
    context.minimum_version = _VERSIONS.get(least, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = _VERSIONS[most]


def _limit_ciphers(node: yaml.Node, context: ssl.SSLContext) -> None:
    found = []
    for item in items(node, "cipher_suites"):
        name = text(item, "a cipher suite")
        if name in _TLS13_SUITES:  # always offered, as by Go
            continue
        try:
            context.set_ciphers(_openssl_name(name))
        except ssl.SSLError:
            raise NodeError(item, f"the cipher suite {name} is not offered") from None
        found.append(_openssl_name(name))
    if found:
        context.set_ciphers(":".join(found))
    elif context.maximum_version == ssl.TLSVersion.TLSv1_2:
        raise NodeError(node, "cipher_suites has none of TLS 1.2")
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_3


def _openssl_name(name: str) -> str:
    match = _SUITE.fullmatch(name)
    if match is None:
        return ""
    exchange, signed, aes, bits, mode, digest, chacha = match.groups()
    parts = [exchange, signed] if exchange else []
    parts += ["CHACHA20", "POLY1305"] if chacha else [aes + bits]
    parts += ["GCM"] if mode == "GCM" else []
    return "-".join([*parts, *([digest] if digest else [])])
