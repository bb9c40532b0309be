"""What OpenAI's embeddings request means for a vFM: its parameters, and what is refused before it is queued."""

from __future__ import annotations

from typing import Any

import pytest

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_gateway.schemas import EmbeddingsBody

IDS = [[9906, 1917], [1527]]  # of cl100k, as LangChain sends them unless it is told not to


def params(value: Any, input_spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = parse(EmbeddingsBody, {"model": "v", "input": value, **more})
    return body.params(
        parse(VfmSpec, {"name": "v", "backbone": "m", "head": {"kind": "embedding"}, "input": input_spec})
    )


@pytest.mark.parametrize("value", [IDS, IDS[0], ["a text", IDS[1]]])
def test_token_ids_are_refused_with_the_name_of_the_switch(value: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"check_embedding_ctx_length=False.*'v' takes them with token_ids = true"
    ) as caught:
        params(value, {})
    assert caught.value.field == "input"


@pytest.mark.parametrize("value", [IDS, IDS[0], ["a text", IDS[1]]])
def test_a_vfm_that_takes_ids_gets_them_with_special_tokens(value: Any) -> None:
    assert params(value, {"token_ids": True}) == {"add_special_tokens": True}


@pytest.mark.parametrize("truncate", [True, False])
def test_truncate_is_a_parameter_of_the_route(truncate: bool) -> None:
    assert params("a text", {}, truncate=truncate, dimensions=3) == {"truncate": truncate, "dimensions": 3}
    assert params("a text", {}) == {}


@pytest.mark.parametrize(
    ("head", "around", "says"),
    [
        ("embedding", {"token_ids": True, "template": "q: {text}"}, "template cannot be put around token ids"),
        ("features", {"token_ids": True}, "token_ids is of embedding heads"),
        ("generation", {"truncate": True}, "heads that read whole texts"),
        ("generation", {"max_tokens": 9}, "heads that read whole texts"),
    ],
)
def test_what_an_input_cannot_mean_is_refused(head: str, around: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse(VfmSpec, {"name": "v", "backbone": "m", "head": {"kind": head}, "input": around})
