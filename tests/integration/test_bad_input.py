"""Whatever a caller sends, the answer is a typed error that says what to do, and the neighbours notice nothing."""

from __future__ import annotations

import json
import math
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from fmplex import AsyncClient, Client, FmplexError, InvalidInput, TooLarge
from fmplex.local import LocalFleet
from fmplex_broker.messages import packb
from fmplex_broker.streams.embedded import EmbeddedServer, free_port
from fmplex_broker.tensors import Tensor
from tests.integration.conftest import TASKS, TEXTS
from tests.integration.fleets import gateway, status, until, write_config
from tests.integration.packages import head_weights, lora, save_file, write_adapter, write_manifest, write_package
from tests.integration.traffic import Traffic

NEIGHBOURS = ("embed-lora", "sentiment", "entities", "ranker")


@pytest.fixture(scope="module")
def traffic(fleet: LocalFleet, references: dict[str, list[Any]]) -> Iterator[Traffic]:
    wanted = {name: (task.inputs, references[name]) for name, task in TASKS.items() if name in NEIGHBOURS}
    running = Traffic(fleet.gateway_url, wanted)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def neighbours(traffic: Traffic) -> Iterator[None]:
    """Beside every test of this module good requests run to other vFMs: none fails, none answers something else."""
    before = traffic.rounds
    yield
    traffic.check(before)


# --- requests --------------------------------------------------------------------------------------------------------


def embeds(shape: tuple[int, ...] = (4, 384), value: float = 0.0, dtype: str = "float32") -> dict[str, Tensor]:
    return {"inputs_embeds": Tensor.of(np.full(shape, value, dtype=dtype))}


NAN = np.zeros((4, 384), dtype=np.float32)
NAN[2, 7] = math.nan

# What is sent to the vFM `embed` -> status, code, field, what the message must say.
REQUESTS: dict[str, tuple[Any, int, str, str | None, str]] = {
    "an empty text": ([""], 422, "invalid_input", "inputs.0", "empty"),
    "a text of white space": (["fine", " \n\t"], 422, "invalid_input", "inputs.1", "empty"),
    "a megabyte of text": (["fine", "word " * 200_000], 413, "too_large", "inputs.1", "at most 786432; shorten"),
    "a text that is too long": (["fine", "word " * 300], 422, "text_too_long", "inputs.1", "takes 256; shorten it, or send"),
    "a number": ([7], 422, "invalid_input", "inputs.0", "must be a string or a mapping, not int"),
    "nothing": ([None], 422, "invalid_input", "inputs.0", "must be a string or a mapping"),
    "a list": ([["a", "b"]], 422, "invalid_input", "inputs.0", "must be a string or a mapping"),
    "a text that is a number": ([{"text": 7}], 422, "invalid_input", "inputs.0.text", "must be a string, not int"),
    "inputs that are no list": ("a text", 422, "invalid_input", "inputs", "list"),
    "no inputs": ([], 422, "invalid_input", "inputs", "send at least one"),
    "ten thousand items": (["x"] * 10_000, 413, "too_large", "inputs", "at most 2048 are taken; split the call"),
    "an unknown field": ([{"text": "x", "txet": "x"}], 422, "invalid_input", "inputs.0.txet", "unknown field 'txet'; an input"),
    "text and ids": ([{"text": "x", "input_ids": [1]}], 422, "invalid_input", "inputs.0", "exactly one of"),
    "a pair for one text": ([{"text": "x", "text_pair": "y"}], 422, "invalid_input", "inputs.0.text_pair", "takes no text_pair"),
    "ids that are texts": ([{"input_ids": ["a"]}], 422, "invalid_input", "inputs.0.input_ids", "list of token ids"),
    "an id that is none": ([{"input_ids": [30_522]}], 422, "invalid_input", "inputs.0.input_ids", "from 0 to 30521"),
    "a negative id": ([{"input_ids": [-1]}], 422, "invalid_input", "inputs.0.input_ids", "token ids"),
    "an id without end": ([{"input_ids": [10**40]}], 422, "invalid_input", "inputs.0.input_ids", "token ids"),
    "no ids": ([{"input_ids": []}], 422, "invalid_input", "inputs.0.input_ids", "list of token ids"),
    "too many ids": ([{"input_ids": [1] * 257}], 422, "text_too_long", "inputs.0", "takes 256"),
    "embeddings in JSON": ([{"inputs_embeds": [[0.0]]}], 422, "invalid_input", "inputs.0.inputs_embeds", "float32 tensor (msg"),
    "half a character": (["\ud800"], 422, "invalid_input", "inputs.0", "not valid Unicode"),
    "a NaN tensor": (["x", {"inputs_embeds": Tensor.of(NAN)}], 422, "invalid_input", "inputs.1.inputs_embeds", "NaN"),
    "an infinite tensor": ([embeds(value=math.inf)], 422, "invalid_input", "inputs.0.inputs_embeds", "infinite"),
    "a tensor of the wrong width": ([embeds((4, 383))], 422, "invalid_input", "inputs.0.inputs_embeds", "[tokens, 384]"),
    "a tensor of the wrong rank": ([embeds((4,))], 422, "invalid_input", "inputs.0.inputs_embeds", "[tokens, hidden]"),
    "a tensor of the wrong type": ([embeds(dtype="float64")], 422, "invalid_input", "inputs.0.inputs_embeds", "float32"),
    "a tensor with no rows": ([embeds((0, 384))], 422, "invalid_input", "inputs.0.inputs_embeds", "empty"),
}  # fmt: skip


