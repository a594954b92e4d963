from __future__ import annotations

from string import Template

from conntrack_textfile.web.markup import element, fill


def test_texts_and_elements_keep_their_order_and_are_escaped() -> None:
    made = element("p", "a<", element("b", "&"), ">c", "d", class_="x", aria_label='"quoted"')
    page = fill(Template("$text|$body"), text="<i>", body=[made])
    assert page == (
        b'&lt;i&gt;|<p class="x" aria-label="&quot;quoted&quot;">a&lt;<b>&amp;</b>&gt;cd</p>'
    )
