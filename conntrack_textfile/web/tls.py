"""The ssl.SSLContext of tls_server_config."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from conntrack_textfile.logs import LOG
from conntrack_textfile.web.yamlfile import (
    Fields,
    NodeError,
    boolean,
    choice,
    has_text,
    items,
    text,
)

if TYPE_CHECKING:
    import yaml

FIELDS = (
    *("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version"),
    *("max_version", "cipher_suites", "prefer_server_cipher_suites"),
)

# TLS 1.0 and 1.1 are deprecated (RFC 8996): valid as min_version, never offered.
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS = ("TLS10", "TLS11")

# Python's ssl requests a client certificate only to verify it. So RequestClientCert does
# not request one, which admits the same clients, and RequireAnyClientCert verifies it.
_ANY_CLIENT_CERT = ("RequireAnyClientCert", "RequireClientCert")  # the latter in older files
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    **dict.fromkeys(_ANY_CLIENT_CERT, ssl.CERT_REQUIRED),
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}

# The cipher suites of Go's crypto/tls.CipherSuites() with forward secrecy: OpenSSL's names.
_CIPHER_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
_TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

# Returns the path in a field. Raises NodeError if the file cannot be read.
_FilePath = Callable[["yaml.Node", str], str]


def server_context(at: yaml.Node, fields: Fields, file_path: _FilePath) -> ssl.SSLContext:
    """Return the context of a server. Raises NodeError at the wrong field, or at the section."""
    for field in ("cert_file", "key_file"):
        if not has_text(fields, field):
            raise NodeError(at, f"tls_server_config needs {field}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    cert = file_path(fields["cert_file"], "cert_file")
    key = file_path(fields["key_file"], "key_file")
    _load_pair(fields, context, cert, key)
    if os.stat(key).st_mode & stat.S_IROTH:
        LOG.warning("all users of this host can read the key %s: chmod o-r it", key)
    _verify_clients(at, fields, context, file_path)
    _limit_versions(fields, context)
    _limit_ciphers(fields, context)
    if not boolean(fields, "prefer_server_cipher_suites", default=True):
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _load_pair(fields: Fields, context: ssl.SSLContext, cert: str, key: str) -> None:
    """Load the certificate and its key. Raises NodeError at the wrong one."""
    try:
        # load_cert_chain() does not say which of the two files is wrong.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cert)
    except ssl.SSLError as error:
        raise NodeError(
            fields["cert_file"],
            f"cert_file {cert} is not a certificate in PEM: {_reason(error)}",
        ) from None
    try:
        # Without password=, OpenSSL asks for a passphrase on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        why = _reason(error)
        if "mismatch" in why:
            reason = f"key_file {key} is not the key of cert_file {cert}"
        elif why in ("", "pem lib"):  # OpenSSL gives no better reason
            reason = f"key_file {key} is not a key in PEM, or has a passphrase"
        else:  # such as a weak key
            reason = f"cannot use cert_file and key_file: {why}"
        raise NodeError(fields["key_file"], reason) from None


def _reason(error: Exception) -> str:
    """Return OpenSSL's reason in words, "" if there is none."""
    return (getattr(error, "reason", None) or "").replace("_", " ").lower()


def weakened(new: ssl.SSLContext, old: ssl.SSLContext) -> str:
    """Return how a new context is weaker than the old one, "" if it is not."""
    if new.verify_mode < old.verify_mode:
        verb = "require" if old.verify_mode == ssl.CERT_REQUIRED else "verify"
        return f"does not {verb} client certificates any more"
    if new.minimum_version < old.minimum_version:
        return "allows older versions of TLS"
    if _cipher_names(new) - _cipher_names(old):
        return "allows more cipher suites"
    return ""


def _cipher_names(context: ssl.SSLContext) -> set[str]:
    return {cipher["name"] for cipher in context.get_ciphers()}


def _verify_clients(
    at: yaml.Node, fields: Fields, context: ssl.SSLContext, file_path: _FilePath
) -> None:
    kind = choice(fields, "client_auth_type", tuple(_CLIENT_AUTH)) or "NoClientCert"
    if has_text(fields, "client_ca_file"):
        if kind == "NoClientCert":
            reason = "client_ca_file has no effect without client_auth_type"
            raise NodeError(fields["client_ca_file"], reason)
        ca_file = file_path(fields["client_ca_file"], "client_ca_file")
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            raise NodeError(
                fields["client_ca_file"], f"client_ca_file {ca_file} has no certificate"
            ) from None
    elif kind in _ANY_CLIENT_CERT:
        reason = f"client_auth_type {kind} needs client_ca_file: certificates are always verified"
        raise NodeError(at, reason)
    elif _CLIENT_AUTH[kind] != ssl.CERT_NONE:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)  # the CAs of this host
    context.verify_mode = _CLIENT_AUTH[kind]


def _limit_versions(fields: Fields, context: ssl.SSLContext) -> None:
    names = (*_OLD_VERSIONS, *_VERSIONS)
    least = choice(fields, "min_version", names) or "TLS12"
    most = choice(fields, "max_version", names) or "TLS13"
    if most in _OLD_VERSIONS:
        reason = f"max_version {most} is too old: TLS12 is the minimum"
        raise NodeError(fields["max_version"], reason)
    if names.index(least) > names.index(most):
        raise NodeError(fields["min_version"], "min_version is above max_version")
    context.minimum_version = _VERSIONS.get(least, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = _VERSIONS[most]


def _limit_ciphers(fields: Fields, context: ssl.SSLContext) -> None:
    suites = items(fields, "cipher_suites")
    if not suites:
        return
    found = []
    for item in suites:
        name = text(item, "a cipher suite")
        if name in _TLS13_SUITES:  # always offered, as by Go
            continue
        try:
            context.set_ciphers(_CIPHER_SUITES.get(name, ""))
        except ssl.SSLError:
            reason = f"the cipher suite {name!r} is unknown, or without forward secrecy"
            raise NodeError(item, reason) from None
        found.append(_CIPHER_SUITES[name])
    if found:
        context.set_ciphers(":".join(found))
    elif context.maximum_version == ssl.TLSVersion.TLSv1_2:
        raise NodeError(fields["cipher_suites"], "cipher_suites has none of TLS 1.2")
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
