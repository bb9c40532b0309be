"""Records of batches: windows, states, and how they are shown."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.batches import (
    ENDED,
    NEXT,
    STATUSES,
    BatchRecord,
    Order,
    is_batch_id,
    new_batch_id,
    oldest_id,
    window_s,
)
from fmplex_broker.specs.files import new_file_id
from fmplex_broker.specs.schema import parse

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@pytest.mark.parametrize(
    ("window", "seconds"),
    [
        ("24h", 86_400),
        ("5m", 300),
        ("300s", 300),
        ("7d", 604_800),
        ("168h", 604_800),
        ("604800s", 604_800),
        ("90m", 5400),
    ],
)
def test_windows(window: str, seconds: int) -> None:
    assert window_s(window) == seconds


@pytest.mark.parametrize(
    "window",
    [
        "",
        "24",
        "h",
        "4m",
        "299s",
        "8d",
        "169h",
        "604801s",
        "24H",
        " 24h",
        "24 h",
        "1.5h",
        "-24h",
        "024h",
        "24h\n",
        "٢٤h",
        "9" * 40 + "s",
    ],
)
def test_what_is_no_window(window: str) -> None:
    with pytest.raises(ValueError, match="from 5m to 7d"):
        window_s(window)


@given(st.integers(1, 9_999_999), st.sampled_from("smhd"))
def test_a_window_is_from_five_minutes_to_seven_days(number: int, unit: str) -> None:
    seconds = number * SECONDS[unit]
    try:
        assert window_s(f"{number}{unit}") == seconds
        assert 300 <= seconds <= 604_800
    except ValueError:
        assert not 300 <= seconds <= 604_800


def test_every_state_leads_to_an_end_and_ends_lead_nowhere() -> None:
    assert {"completed", "failed", "expired", "cancelled"} == ENDED
    for status in STATUSES:
        seen, waiting = set(), [status]
        while waiting:
            now = waiting.pop()
            seen.add(now)
            waiting += [to for to in NEXT.get(now, ()) if to not in seen]
        assert seen & ENDED
        assert status not in ENDED or seen == {status}


def test_ids_sort_by_time() -> None:
    before = time.time()
    ids = []
    for _ in range(3):
        ids.append(new_batch_id())
        time.sleep(0.002)
    assert sorted(ids) == ids
    assert all(is_batch_id(one) and len(one) == 30 for one in ids)
    assert oldest_id(before) <= ids[0] < oldest_id(time.time() + 1)


@pytest.mark.parametrize("text", ["", "batch_", "batch_" + "g" * 24, "batch_" + "0" * 23, "file-" + "0" * 24])
def test_what_is_no_id(text: str) -> None:
    assert not is_batch_id(text)


def order(**more: Any) -> Order:
    given = {"id": new_batch_id(), "owner": "me", "endpoint": "/v1/embeddings", "input_file_id": new_file_id()}
    return parse(Order, given | more)


def test_a_record_of_which_nothing_has_come_yet() -> None:
    raw = {"order": order().model_dump_json().encode(), "status": b"validating", "created_at": b"1", "expires_at": b"2"}
    nothing = dict.fromkeys(BatchRecord.model_fields.keys() - raw.keys())
    shown = BatchRecord.parse({**raw, **nothing}).shown()
    assert (shown["status"], shown["created_at"], shown["expires_at"]) == ("validating", 1, 2)
    assert shown["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    for name in ("errors", "output_file_id", "error_file_id", "metadata", "in_progress_at", "completed_at"):
        assert shown[name] is None
    assert "owner" not in json.dumps(shown)
    assert "models" not in json.dumps(shown)


def test_metadata_are_few_short_texts() -> None:
    most = {f"{'k' * 62}{i:02}": "v" * 512 for i in range(16)}
    assert order(metadata=most).metadata == most
    for wrong in ({"k" * 65: "v"}, {"k": "v" * 513}, {str(i): "v" for i in range(17)}, {"k": 1}, {"k": None}, []):
        with pytest.raises(InvalidInput, match="metadata"):
            order(metadata=wrong)
