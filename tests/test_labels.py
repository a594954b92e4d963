from __future__ import annotations

from conntrack_textfile import labels
from conntrack_textfile.plan import Plan
from tests.builders import Flow, folded, table

FOREVER = ("src", "dst", "l3protocol", "l4protocol", "l7protocol", "dport")


def test_the_names_and_the_order_of_the_default_never_change() -> None:
    assert labels.DEFAULT == FOREVER
    assert labels.LABELS[: len(FOREVER)] == FOREVER


def test_each_label_has_one_row() -> None:
    assert len(labels.BY_NAME) == len(labels.ROWS) + 1  # netns is no field
    assert len({row.title for row in labels.ROWS}) == len(labels.ROWS)


def test_the_engine_has_a_value_for_each_label() -> None:
    text = table({Flow("10.0.0.1", "10.0.0.2"): (1, 1, 1, 1, 1)})
    (group,) = folded(text, Plan(labels=labels.LABELS)).groups
    assert dict(zip(labels.LABELS, group, strict=True)) == {
        "src": "10.0.0.1",
        "dst": "10.0.0.2",
        "l3protocol": "ipv4",
        "l4protocol": "tcp",
        "l7protocol": "https",
        "dport": "443",
        "zone": "0",
        "mark": "0",
        "egress": "",
        "backend": "",
    }
