"""What a worker tells of its passes survives the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.wire.messages import packb
from fmplex_broker.wire.passes import PassPart, PassRecord, PassReport, decode_pass_report, encode_pass_report

seconds = st.floats(min_value=0, max_value=1e9)
counts = st.integers(0, 10**9)
parts = st.builds(PassPart, st.text(min_size=1), counts, counts, seconds, seconds, seconds)
passes = st.builds(
    PassRecord, st.text(), st.text(), counts, st.sampled_from(["interactive", "offline"]), seconds, seconds, seconds,
    counts, counts, counts, st.lists(parts),
)  # fmt: skip


@given(st.text(), st.lists(passes, max_size=5))
def test_a_report_survives_the_wire(worker: str, records: list[PassRecord]) -> None:
    assert decode_pass_report(encode_pass_report(worker, records)) == PassReport(worker, records)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", packb("no"), packb([2, "w", []]), packb([1, "w"]), packb([1, "w", [{}]]), packb([1, "w", [{"parts": [{}]}]])],
)  # fmt: skip
def test_what_is_no_report_of_this_version_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_pass_report(data)