# What the SDK turns into something else, or refuses itself before it is sent.
HTTP_ONLY = ("inputs that are no list", "half a character", "an id without end")


def refused(response: httpx.Response, status: int, code: str, field: str | None, says: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error.get("field")) == (status, code, field), error
    assert says in error["message"], error
    assert len(error["message"]) < 500, "an error is a sentence, not an echo of the input"


def send(http: httpx.Client, path: str, body: Any) -> httpx.Response:
    """As JSON where JSON can say it, else as msgpack."""
    try:
        content, kind = json.dumps(body).encode(), "application/json"
    except TypeError:
        content, kind = packb(body), "application/msgpack"
    return http.post(path, content=content, headers={"Content-Type": kind})


@pytest.mark.parametrize("what", REQUESTS)
def test_a_bad_request_is_refused_by_name(http: httpx.Client, what: str) -> None:
    inputs, *expected = REQUESTS[what]
    refused(send(http, "/v1/vfms/embed/infer", {"inputs": inputs}), *expected)


async def test_the_sdk_raises_the_same_errors_both_ways(client: AsyncClient) -> None:
    for what in REQUESTS.keys() - HTTP_ONLY:
        inputs, status, code, field, says = REQUESTS[what]
        with pytest.raises(FmplexError) as caught:
            await client.infer("embed", inputs)
        error = caught.value
        assert (error.status, error.code, error.field) == (status, code, field), what
        assert says in error.message


async def test_what_cannot_travel_is_refused_before_it_is_sent(client: AsyncClient) -> None:
    for value in ("\ud800", {"text": object()}, object(), {1, 2}, b"bytes", {"input_ids": [10**40]}):
        with pytest.raises(InvalidInput):
            await client.infer("embed", value)


PARAMETERS = {
    "an unknown parameter": ({"params": {"colour": "red"}}, "colour", "unknown"),
    "an unknown key": ({"colour": "red"}, "colour", "unknown key; remove it"),
    "parameters that are no object": ({"params": 7}, "params", "dictionary"),
    "a parameter of the wrong type": ({"params": {"truncate": "perhaps"}}, "truncate", "boolean"),
    "no dimensions": ({"params": {"dimensions": 0}}, "dimensions", "between 1"),
    "too many dimensions": ({"params": {"dimensions": 385}}, "params.dimensions", "from 1 to 384"),
    "dimensions without end": ({"params": {"dimensions": 10**40}}, "dimensions", "between 1"),
    "a parameter of another head": ({"params": {"top_k": 2}}, "top_k", "means nothing to 'embed'"),
    "no time": ({"timeout_ms": 0}, "timeout_ms", "between 1 and 86400000"),
    "time without end": ({"timeout_ms": 1e300}, "timeout_ms", "between 1 and 86400000"),
    "time that is none": ({"timeout_ms": math.nan}, "timeout_ms", "between 1 and 86400000"),
    "an empty key": ({"idempotency_key": ""}, "idempotency_key", "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_bad_parameter_is_refused_by_name(http: httpx.Client, what: str) -> None:
    more, field, says = PARAMETERS[what]
    refused(send(http, "/v1/vfms/embed/infer", {"inputs": ["x"]} | more), 422, "invalid_input", field, says)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"null", b'{"inputs": ["x"]} x', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/vfms/embed/infer", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_input")
    assert "JSON" in response.text or "object" in response.text


def test_each_head_says_which_inputs_it_takes(http: httpx.Client) -> None:
    for vfm, value, says in (
        ("similar", "one text", "text_pair"),
        ("ranker", {"text": "one text"}, "text_pair is missing"),
        ("entities", {"input_ids": [101, 102]}, "tagging needs text"),
        ("raw", {"text": "a", "text_pair": "b"}, "takes no text_pair"),
    ):
        response = send(http, f"/v1/vfms/{vfm}/infer", {"inputs": [value]})
        assert response.status_code == 422
        assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "name", ["nobody", "embed%00", "embed%20", "..%2fembed", "%7Bminilm%7D", "x" * 4000, "%F0%9F%90%88"]
)
def test_an_unknown_vfm_is_404(http: httpx.Client, name: str) -> None:
    response = send(http, f"/v1/vfms/{name}/infer", {"inputs": ["x"]})
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("unknown_vfm", "no_route")


