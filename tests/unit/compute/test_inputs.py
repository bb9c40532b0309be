"""What callers may send, and what they are told when they send something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmplex_broker.errors import FmplexError, InvalidInput, TextTooLong, VfmClosed
from fmplex_broker.specs import heads as specs
from fmplex_broker.wire.messages import Request, decode_request, encode_request
from fmplex_broker.wire.tensors import Tensor
from fmplex_worker.engine.engine import PackedEngine
from tests.support import tiny

PAIR = {"text": "the cat", "text_pair": "a dog"}
MOST = tiny.POSITIONS  # tokens of the tiny bert


@pytest.fixture
def digests(bert: PackedEngine, tmp_path: Path) -> dict[str, str]:
    """Kind of head → a version that has it."""
    heads: list[tuple[specs.Head, int]] = [
        (specs.Embedding(), 0),
        (specs.Classification(labels=("a", "b")), 2),
        (specs.Regression(), 1),
        (specs.Tagging(labels=("a",)), 2),
        (specs.Similarity(), 0),
        (specs.Ranking(), 1),
        (specs.Features(), 0),
    ]
    files = {head.kind: tiny.head_file(tmp_path / head.kind, rows) if rows else None for head, rows in heads}
    return {head.kind: tiny.load(bert, head, weights=files[head.kind]) for head, _ in heads}


def prepare(engine: PackedEngine, digest: str, value: Any, params: dict[str, Any] | None = None) -> Any:
    """One request, as it comes off the wire."""
    return engine.prepare([(digest, decode_request(encode_request(Request(value, params or {}))))])[0]


@pytest.mark.parametrize(
    ("kind", "value", "units"),
    [
        ("embedding", "the cat", [4]),
        ("embedding", {"text": "the cat"}, [4]),
        ("embedding", PAIR, [7]),
        ("classification", PAIR, [7]),
        ("regression", "Cat!", [4]),
        ("features", {"input_ids": [5, 6, 7]}, [3]),
        ("features", {"input_ids": Tensor.of(np.array([5, 6]))}, [2]),
        ("features", {"input_ids": Tensor.of(np.array([5, 6], dtype=np.int32))}, [2]),
        ("embedding", {"inputs_embeds": tiny.embeds(9, tiny.HIDDEN)}, [9]),
        ("ranking", PAIR, [7]),
        ("ranking", {"input_ids": [5, 6, 7]}, [3]),
        ("similarity", PAIR, [4, 4]),
        ("tagging", "the cat", [4]),
        ("tagging", {"text": "the cat"}, [4]),
        ("embedding", " ", [2]),
    ],
)
def test_taken(bert: PackedEngine, digests: dict[str, str], kind: str, value: Any, units: list[int]) -> None:
    job = prepare(bert, digests[kind], value)
    assert [text.tokens for text in job.texts] == units
    assert (job.units, job.digest, job.adapter) == (sum(units), digests[kind], 0)
    assert job.head > 0
    (result,) = tiny.step(bert, [job])
    assert not isinstance(result, FmplexError)


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        ("embedding", "", "input.text"),
        ("embedding", {"text": ""}, "input.text"),
        ("embedding", {"text": 3}, "input.text"),
        ("embedding", {"text_pair": "a"}, "input.text"),
        ("embedding", {"text": "a", "text_pair": ""}, "input.text_pair"),
        ("embedding", 7, "input"),
        ("embedding", None, "input"),
        ("embedding", ["a", "b"], "input"),
        ("embedding", {}, "input"),
        ("embedding", {"texts": "a"}, "input.texts"),
        ("embedding", {"text": "a", "input_ids": [5]}, "input.input_ids"),
        ("embedding", {"input_ids": [5], "inputs_embeds": [[1.0]]}, "input"),
        ("embedding", {"input_ids": []}, "input.input_ids"),
        ("embedding", {"input_ids": "abc"}, "input.input_ids"),
        ("embedding", {"input_ids": [5, -1]}, "input.input_ids"),
        ("embedding", {"input_ids": [5, len(tiny.VOCABULARY)]}, "input.input_ids"),
        ("embedding", {"input_ids": [5, 2**63]}, "input.input_ids"),
        ("embedding", {"input_ids": [5.0]}, "input.input_ids"),
        ("embedding", {"input_ids": [True]}, "input.input_ids"),
        ("embedding", {"input_ids": [[5]]}, "input.input_ids"),
        ("embedding", {"input_ids": Tensor.of(np.array([[5]]))}, "input.input_ids"),
        ("embedding", {"input_ids": Tensor.of(np.array([5.0]))}, "input.input_ids"),
        ("embedding", {"input_ids": Tensor.of(np.array([-5]))}, "input.input_ids"),
        ("embedding", {"inputs_embeds": [[1.0]]}, "input.inputs_embeds"),
        ("embedding", {"inputs_embeds": tiny.embeds(3, 7)}, "input.inputs_embeds"),
        ("embedding", {"inputs_embeds": tiny.embeds(0, tiny.HIDDEN)}, "input.inputs_embeds"),
        ("embedding", {"inputs_embeds": Tensor.of(np.zeros((2, tiny.HIDDEN)))}, "input.inputs_embeds"),
        (
            "embedding",
            {"inputs_embeds": Tensor.of(np.full((2, tiny.HIDDEN), np.nan, np.float32))},
            "input.inputs_embeds",
        ),
        ("tagging", PAIR, "input.text_pair"),
        ("tagging", {"input_ids": [5]}, "input.input_ids"),
        ("tagging", {"inputs_embeds": tiny.embeds(1, tiny.HIDDEN)}, "input.inputs_embeds"),
        ("similarity", "a", "input.text_pair"),
        ("similarity", {"input_ids": [5]}, "input.input_ids"),
        ("ranking", "a", "input.text_pair"),
    ],
)
def test_refused(bert: PackedEngine, digests: dict[str, str], kind: str, value: Any, field: str) -> None:
    error = prepare(bert, digests[kind], value)
    assert type(error) is InvalidInput
    assert error.field == field
    assert error.message.startswith(field + ": ")


@pytest.mark.parametrize(
    ("kind", "params", "field"),
    [
        ("embedding", {"temperature": 1}, "params.temperature"),
        ("embedding", {"truncate": 1}, "params.truncate"),
        ("embedding", {"dimensions": 0}, "params.dimensions"),
        ("embedding", {"dimensions": tiny.HIDDEN + 1}, "params.dimensions"),
        ("embedding", {"dimensions": True}, "params.dimensions"),
        ("embedding", {"top_k": 1}, "params.top_k"),
        ("classification", {"top_k": 0}, "params.top_k"),
        ("classification", {"top_k": 1.5}, "params.top_k"),
        ("classification", {"dimensions": 3}, "params.dimensions"),
    ],
)
def test_params_refused(
    bert: PackedEngine, digests: dict[str, str], kind: str, params: dict[str, Any], field: str
) -> None:
    error = prepare(bert, digests[kind], "cat", params)
    assert type(error) is InvalidInput
    assert error.field == field


@pytest.mark.parametrize(
    ("kind", "value", "units"),
    [
        ("embedding", "cat " * 100, MOST),
        ("tagging", "cat " * 100, MOST),
        ("classification", {"text": "cat " * 100, "text_pair": "dog"}, MOST),
        ("similarity", {"text": "cat " * 100, "text_pair": "dog"}, MOST + 3),
        ("features", {"input_ids": [5] * 100}, MOST),
        ("features", {"inputs_embeds": tiny.embeds(100, tiny.HIDDEN)}, MOST),
    ],
)
def test_too_long(bert: PackedEngine, digests: dict[str, str], kind: str, value: Any, units: int) -> None:
    error = prepare(bert, digests[kind], value)
    assert type(error) is TextTooLong
    assert error.field == "input"
    assert f"This model's maximum context length is {MOST} tokens. However, the input has" in error.message
    assert '"truncate": true' in error.message
    job = prepare(bert, digests[kind], value, {"truncate": True})
    assert job.units == units
    assert not isinstance(tiny.step(bert, [job])[0], FmplexError)


def test_cut_text_keeps_its_special_tokens(bert: PackedEngine, digests: dict[str, str]) -> None:
    job = prepare(bert, digests["embedding"], "cat " * 100, {"truncate": True})
    ids = job.texts[0].ids.tolist()
    assert ids == [3, *[tiny.VOCABULARY.index("cat")] * (MOST - 2), 4]


def test_surrogate(bert: PackedEngine, digests: dict[str, str]) -> None:
    (error,) = bert.prepare([(digests["embedding"], Request("half \ud800", {}))])
    assert isinstance(error, InvalidInput)
    assert error.field == "input.text"


def test_a_bad_request_spares_its_batch(bert: PackedEngine, digests: dict[str, str]) -> None:
    requests = [("cat", "embedding"), ("", "embedding"), ("dog", "tagging"), ("a " * 99, "tagging"), (3, "similarity")]
    batch = [(digests[kind], Request(value, {})) for value, kind in requests]
    good, empty, tagged, long, wrong, gone = bert.prepare([*batch, ("unknown", Request("cat", {}))])
    assert isinstance(empty, InvalidInput)
    assert isinstance(long, TextTooLong)
    assert isinstance(wrong, InvalidInput)
    assert isinstance(gone, VfmClosed)
    results = tiny.step(bert, [good, tagged])
    assert list(results[0]) == ["embedding"]
    assert list(results[1]) == ["spans"]


def test_a_text_the_tokenizer_cannot_take(bert: PackedEngine, digests: dict[str, str], monkeypatch: Any) -> None:
    """The tokenizers library fails a whole batch for one text; only that one may pay."""
    tokenizer = bert._backbone.tokenizer
    real = type(tokenizer).encode

    def encode(self: Any, texts: Any, offsets: bool = False) -> Any:
        if "poison" in texts:
            raise Exception("missing [UNK]")
        return real(self, texts, offsets)

    monkeypatch.setattr(type(tokenizer), "encode", encode)
    batch = [(digests["embedding"], Request(text, {})) for text in ("cat", "poison", "dog")]
    first, bad, last = bert.prepare(batch)
    assert isinstance(bad, InvalidInput)
    assert "missing [UNK]" in bad.message
    assert (first.units, last.units) == (3, 3)  # type: ignore[union-attr]


def test_pair_has_token_types(bert: PackedEngine, digests: dict[str, str]) -> None:
    job = prepare(bert, digests["features"], PAIR)
    assert job.texts[0].types.tolist() == [0, 0, 0, 0, 1, 1, 1]
    flipped = prepare(bert, digests["features"], {"input_ids": job.texts[0].ids.tolist()})
    with_types, without = (torch.from_numpy(r["features"].numpy().copy()) for r in tiny.step(bert, [job, flipped]))
    assert tiny.relative(with_types, without) > 1e-2


LONG = "the cat " * 100_000


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("embedding", LONG),
        ("embedding", {"text": "a dog", "text_pair": LONG}),
        ("similarity", {"text": LONG, "text_pair": "a dog"}),
        ("tagging", LONG),
    ],
)
def test_a_text_far_too_long_is_refused_by_its_beginning(
    bert: PackedEngine, digests: dict[str, str], kind: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = bert._backbone.tokenizer.encode

    def looked_at(texts: Any, offsets: bool = False) -> Any:
        read.extend(len("".join(text)) for text in texts)
        return encode(texts, offsets)

    monkeypatch.setattr(bert._backbone.tokenizer, "encode", looked_at)
    error = prepare(bert, digests[kind], value)
    assert type(error) is TextTooLong
    assert "has at least" in error.message
    assert max(read) < 40_000


def test_a_text_far_too_long_is_cut_as_one_that_is_a_little_too_long(
    bert: PackedEngine, digests: dict[str, str]
) -> None:
    for kind in ("embedding", "tagging"):
        some, all_of_it = (
            prepare(bert, digests[kind], "the cat " * n, {"truncate": True}).texts[0] for n in (2 * MOST, 100_000)
        )
        assert list(some.ids) == list(all_of_it.ids)
        assert len(some.ids) == MOST


def test_what_is_long_is_not_quick(bert: PackedEngine, digests: dict[str, str]) -> None:
    for value, quick in (("the cat", True), (LONG, False), (PAIR, True), ({"text": "a", "text_pair": LONG}, False)):
        assert bert.quick(digests["embedding"], Request(value, {})) is quick
    embeds = Request({"inputs_embeds": tiny.embeds(9, tiny.HIDDEN)}, {})
    assert bert.quick(digests["embedding"], embeds)
