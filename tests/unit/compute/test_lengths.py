"""What a vFM says of long texts and of token ids holds for calls that do not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmplex_broker.errors import InvalidInput, TextTooLong
from fmplex_broker.specs.heads import Embedding, InputSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from tests.support import tiny

LONG = "cat dog " * 60
CLS, SEP, CAT, DOG = 3, 4, tiny.FIRST_WORD, tiny.FIRST_WORD + 1


def prepare(engine: PackedEngine, digest: str, value: Any, **params: Any) -> Any:
    return engine.prepare([(digest, Request(value, params))])[0]


def ids(job: Any) -> list[int]:
    found: list[int] = job.texts[0].ids.tolist()
    return found


def test_a_vfm_that_truncates_cuts_unless_the_call_says_otherwise(bert: PackedEngine) -> None:
    digest = tiny.load(bert, Embedding(), input=InputSpec(truncate=True))
    cut = prepare(bert, digest, LONG)
    assert (cut.units, ids(cut)[0], ids(cut)[-1]) == (tiny.POSITIONS, CLS, SEP)
    assert isinstance(prepare(bert, digest, LONG, truncate=False), TextTooLong)
    assert prepare(bert, digest, {"input_ids": [CAT] * 99}).units == tiny.POSITIONS


def test_a_vfm_has_a_length_of_its_own(bert: PackedEngine) -> None:
    digest = tiny.load(bert, Embedding(), input=InputSpec(max_tokens=6))
    refused = prepare(bert, digest, LONG)
    assert isinstance(refused, TextTooLong)
    assert " 6" in refused.message
    assert ids(prepare(bert, digest, LONG, truncate=True)) == [CLS, CAT, DOG, CAT, DOG, SEP]
    assert prepare(bert, digest, "cat dog cat dog").units == 6


def test_vfms_of_several_lengths_are_prepared_together(bert: PackedEngine) -> None:
    sizes = [5, 9, None, 7]
    digests = [tiny.load(bert, Embedding(), input=InputSpec(max_tokens=size, truncate=True)) for size in sizes]
    jobs = bert.prepare([(digest, Request(LONG, {})) for digest in digests])
    assert [job.units for job in jobs] == [5, 9, tiny.POSITIONS, 7]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ([CAT, DOG], [CLS, CAT, DOG, SEP]),
        ([CLS, CAT, DOG, SEP], [CLS, CAT, DOG, SEP]),
        ([CLS, CAT], [CLS, CLS, CAT, SEP]),
        ([CAT] * 99, [CLS, *[CAT] * 64, SEP]),
        ([CLS, *[CAT] * 99, SEP], [CLS, *[CAT] * 64, SEP]),
    ],
)
def test_token_ids_get_the_special_tokens_that_texts_get(bert: PackedEngine, sent: list[int], taken: list[int]) -> None:
    digest = tiny.load(bert, Embedding())
    assert ids(prepare(bert, digest, {"input_ids": sent}, add_special_tokens=True, truncate=True)) == taken
    assert ids(prepare(bert, digest, {"input_ids": sent[:5]})) == sent[:5]


def test_a_text_and_its_ids_are_the_same(bert: PackedEngine) -> None:
    digest = tiny.load(bert, Embedding())
    sent = {"input_ids": [CAT, DOG]}
    text, made = tiny.run(bert, (digest, "cat dog"), (digest, sent, {"add_special_tokens": True}))
    np.testing.assert_allclose(text["embedding"].numpy(), made["embedding"].numpy(), atol=1e-6)


def test_what_is_no_truth_value_is_refused(bert: PackedEngine) -> None:
    refused = prepare(bert, tiny.load(bert, Embedding()), "cat", add_special_tokens=1)
    assert isinstance(refused, InvalidInput)
    assert refused.field == "params.add_special_tokens"