async def test_a_megabyte_is_taken_where_a_vfm_allows_it(client: AsyncClient, new_vfm: Callable[..., str]) -> None:
    roomy = new_vfm(limits={"max_input_bytes": 2_000_000})
    with pytest.raises(InvalidInput, match="takes 256"):
        await client.infer(roomy, "word " * 200_000)
    whole = await client.infer(roomy, "word " * 200_000, truncate=True)
    assert whole.output["embedding"].shape == (384,)
    with pytest.raises(InvalidInput, match="takes 256"):
        await client.infer(roomy, embeds((257, 384)))
    with pytest.raises(TooLarge, match="at most 2000000"):
        await client.infer(roomy, "x" * 2_000_001)


def test_one_bad_item_among_many_is_named(http: httpx.Client) -> None:
    inputs = ["fine"] * 700
    inputs[613] = "word " * 300
    response = send(http, "/v1/vfms/embed/infer", {"inputs": inputs})
    refused(response, 422, "text_too_long", "inputs.613", "truncate")


def test_a_body_cut_off_is_forgotten(fleet: LocalFleet, http: httpx.Client) -> None:
    url = urlsplit(fleet.gateway_url)
    body = packb({"inputs": [embeds((200, 384))]})
    for cut in (1, len(body) // 2, len(body) - 1):
        with socket.create_connection((url.hostname, url.port), timeout=30) as s:
            s.sendall(b"POST /v1/vfms/embed/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/msgpack\r\n")
            s.sendall(b"content-length: %d\r\n\r\n" % len(body) + body[:cut])
    assert send(http, "/v1/vfms/embed/infer", {"inputs": ["x"]}).status_code == 200


# --- packages --------------------------------------------------------------------------------------------------------

CLASSES = {"kind": "classification", "labels": ["a", "b"]}
Vandal = Callable[[Path, Path], None]  # what is done to a good package: (package folder, a folder outside the roots)


def _no_head(package: Path, _: Path) -> None:
    (package / "head.safetensors").unlink()


def _no_manifest(package: Path, _: Path) -> None:
    (package / "vfm.toml").unlink()


def _unknown_key(package: Path, _: Path) -> None:
    with (package / "vfm.toml").open("a") as file:
        file.write('colour = "red"\n')


def _broken_toml(package: Path, _: Path) -> None:
    (package / "vfm.toml").write_text("name = \n")


def _other_backbone(package: Path, _: Path) -> None:
    write_manifest(package, {"name": package.name, "backbone": "another", "head": CLASSES})


def _pickled_head(package: Path, _: Path) -> None:
    (package / "head.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def _pickle_beside(package: Path, _: Path) -> None:
    (package / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps({}))


def _pickled_adapter(package: Path, _: Path) -> None:
    (package / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps({}))


def _truncate(package: Path, part: str) -> None:
    file = package / part
    file.write_bytes(file.read_bytes()[:-100])


def _cut_head(package: Path, _: Path) -> None:
    _truncate(package, "head.safetensors")


def _cut_adapter(package: Path, _: Path) -> None:
    _truncate(package, "adapter/adapter_model.safetensors")


def _huge_header(package: Path, _: Path) -> None:
    (package / "head.safetensors").write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")


def _empty_head(package: Path, _: Path) -> None:
    (package / "head.safetensors").write_bytes(b"")


def _nan_head(package: Path, _: Path) -> None:
    weights = head_weights(2)
    weights["weight"][1, 3] = math.nan
    save_file(weights, package / "head.safetensors")


def _wide_head(package: Path, _: Path) -> None:
    save_file(head_weights(2, hidden=768), package / "head.safetensors")


def _more_labels(package: Path, _: Path) -> None:
    save_file(head_weights(3), package / "head.safetensors")


def _adapter(package: Path, **kind: Any) -> None:
    (package / "adapter").rename(package.parent / f"{package.name}-old-adapter")
    write_adapter(package / "adapter", **kind)


def _wider_adapter(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4, hidden=768), r=4, lora_alpha=8)


def _deeper_adapter(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4, layers=12), r=4, lora_alpha=8)


