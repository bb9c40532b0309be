"""Errors on OpenAI's routes are OpenAI's, and FMplex's own everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker import errors
from fmplex_broker.errors import FmplexError, InvalidInput, QueueFull, RateLimited, TextTooLong, TooLarge
from fmplex_broker.specs.vfm import VfmChange
from fmplex_gateway.dialect import callers_words, error_body, error_status, speaks_openai
from tests.unit.gateway.site import Site, site, spec

OPENAIS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/v", "/v1/responses")
OWN = ("/v1/vfms", "/v1/vfms/v", "/v1/vfms/v/infer", "/v1/artifacts/prune", "/readyz", "/metrics", "/docs", "/v1")
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
}
TEXTS = {"head": {"kind": "generation"}}


def tree(kind: type[FmplexError] = FmplexError) -> Iterator[type[FmplexError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def body(path: str, model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, **BODIES[path], **more}


async def served(place: Site, path: str, **more: Any) -> None:
    """Make the vFM `v` serve, of the kind that the path is for."""
    await place.serve(spec("v", **({"head": {"kind": "embedding"}} if "embed" in path else TEXTS), **more))


async def refused(place: Site, path: str, sent: Any, key: str | None = None) -> tuple[int, str, str, str | None]:
    got = await place.ask("POST", path, key, sent)
    error = got.json()["error"]
    return got.status_code, error["type"], error["code"], error["param"]


def test_which_routes_are_openais() -> None:
    assert [path for path in (*OPENAIS, *OWN) if speaks_openai(path)] == list(OPENAIS)


@pytest.mark.parametrize("kind", [*tree()], ids=lambda kind: kind.__name__)
def test_every_error_is_openais_there_and_our_own_elsewhere(kind: type[FmplexError]) -> None:
    error = kind("wrong", field="input")
    for path in OWN:
        said = error_body(error, path)["error"]
        assert (error_status(error, path), said["code"], said["type"]) == (kind.status, kind.code, kind.code)
    for path in OPENAIS:
        status, said = error_status(error, path), error_body(error, path)["error"]
        assert status == (400 if kind.status == 422 else kind.status)
        assert (said["message"], said["param"]) == ("wrong", "input")
        assert (said["type"] == "server_error") == (status >= 500)
        wanted = {
            400: ("invalid_value", "context_length_exceeded", "package_rejected"),
            401: ("invalid_api_key",),
            404: ("model_not_found", "unknown_file", "unknown_batch", "unknown_tune"),
            429: ("rate_limit_exceeded",),
        }
        assert said["code"] in wanted.get(status, (kind.code,))


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_wrong_is_400_on_openais_routes(tmp_path: Path, path: str) -> None:
    async with site(tmp_path) as place:
        await served(place, path)
        wrong = await refused(place, path, body(path, "v", colour="red"))
        assert wrong == (400, "invalid_request_error", "invalid_value", "colour")
        assert (await refused(place, path, []))[:3] == (400, "invalid_request_error", "invalid_value")
        gone = await refused(place, path, body(path, "nobody"))
        assert gone == (404, "invalid_request_error", "model_not_found", None)
        assert (await place.ask("POST", "/v1/vfms/v/infer", body={"inputs": "x"})).status_code == 422


async def test_a_wrong_key_is_an_invalid_api_key(tmp_path: Path) -> None:
    async with site(tmp_path, {"api_keys": ["the-right-key"]}) as place:
        for path in (*BODIES, "/v1/models", "/v1/responses"):
            got = await refused(place, path, {}, "the-wrong-key")
            assert got == (401, "invalid_request_error", "invalid_api_key", None)
        assert (await refused(place, "/v1/vfms/v/infer", {}))[:3] == (401, "unauthorized", "unauthorized")


@pytest.mark.parametrize("path", BODIES)
async def test_a_full_queue_and_a_rate_are_rate_limits(tmp_path: Path, path: str) -> None:
    async with site(tmp_path) as place:
        await served(place, path)
        await place.queue.registry.change("v", VfmChange.model_validate({"limits": {"max_pending": 1}}))
        await place.queue.submit("v", ["x"])
        got = await place.ask("POST", path, body=body(path, "v"))
        assert (got.status_code, got.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(got.headers["retry-after"]) >= 1
    for error, kind in ((QueueFull("x"), "requests"), (RateLimited("x"), "tokens")):
        assert error_body(error, path)["error"]["type"] == kind


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        ("/v1/completions", {"prompt": ["x", "x" * 5000]}, "prompt.1"),
        ("/v1/completions", {"prompt": [5] * 2000}, "prompt.0"),
        ("/v1/embeddings", {"input": ["x", "x" * 5000]}, "input.1"),
    ],
)
async def test_a_text_of_too_many_bytes_is_too_long(tmp_path: Path, path: str, sent: Any, param: str) -> None:
    """It is 413 on FMplex's own route; programs that fall back on a model that takes more know tokens only."""
    async with site(tmp_path) as place:
        await served(place, path)
        await place.queue.registry.change("v", VfmChange.model_validate({"limits": {"max_input_bytes": 4000}}))
        got = await place.ask("POST", path, body=body(path, "v", **sent))
        assert (got.status_code, got.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert got.json()["error"]["param"] == param
        assert got.json()["error"]["message"].startswith("This model's maximum context length is ")
        own = await place.ask("POST", "/v1/vfms/v/infer", body={"inputs": ["x" * 5000]})
        assert (own.status_code, own.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("path", BODIES)
def test_what_programs_look_for_stands_in_the_repr_of_a_body(path: str) -> None:
    """The openai package shows the body of an error so, and LiteLLM looks there."""
    error = TextTooLong.over(7, 'the input has 9 tokens; send the parameter "truncate": true', field="input")
    said = error_body(error, path)
    assert "This model's maximum context length is 7 tokens" in str(said)
    assert "context_length_exceeded" in str(said)


def test_only_one_text_can_be_too_long() -> None:
    for field in ("inputs", "n", "schema", None):
        with pytest.raises(TooLarge), callers_words(list):
            raise TooLarge("too many", field=field)
    with pytest.raises(TextTooLong) as caught, callers_words(lambda path: ["input", *path[1:]]):
        raise TooLarge("input 3 has 9 bytes", field="inputs.3")
    assert caught.value.field == "input.3"
    with pytest.raises(InvalidInput) as wrong, callers_words(lambda path: ["input", *path[1:]]):
        raise InvalidInput("inputs.0: no", field="inputs.0")
    assert (wrong.value.message, wrong.value.field) == ("input.0: no", "input.0")
