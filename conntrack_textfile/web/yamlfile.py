"""YAML as PyYAML's nodes, which have line numbers: every error names its line."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from typing import TYPE_CHECKING

from conntrack_textfile.errors import UsageError
from conntrack_textfile.files import regular


def missing_packages() -> str:
    """Return the error message for a missing package, with the command to install it."""
    marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if sys.prefix == sys.base_prefix and os.path.exists(marker):  # PEP 668
        how = "install your distribution's packages (Debian: python3-bcrypt python3-yaml)"
    else:
        how = f"{sys.executable} -m pip install bcrypt pyyaml"
    return f"needs the packages of the extra web: {how}"


try:
    import yaml
except ImportError:
    raise UsageError(f"--web.config.file {missing_packages()}") from None

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FILE_BYTES = 1 << 20

Fields = dict[str, yaml.Node]


class NodeError(Exception):
    """An error at a node of the file."""

    def __init__(self, node: yaml.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def read(path: str) -> yaml.Node | None:
    """Read a YAML file; None if it is empty. Call it within located_errors()."""
    with open(path, "rb", opener=regular) as file:
        text = file.read(_MAX_FILE_BYTES + 1)
    if len(text) > _MAX_FILE_BYTES:
        raise UsageError(f"--web.config.file: {path} is too large")
    return yaml.compose(text, yaml.SafeLoader)


@contextlib.contextmanager
def located_errors(path: str) -> Iterator[None]:
    """Turn errors of a file and of its nodes into a UsageError with the line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--web.config.file: cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"--web.config.file: {path}, line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError):
        raise UsageError(f"--web.config.file: {path} is not valid YAML in UTF-8") from None
    except NodeError as error:
        line = error.node.start_mark.line + 1
        raise UsageError(f"--web.config.file: {path}, line {line}: {error}") from None


def section(fields: Fields, name: str, known: tuple[str, ...] | None) -> Fields:
    """Return the fields of a section, {} if it is absent or empty. See mapping()."""
    node = fields.get(name)
    if node is None or is_null(node):
        return {}
    return mapping(node, name, known)


def mapping(node: yaml.Node, place: str, known: tuple[str, ...] | None) -> Fields:
    """Return the fields of a mapping. Raises NodeError.

    place: the name of the mapping, for messages. known: the valid names, None for any.
    """
    if not isinstance(node, yaml.MappingNode):
        raise NodeError(node, f"{place} must be a mapping")
    found: Fields = {}
    for key, value in node.value:
        name = text(key, f"a field of {place}")
        if known is not None and name not in known:
            reason = f"unknown field {printable(name)} in {place}; valid are {', '.join(known)}"
            raise NodeError(key, reason)
        if name in found:
            raise NodeError(key, f"duplicate field {printable(name)} in {place}")
        found[name] = value
    return found


def items(fields: Fields, name: str) -> list[yaml.Node]:
    """Return the items of a list, [] if it is absent or null."""
    node = fields.get(name)
    if node is None or is_null(node):
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise NodeError(node, f"{name} must be a list")
    nodes: list[yaml.Node] = node.value
    return nodes


def text(node: yaml.Node, place: str) -> str:
    """Return a scalar as it is written, numbers and booleans too."""
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        raise NodeError(node, f"{place} must be a string")
    value: str = node.value
    return value


def has_text(fields: Fields, name: str) -> bool:
    """Return whether a field is there and not empty."""
    node = fields.get(name)
    return node is not None and not is_null(node) and text(node, name) != ""


def choice(fields: Fields, name: str, choices: tuple[str, ...]) -> str:
    """Return a field that must be one of the choices, "" if it is absent or empty."""
    if not has_text(fields, name):
        return ""
    value = text(fields[name], name)
    if value not in choices:
        reason = f"{name} must be one of {', '.join(choices)}, not {value!r}"
        raise NodeError(fields[name], reason)
    return value


def boolean(fields: Fields, name: str, *, default: bool) -> bool:
    """Return a boolean, in any spelling of YAML 1.1 (yes, on, True)."""
    node = fields.get(name)
    if node is None or is_null(node):
        return default
    value: bool | None = None
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool":
        value = yaml.SafeLoader.bool_values.get(node.value.lower())
    if value is None:
        raise NodeError(node, f"{name} must be true or false")
    return value


def is_null(node: yaml.Node) -> bool:
    """Return whether a value is null or left out."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def printable(name: str) -> str:
    """Return a name for a message: on one line, control characters escaped."""
    return name if name.isprintable() else ascii(name)
