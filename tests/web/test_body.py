from __future__ import annotations

import gzip
import zlib

from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile.web.body import Body


@given(st.lists(st.binary(max_size=200)), st.binary(max_size=200))
def test_a_body_and_another_text_are_one_gzip_member(pieces: list[bytes], rest: bytes) -> None:
    stream = b"".join(Body(pieces).gzipped(rest))
    assert gzip.decompress(stream) == b"".join(pieces) + rest
    inflated = zlib.decompressobj(31)
    assert inflated.decompress(stream) == b"".join(pieces) + rest
    assert inflated.eof
    assert not inflated.unused_data  # one member: some clients stop after the first
