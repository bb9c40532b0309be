"""The `openai` package against the gateway, as a program written for OpenAI would use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from fmplex import AsyncClient, Client, Forbidden, Unauthorized, UnknownVfm
from fmplex.local import LocalFleet
from tests.integration.conftest import TASKS, TEXTS
from tests.support.fleets import gateway, status, write_minilm_fleet
from tests.support.outputs import difference

KEY = "a-key-for-tests"
TEAM_KEY = "a-key-of-a-team"


def connect(url: str, key: str = "anything") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=90)


@pytest.fixture(scope="module")
def ai(fleet: LocalFleet) -> Iterator[openai.OpenAI]:
    with connect(fleet.gateway_url) as client:
        yield client


def test_a_text_and_a_list_of_texts_are_embedded(ai: openai.OpenAI, references: dict[str, list[Any]]) -> None:
    wanted = [output["embedding"].tolist() for output in references["embed-lora"]]
    one = ai.embeddings.create(model="embed-lora", input=TEXTS[0])
    assert difference(one.data[0].embedding, wanted[0]) <= 1e-5
    many = ai.embeddings.create(model="embed-lora", input=list(TEXTS))
    assert [row.index for row in many.data] == list(range(len(TEXTS)))
    assert all(difference(row.embedding, w) <= 1e-5 for row, w in zip(many.data, wanted, strict=True))
    assert many.model == "embed-lora"


def test_token_ids_are_taken_by_a_vfm_that_says_so(ai: openai.OpenAI, new_vfm: Callable[..., str]) -> None:
    name = new_vfm(input={"token_ids": True})
    hello = ai.embeddings.create(model=name, input="hello").data[0].embedding
    for ids in ([101, 7592, 102], [[101, 7592, 102]], [7592], [[7592]]):
        assert difference(ai.embeddings.create(model=name, input=ids).data[0].embedding, hello) <= 1e-5
    with pytest.raises(openai.APIStatusError, match=r"check_embedding_ctx_length=False.*token_ids = true") as caught:
        ai.embeddings.create(model="embed", input=[[9906, 1917]])
    assert caught.value.param == "input"


def test_a_text_that_is_too_long_is_cut_where_the_call_or_the_vfm_says_so(
    ai: openai.OpenAI, new_vfm: Callable[..., str]
) -> None:
    long = "word " * 300
    asked = ai.embeddings.create(model="embed", input=long, extra_body={"truncate": True}).data[0].embedding
    name = new_vfm(input={"truncate": True})
    told = ai.embeddings.create(model=name, input=long)
    assert difference(told.data[0].embedding, asked) <= 1e-5
    assert told.usage.prompt_tokens == 256
    with pytest.raises(openai.APIStatusError, match="truncate"):
        ai.embeddings.create(model=name, input=long, extra_body={"truncate": False})


def test_base64_which_is_the_default_and_floats_agree(ai: openai.OpenAI) -> None:
    default = ai.embeddings.create(model="embed", input=TEXTS[0]).data[0].embedding
    floats = ai.embeddings.create(model="embed", input=TEXTS[0], encoding_format="float").data[0].embedding
    raw = ai.embeddings.create(model="embed", input=TEXTS[0], encoding_format="base64").data[0].embedding
    assert isinstance(raw, str)
    assert len(default) == len(floats) == 384
    assert difference(list(default), floats) <= 1e-6


def test_dimensions_cut_the_vector_and_keep_its_length_one(ai: openai.OpenAI) -> None:
    whole = ai.embeddings.create(model="embed", input=TEXTS[0]).data[0].embedding
    short = ai.embeddings.create(model="embed", input=TEXTS[0], dimensions=16).data[0].embedding
    assert len(short) == 16
    assert math.hypot(*short) == pytest.approx(1, abs=1e-5)
    norm = math.hypot(*whole[:16])
    assert difference(list(short), [x / norm for x in whole[:16]]) <= 1e-5


def test_usage_counts_tokens(ai: openai.OpenAI) -> None:
    usage = ai.embeddings.create(model="embed", input=["hello", "hello hello"]).usage
    assert (usage.prompt_tokens, usage.total_tokens) == (3 + 4, 3 + 4)  # with [CLS] and [SEP]


def test_a_vfm_is_a_model(ai: openai.OpenAI) -> None:
    models = list(ai.models.list())
    assert set(TASKS) <= {model.id for model in models}
    assert {model.object for model in models} == {"model"}
    assert ai.models.retrieve("embed").id == "embed"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("nobody")


def test_an_unknown_model_is_not_found(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"nobody.*fmplex vfms") as caught:
        ai.embeddings.create(model="nobody", input="x")
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


def test_a_text_that_is_too_long_is_refused_with_the_limit(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is 256 tokens.*302.*truncate") as caught:
        ai.embeddings.create(model="embed", input=["fine", "word " * 300])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input.1")


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({"model": "sentiment", "input": "x"}, "model"),
        ({"model": "embed", "input": ""}, "input.0"),
        ({"model": "embed", "input": []}, "input"),
        ({"model": "embed", "input": "x", "dimensions": 0}, "dimensions"),
        ({"model": "embed", "input": "x", "dimensions": 385}, "dimensions"),
        ({"model": "embed", "input": "x", "extra_body": {"colour": "red"}}, "colour"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(ai: openai.OpenAI, call: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.embeddings.create(**call)
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")


def test_too_many_inputs_are_refused_with_the_limit(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match=r"2049 inputs.*2048.*split") as caught:
        ai.embeddings.create(model="embed", input=["x"] * 2049)
    assert caught.value.status_code == 413


@pytest.fixture(scope="module")
def guarded(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second gateway of the same fleet, which asks for a key."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "team.key").write_text(f"{TEAM_KEY}\n")
    team = {"name": "team", "key_file": "team.key", "scopes": ["infer"], "models": ["embed*"]}
    config = write_minilm_fleet(folder, gateway={"api_keys": ["another-key", KEY], "keys": [team]})
    with gateway(config, fleet.broker_url, folder / "gateway.log") as (url, _):
        yield url


def test_a_gateway_with_keys_takes_the_right_key_and_no_other(guarded: str) -> None:
    with connect(guarded, KEY) as right:
        assert right.embeddings.create(model="embed", input="x").data
    for wrong in ("a-key-for-test", "a-key-for-testsx", "A-KEY-FOR-TESTS"):
        with pytest.raises(openai.AuthenticationError) as caught, connect(guarded, wrong) as client:
            client.models.list()
        assert caught.value.code == "invalid_api_key"


async def test_the_sdk_gives_its_key_too(guarded: str) -> None:
    async with AsyncClient(guarded, api_key=KEY) as right:
        assert await right.vfms.list()
    async with AsyncClient(guarded, api_key="wrong") as wrong:
        with pytest.raises(Unauthorized, match="Authorization: Bearer"):
            await wrong.vfms.list()
    with Client(guarded) as none, pytest.raises(Unauthorized):
        none.infer("embed", "x")


def test_a_team_sees_and_calls_its_own_vfms_and_no_others(guarded: str) -> None:
    with connect(guarded, TEAM_KEY) as team:
        models = {model.id for model in team.models.list()}
        assert models >= {"embed", "embed-lora", "embed-cls"}
        assert all(model.startswith("embed") for model in models)
        assert team.embeddings.create(model="embed-lora", input="x").data
        with pytest.raises(openai.NotFoundError, match="there is no vFM 'sentiment'"):
            team.embeddings.create(model="sentiment", input="x")


async def test_the_sdk_says_what_a_key_may_not_do(guarded: str) -> None:
    async with AsyncClient(guarded, api_key=TEAM_KEY, retries=0) as team:
        assert (await team.infer("embed", "x")).output
        with pytest.raises(Forbidden, match="needs scope deploy; the key 'team' has infer"):
            await team.vfms.remove("embed")
        with pytest.raises(UnknownVfm, match="no vFM 'sentiment'"):
            await team.infer("sentiment", "x")


def test_health_checks_need_no_key(guarded: str) -> None:
    codes = {path: status(guarded + path) for path in ("/healthz", "/readyz", "/metrics", "/v1/models")}
    assert codes == {"/healthz": 200, "/readyz": 200, "/metrics": 401, "/v1/models": 401}