def _dora(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4), r=4, lora_alpha=8, use_dora=True)


def _wrong_rank(package: Path, _: Path) -> None:
    _adapter(package, tensors=lora(4), r=8, lora_alpha=8)


def _linked(package: Path, outside: Path, part: str) -> None:
    """`part` moves out of the roots, and a link is left in its place."""
    moved = outside / part.replace("/", "-")
    (package / part).rename(moved)
    (package / part).symlink_to(moved)


def _linked_adapter(package: Path, outside: Path) -> None:
    _linked(package, outside, "adapter")


def _linked_adapter_file(package: Path, outside: Path) -> None:
    _linked(package, outside, "adapter/adapter_model.safetensors")


def _linked_head(package: Path, outside: Path) -> None:
    _linked(package, outside, "head.safetensors")


def _linked_manifest(package: Path, outside: Path) -> None:
    _linked(package, outside, "vfm.toml")


def _linked_package(package: Path, outside: Path) -> None:
    moved = outside / package.name
    package.rename(moved)
    package.symlink_to(moved)


def _looping_link(package: Path, _: Path) -> None:
    (package / "adapter" / "loop").symlink_to(package / "adapter" / "loop")


# field, what the message must say, what is done
PACKAGES: dict[str, tuple[str | None, str, Vandal]] = {
    "a package without its head": ("head", "needs head.safetensors", _no_head),
    "a package without its manifest": ("package", "`fmplex fit` writes one", _no_manifest),
    "an unknown key": ("colour", "unknown key; remove it", _unknown_key),
    "a manifest that is no TOML": (None, "not valid TOML", _broken_toml),
    "a package for another backbone": ("backbone", "no worker has ever hosted backbone 'another'", _other_backbone),
    "a pickle for a head": ("head", "not a whole safetensors file", _pickled_head),
    "a pickle beside the adapter": ("package", "is a pickle; convert it to safetensors", _pickle_beside),
    "a pickle for an adapter": ("adapter", "not a whole safetensors file", _pickled_adapter),
    "a truncated head": ("head", "not a whole safetensors file", _cut_head),
    "a truncated adapter": ("adapter", "not a whole safetensors file", _cut_adapter),
    "a head that lies about its size": ("head", "not a whole safetensors file", _huge_header),
    "an empty head": ("head", "not a whole safetensors file", _empty_head),
    "a head with NaN": ("head", "NaN or infinite values", _nan_head),
    "a head for another backbone": ("head", "needs weight (2, 384)", _wide_head),
    "a head with more rows than labels": ("head", "needs weight (2, 384)", _more_labels),
    "an adapter for a wider backbone": ("adapter", "made for another backbone", _wider_adapter),
    "an adapter for a deeper backbone": ("adapter", "made for another backbone", _deeper_adapter),
    "a DoRA": ("adapter", "DoRA is not served", _dora),
    "an adapter whose rank is another": ("adapter", "has rank 4, adapter_config.json says 8", _wrong_rank),
    "an adapter folder that is a link": ("package", "link out of the package; put what it leads to there", _linked_adapter),
    "an adapter file that is a link": ("package", "link out of the package; put what it leads to there", _linked_adapter_file),
    "a head that is a link": ("package", "link out of the package; put what it leads to there", _linked_head),
    "a manifest that is a link": ("package", "link out of the package; put what it leads to there", _linked_manifest),
    "a package that is a link": ("package", "outside the folders", _linked_package),
    "a link that leads to itself": ("package", "cannot be followed", _looping_link),
}  # fmt: skip


