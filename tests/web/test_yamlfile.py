from __future__ import annotations

import pytest
import yaml

from conntrack_textfile.errors import UsageError
from conntrack_textfile.web import yamlfile
from conntrack_textfile.web.yamlfile import NodeError

FIELDS = """\
none:
empty: ""
word: b
number: 5
list: [a, b]
mapping: {a: b}
yes: yes
no: False
tagged: !!bool banana
"""


@pytest.fixture
def fields() -> yamlfile.Fields:
    root = yaml.compose(FIELDS, yaml.SafeLoader)
    assert root is not None
    return yamlfile.mapping(root, "the file", None)


def test_absent_null_and_empty_fields_have_no_text(fields: yamlfile.Fields) -> None:
    for name in ("absent", "none", "empty"):
        assert not yamlfile.has_text(fields, name)
    for name in ("word", "number", "yes", "no", "tagged"):
        assert yamlfile.has_text(fields, name)
    for name in ("list", "mapping"):
        with pytest.raises(NodeError, match=f"{name} must be a string"):
            yamlfile.has_text(fields, name)


def test_choices(fields: yamlfile.Fields) -> None:
    assert yamlfile.choice(fields, "word", ("a", "b")) == "b"
    for name in ("absent", "none", "empty"):
        assert yamlfile.choice(fields, name, ("a", "b")) == ""
    with pytest.raises(NodeError, match="number must be one of a, b, not '5'"):
        yamlfile.choice(fields, "number", ("a", "b"))


def test_booleans(fields: yamlfile.Fields) -> None:
    assert yamlfile.boolean(fields, "yes", default=False)
    assert not yamlfile.boolean(fields, "no", default=True)
    for default in (True, False):
        for name in ("absent", "none"):
            assert yamlfile.boolean(fields, name, default=default) == default
    for name in ("empty", "word", "number", "list", "mapping", "tagged"):
        with pytest.raises(NodeError, match=f"{name} must be true or false"):
            yamlfile.boolean(fields, name, default=True)


def test_lists(fields: yamlfile.Fields) -> None:
    assert [yamlfile.text(node, "x") for node in yamlfile.items(fields, "list")] == ["a", "b"]
    for name in ("absent", "none"):
        assert yamlfile.items(fields, name) == []
    for name in ("empty", "word", "mapping"):
        with pytest.raises(NodeError, match=f"{name} must be a list"):
            yamlfile.items(fields, name)


def test_sections(fields: yamlfile.Fields) -> None:
    assert set(yamlfile.section(fields, "mapping", ("a", "c"))) == {"a"}
    for name in ("absent", "none"):
        assert yamlfile.section(fields, name, ()) == {}
    with pytest.raises(NodeError, match="unknown field a in mapping; valid are c, d"):
        yamlfile.section(fields, "mapping", ("c", "d"))
    with pytest.raises(NodeError, match="list must be a mapping"):
        yamlfile.section(fields, "list", None)


def test_an_error_has_the_line_of_its_node(fields: yamlfile.Fields) -> None:
    with (
        pytest.raises(UsageError, match=r"web\.yml, line 3: no"),
        yamlfile.located_errors("web.yml"),
    ):
        raise NodeError(fields["word"], "no")
