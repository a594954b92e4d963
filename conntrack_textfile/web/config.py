"""The web config file: TLS, passwords and headers of serve, reloaded when it changes.

Format: that of Prometheus' exporter toolkit,
https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.errors import UsageError
from conntrack_textfile.files import regular
from conntrack_textfile.logs import LOG
from conntrack_textfile.reload import Reloader, stamp
from conntrack_textfile.web import passwords, tls, yamlfile
from conntrack_textfile.web.yamlfile import NodeError, boolean, has_text, section, text

if TYPE_CHECKING:
    import ssl

    import yaml

    from conntrack_textfile.reload import Stamps

_SECTIONS = ("tls_server_config", "basic_auth_users", "http_server_config")
_HTTP_FIELDS = ("http2", "headers")
# The headers that can be set, and their values (empty: any).
_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}


class Settings(NamedTuple):
    """The settings of a web config file."""

    stamps: Stamps  # of the file and of those named in it
    tls: ssl.SSLContext | None
    has_client_ca: bool
    passwords: passwords.Passwords | None
    headers: dict[str, str]


def watch(path: str) -> Reloader[Settings]:
    """Return the settings of a file, reloaded when it or a file named in it changes.

    A reload that weakens them is an error: see _reloaded(). Raises UsageError.
    """

    def read(before: Settings | None) -> tuple[Settings, Stamps]:
        settings = load(path)
        if before is not None:
            settings = _reloaded(settings, before, path)
        return settings, settings.stamps

    return Reloader(path, read)


def _reloaded(new: Settings, old: Settings, path: str) -> Settings:
    """Return the new settings. Raises UsageError if they are weaker than the old ones.

    A file that is being written is empty, or ends early.
    """
    if weaker := _weakened(new, old):
        raise UsageError(f"--web.config.file: {path} {weaker}: weaker settings need a restart")
    if old.passwords and new.passwords and old.passwords.users == new.passwords.users:
        return new._replace(passwords=old.passwords)  # keeps the cache
    return new


def _weakened(new: Settings, old: Settings) -> str:
    """Return what new settings no longer require, "" if they are not weaker."""
    for guard in ("tls", "passwords"):
        if getattr(old, guard) is not None and getattr(new, guard) is None:
            return f"no longer requires {guard}"
    if old.has_client_ca and not new.has_client_ca:  # the CAs of this host would be trusted
        return "no longer names client_ca_file"
    return tls.weakened(new.tls, old.tls) if new.tls and old.tls else ""


def load(path: str) -> Settings:
    """Read a web config file and the files named in it. Raises UsageError with the line."""
    stamps = {path: stamp(path)}  # before it is read, so that no change is missed
    with yamlfile.located_errors(path):
        return _settings(path, stamps, yamlfile.read(path))


def _settings(path: str, stamps: Stamps, root: yaml.Node | None) -> Settings:
    def file_path(node: yaml.Node, field: str) -> str:
        """Return the path in a field, which is relative to the config file."""
        name = os.path.join(os.path.dirname(path), text(node, field))
        try:
            stamps[name] = stamp(name)
            open(name, "rb", opener=regular).close()
        except OSError as error:
            raise NodeError(node, f"cannot read {field} {name}: {error.strerror}") from None
        except ValueError:
            raise NodeError(node, f"{field} is not a file name") from None
        return name

    if root is None:
        LOG.warning(
            "--web.config.file: %s is empty: serving without TLS and without passwords", path
        )
    top = yamlfile.mapping(root, "the file", _SECTIONS) if root else {}
    tls_fields = section(top, "tls_server_config", tls.FIELDS)
    users = section(top, "basic_auth_users", None)
    http = section(top, "http_server_config", _HTTP_FIELDS)
    boolean(http, "http2", default=True)  # checked, but HTTP/2 is not supported
    headers = section(http, "headers", tuple(_HEADERS))
    context = None
    if tls_fields:
        context = tls.server_context(top["tls_server_config"], tls_fields, file_path)
    return Settings(
        tls=context,
        has_client_ca=has_text(tls_fields, "client_ca_file"),
        passwords=passwords.from_fields(users),
        headers={name: _header(node, name) for name, node in headers.items()},
        stamps=stamps,
    )


def _header(node: yaml.Node, name: str) -> str:
    value = text(node, name)
    if not value.isprintable() or not value.isascii():
        raise NodeError(node, f"{name} is not one line of ASCII")
    allowed = _HEADERS[name]
    if allowed and value not in allowed:
        raise NodeError(node, f"{name} must be {' or '.join(allowed)}, not {value!r}")
    return value