@pytest.mark.parametrize("what", PACKAGES)
def test_a_bad_package_is_refused_at_deployment(http: httpx.Client, place: Path, tmp_path: Path, what: str) -> None:
    field, says, vandal = PACKAGES[what]
    package = write_package(place / "vfms" / f"bad-{list(PACKAGES).index(what)}", CLASSES, rank=4)
    vandal(package, tmp_path)
    code = "invalid_input" if field in ("colour", None) or says.startswith("no worker") else "package_rejected"
    refused(send(http, "/v1/vfms", {"package": str(package)}), 422, code, field, says)
    assert send(http, f"/v1/vfms/{package.name}/infer", {"inputs": ["x"]}).status_code in (404, 503)


@pytest.mark.parametrize(
    "what", ["a truncated adapter", "an adapter folder that is a link", "a package that is a link"]
)
async def test_a_bad_package_is_refused_straight_from_the_broker_too(
    fleet: LocalFleet, place: Path, tmp_path: Path, what: str
) -> None:
    field, says, vandal = PACKAGES[what]
    package = write_package(place / "vfms" / f"bad-direct-{list(PACKAGES).index(what)}", CLASSES, rank=4)
    vandal(package, tmp_path)
    async with AsyncClient(fleet.broker_url) as client:
        with pytest.raises(FmplexError, match=says) as caught:
            await client.vfms.deploy(package)
    assert (caught.value.code, caught.value.field) == ("package_rejected", field)


@pytest.mark.parametrize(
    "where",
    [
        "{outside}/elsewhere",
        "{roots}/../../etc",
        "/etc",
        "",
        "{roots}/not-there",
        "{roots}/a\0b",
        "{roots}/" + "x" * 5000,
    ],
)
def test_a_package_outside_the_allowed_roots_is_refused(
    http: httpx.Client, place: Path, tmp_path: Path, where: str
) -> None:
    write_package(tmp_path / "elsewhere", CLASSES, rank=4)
    response = send(http, "/v1/vfms", {"package": where.format(outside=tmp_path, roots=place / "vfms")})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["field"]) == (422, "package_rejected", "package")
    assert any(hint in error["message"] for hint in ("worker.roots", "give the folder", "check the path"))


async def test_a_worker_guards_its_roots_itself(fleet: LocalFleet, tmp_path: Path) -> None:
    package = write_package(tmp_path / "elsewhere", CLASSES)
    async with AsyncClient(fleet.broker_url) as client:
        with pytest.raises(FmplexError, match=r"outside the folders.*worker\.roots"):
            await client.vfms.deploy(package)


def test_a_bad_new_version_leaves_the_old_one_serving(
    http: httpx.Client, place: Path, new_vfm: Callable[..., str]
) -> None:
    name = new_vfm(CLASSES, rank=2)
    before = send(http, f"/v1/vfms/{name}/infer", {"inputs": [TEXTS[0]]}).json()
    worse = write_package(place / "vfms" / f"{name}-worse", CLASSES, name=name, rank=2)
    _cut_adapter(worse, place)
    refused(
        http.patch(f"/v1/vfms/{name}", json={"package": str(worse)}), 422, "package_rejected", "adapter", "safetensors"
    )
    assert send(http, f"/v1/vfms/{name}/infer", {"inputs": [TEXTS[0]]}).json() == before
    assert http.get(f"/v1/vfms/{name}").json()["status"] == "serving"


def test_a_refused_package_can_be_mended_and_deployed_again(http: httpx.Client, place: Path) -> None:
    package = write_package(place / "vfms" / "mended", CLASSES)
    _nan_head(package, place)
    assert send(http, "/v1/vfms", {"package": str(package)}).status_code == 422
    shown = http.get("/v1/vfms/mended").json()
    assert shown["status"] == "rejected"
    assert "NaN" in shown["error"]["message"]
    save_file(head_weights(2), package / "head.safetensors")
    assert send(http, "/v1/vfms", {"package": str(package)}).status_code == 201
    assert send(http, "/v1/vfms/mended/infer", {"inputs": ["x"]}).status_code == 200
    assert http.delete("/v1/vfms/mended").status_code == 200


