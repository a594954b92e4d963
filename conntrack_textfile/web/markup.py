"""HTML and SVG elements, and templates of them. All values are escaped."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

if TYPE_CHECKING:
    from string import Template


def element(tag: str, *content: Element | str, **attributes: str) -> Element:
    """Return an element. Attributes: class_ for class, aria_label for aria-label.

    Use an element once: the text behind it is stored in it (its tail).
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    made = Element(tag, {names[name]: value for name, value in attributes.items()})
    last: Element | None = None
    for part in content:
        if not isinstance(part, str):
            made.append(part)
            last = part
        elif last is None:
            made.text = (made.text or "") + part
        else:
            last.tail = (last.tail or "") + part
    return made


def fill(page: Template, **values: str | list[Element]) -> bytes:
    """Substitute the values of a template."""
    return page.substitute(
        {
            name: html.escape(value)
            if isinstance(value, str)
            else "\n".join([ET.tostring(e, "unicode", "html") for e in value])
            for name, value in values.items()
        }
    ).encode()