SPEC = {"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}}
NEW = SPEC | {"name": "new"}
SPECS: dict[str, tuple[Any, int, str, str | None, str]] = {
    "a name that is taken": ({"spec": SPEC}, 409, "conflict", "name", "change it with PATCH, or remove it first"),
    "a name that is a path": ({"spec": SPEC | {"name": "a/b"}}, 422, "invalid_input", "spec.name", "match pattern"),
    "a name of a key": ({"spec": SPEC | {"name": "a:b"}}, 422, "invalid_input", "spec.name", "match pattern"),
    "a strange backbone": ({"spec": NEW | {"backbone": "gpt"}}, 422, "invalid_input", "backbone", "known: minilm"),
    "a head that is none": ({"spec": SPEC | {"head": {"kind": "poet"}}}, 422, "invalid_input", "spec.head", "poet"),
    "a head that needs weights": ({"spec": NEW | {"head": CLASSES}}, 422, "package_rejected", "head", "deploy a package"),
    "no weight": ({"spec": SPEC | {"weight": 0}}, 422, "invalid_input", "spec.weight", "greater than"),
    "an unknown limit": ({"spec": SPEC | {"limits": {"max": 1}}}, 422, "invalid_input", "spec.limits.max", "unknown key"),
    "neither": ({}, 422, "invalid_input", "package", "either package"),
    "both": ({"spec": SPEC, "package": "x"}, 422, "invalid_input", "package", "either package"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPECS)
def test_a_bad_deployment_is_refused_by_name(http: httpx.Client, what: str) -> None:
    body, *expected = SPECS[what]
    refused(send(http, "/v1/vfms", body), *expected)


def test_a_bad_change_is_refused_by_name(http: httpx.Client) -> None:
    for change, field in (
        ({"weight": -1}, "weight"),
        ({"colour": 1}, "colour"),
        ({"limits": {"max_pending": 0}}, "limits.max_pending"),
    ):
        response = http.patch("/v1/vfms/embed", json=change)
        assert (response.status_code, response.json()["error"]["field"]) == (422, field)
    assert http.patch("/v1/vfms/nobody", json={"weight": 2}).status_code == 404
    assert http.delete("/v1/vfms/nobody").status_code == 404


# --- the broker is away ----------------------------------------------------------------------------------------------


def test_a_gateway_started_before_its_broker_says_so_and_recovers(tmp_path: Path) -> None:
    port = free_port()
    broker_url = f"redis://127.0.0.1:{port}"
    log = tmp_path / "gateway.log"
    with (
        gateway(write_config(tmp_path), broker_url, log) as (url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        assert http.get("/healthz").status_code == 200
        assert http.get("/metrics").status_code == 200
        calls = (
            http.get("/readyz"), http.get("/v1/models"), http.get("/v1/vfms"), http.delete("/v1/vfms/x"),
            send(http, "/v1/vfms/x/infer", {"inputs": ["x"]}), send(http, "/v1/vfms", {"spec": SPEC}),
        )  # fmt: skip
        for response in calls:
            refused(response, 503, "broker_unavailable", None, "is it running, and is its URL right?")
        with Client(broker_url, retries=0) as direct, pytest.raises(FmplexError, match="is it running") as caught:
            direct.infer("x", "x")
        assert caught.value.code == "broker_unavailable"
        with EmbeddedServer(tmp_path / "broker", port=port):
            until(lambda: status(f"{url}/v1/models") == 200, "the gateway has found its broker")
            refused(http.get("/readyz"), 503, "no_worker", None, "start one")
            refused(send(http, "/v1/vfms/x/infer", {"inputs": ["x"]}), 404, "unknown_vfm", None, "fmplex vfms")
            refused(send(http, "/v1/vfms", {"spec": SPEC}), 422, "invalid_input", "backbone", "start a worker first")
        assert "Traceback" not in log.read_text()


async def test_a_gateway_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with AsyncClient(url, retries=0) as client:
        with pytest.raises(FmplexError, match=f"{url}.*does not answer") as caught:
            await client.infer("embed", "x")
    assert caught.value.status == 503
    with pytest.raises(InvalidInput, match=r"http\(s\)"):
        AsyncClient("ftp://somewhere")
