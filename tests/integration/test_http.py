"""The HTTP API by hand: curl, raw sockets, msgpack."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fmplex.local import LocalFleet
from fmplex_broker.wire.messages import packb, unpackb
from fmplex_broker.wire.tensors import Tensor
from tests.integration.conftest import TEXTS
from tests.support.outputs import difference
from tests.support.packages import HIDDEN
from tests.support.waiting import wait_until

MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}


def curl(fleet: LocalFleet, path: str, *options: str, stdin: bytes | None = None) -> tuple[int, Any]:
    """Status and body (parsed where it is JSON) as a shell script would see them."""
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "90", "-w", "\n%{http_code}", *options, fleet.gateway_url + path],
        input=stdin, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    body, _, code = done.stdout.decode().rpartition("\n")
    return int(code), json.loads(body) if body.startswith(("{", "[")) else body


def post(fleet: LocalFleet, path: str, body: Any) -> tuple[int, Any]:
    return curl(
        fleet, path, "-H", "content-type: application/json", "--data-binary", "@-", stdin=json.dumps(body).encode()
    )


def test_curl_gets_an_answer(fleet: LocalFleet, references: dict[str, list[Any]]) -> None:
    code, answer = post(fleet, "/v1/vfms/sentiment/infer", {"inputs": list(TEXTS[:2])})
    assert code == 200
    assert answer["vfm"] == "sentiment"
    assert [difference(a, b) <= 1e-5 for a, b in zip(answer["outputs"], references["sentiment"], strict=False)] == [
        True
    ] * 2
    _, shown = curl(fleet, "/v1/vfms/sentiment")
    assert answer["version"] == shown["version"]
    assert [set(run) for run in answer["runs"]] == [{"version", "units", "queue_ms", "run_ms", "load_ms"}] * 2
    assert {run["version"] for run in answer["runs"]} == {shown["version"]}
    assert answer["usage"]["units"] == sum(run["units"] for run in answer["runs"]) > 0


def test_curl_needs_no_content_type(fleet: LocalFleet) -> None:
    assert curl(fleet, "/v1/vfms/embed/infer", "-d", '{"inputs": ["x"]}')[0] == 200


def test_curl_to_an_unknown_vfm_is_404(fleet: LocalFleet) -> None:
    code, answer = post(fleet, "/v1/vfms/nobody/infer", {"inputs": ["x"]})
    assert (code, answer["error"]["code"]) == (404, "unknown_vfm")
    assert "fmplex vfms" in answer["error"]["message"]
    assert curl(fleet, "/v1/nothing")[1]["error"]["code"] == "no_route"
    assert curl(fleet, "/v1/embeddings")[0] == 405


def test_curl_with_a_wrong_body_is_422(fleet: LocalFleet) -> None:
    code, answer = post(fleet, "/v1/vfms/embed/infer", {"inputs": ["fine", ""]})
    assert (code, answer["error"]["field"]) == (422, "inputs.1")
    code, answer = curl(fleet, "/v1/vfms/embed/infer", "-d", '{"inputs": ["x"')
    assert code == 422
    assert "JSON" in answer["error"]["message"]


def test_curl_with_too_large_a_body_is_413(fleet: LocalFleet) -> None:
    body = json.dumps({"inputs": ["x" * 100_000] * 50}).encode()
    code, answer = curl(fleet, "/v1/vfms/embed/infer", "--data-binary", "@-", stdin=body)
    assert (code, answer["error"]["code"]) == (413, "too_large")
    chunked = ("-H", "transfer-encoding: chunked", "--data-binary", "@-")
    code, answer = curl(fleet, "/v1/vfms/embed/infer", *chunked, stdin=body)
    assert (code, answer["error"]["code"]) == (413, "too_large")
    assert "4194304" in answer["error"]["message"]


def test_health_and_readiness_are_told(fleet: LocalFleet) -> None:
    assert curl(fleet, "/healthz") == (200, {"status": "ok"})
    assert curl(fleet, "/readyz") == (200, {"status": "ready", "workers": {"minilm": 1}})


def test_metrics_count_every_job(fleet: LocalFleet, http: httpx.Client) -> None:
    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(http.get("/metrics").text)
        samples = [s for family in families for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    # A vFM of its own: what others were sent a moment ago may not be counted yet, workers speak once a second.
    spec = {"name": "counted", "backbone": "minilm", "head": {"kind": "embedding"}}
    assert http.post("/v1/vfms", json={"spec": spec}).is_success
    asked = value("fmplex_gateway_requests_total", route="/v1/vfms/{name}/infer", status="200")
    assert http.post("/v1/vfms/counted/infer", json={"inputs": list(TEXTS)}).is_success
    assert http.post("/v1/vfms/counted/infer", json={"inputs": ["word " * 300]}).status_code == 422

    def counted() -> list[float]:
        return [value("fmplex_vfm_jobs_total", vfm="counted", outcome=outcome) for outcome in ("done", "failed")]

    wait_until(lambda: counted() == [len(TEXTS), 1], "all jobs are counted, the refusal too")
    assert value("fmplex_gateway_requests_total", route="/v1/vfms/{name}/infer", status="200") == asked + 1
    assert value("fmplex_worker_busy_seconds_total") > 0
    for what in ("latency", "queue_wait"):
        assert value(f"fmplex_vfm_{what}_seconds_bucket", vfm="counted", le="+Inf") == len(TEXTS) + 1
    assert http.delete("/v1/vfms/counted").is_success


def test_the_documentation_is_there(http: httpx.Client) -> None:
    assert http.get("/docs").is_success
    assert "/v1/vfms/{name}/infer" in http.get("/openapi.json").json()["paths"]


# --- cut off ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "reset", "half closed", "chunked"])
def test_a_body_cut_off_half_way_leaves_the_gateway_healthy(fleet: LocalFleet, http: httpx.Client, how: str) -> None:
    log = fleet.data / "gateway.log"
    before = len(log.read_text())
    url = urlsplit(fleet.gateway_url)
    for _ in range(20):
        with socket.create_connection((url.hostname, url.port), timeout=30) as s:
            framing = (
                b"transfer-encoding: chunked\r\n\r\n100\r\n" if how == "chunked" else b"content-length: 100\r\n\r\n"
            )
            s.sendall(b"POST /v1/vfms/embed/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + framing)
            s.sendall(b'{"inputs": ["half a te')
            if how == "reset":
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "half closed":
                s.shutdown(socket.SHUT_WR)
    assert http.get("/healthz").status_code == 200
    assert http.post("/v1/vfms/embed/infer", json={"inputs": ["x"]}).status_code == 200
    assert "Traceback" not in log.read_text()[before:]


# --- msgpack ---------------------------------------------------------------------------------------------------------


def tensor(rows: int, width: int = HIDDEN, seed: int = 0) -> Tensor:
    return Tensor.of(np.random.default_rng(seed).normal(0, 0.05, (rows, width)).astype(np.float32))


def send(http: httpx.Client, vfm: str, content: bytes) -> httpx.Response:
    return http.post(f"/v1/vfms/{vfm}/infer", content=content, headers=MSGPACK)


def test_tensors_go_in_and_out_as_msgpack(http: httpx.Client) -> None:
    response = send(http, "raw", packb({"inputs": [{"inputs_embeds": tensor(7)}, "hello"]}))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/msgpack"
    features = [output["features"] for output in unpackb(response.content)["outputs"]]
    assert [(f.dtype, f.shape) for f in features] == [("float32", (7, HIDDEN)), ("float32", (3, HIDDEN))]
    assert np.isfinite(features[0].numpy()).all()
    in_json = http.post("/v1/vfms/raw/infer", json={"inputs": ["hello"]}).json()["outputs"][0]["features"]
    assert difference(features[1], in_json) <= 1e-5


def test_what_a_tensor_gives_depends_on_it_alone(http: httpx.Client) -> None:
    def ask(*seeds: int) -> list[Any]:
        body = {"inputs": [{"inputs_embeds": tensor(5, seed=seed)} for seed in seeds]}
        return [output["embedding"] for output in unpackb(send(http, "embed-lora", packb(body)).content)["outputs"]]

    together = ask(1, 2, 3, 1)
    assert all(difference(row, ask(seed)[0]) <= 1e-5 for row, seed in zip(together, (1, 2, 3, 1), strict=True))
    assert difference(together[0], together[1]) > 0.01


BAD_EXTENSION = msgpack.packb({"inputs": [{"inputs_embeds": msgpack.ExtType(7, b"x")}]})
SHORT_TENSOR = msgpack.packb(
    {"inputs": [{"inputs_embeds": msgpack.ExtType(1, msgpack.packb(["float32", [2, 384], b"x"]))}]}
)
NO_TENSOR = msgpack.packb({"inputs": [{"inputs_embeds": msgpack.ExtType(1, b"\xc1")}]})
WRONG_MSGPACK = {
    "empty": b"",
    "not msgpack": b"\xc1\xc1",
    "cut off": packb({"inputs": ["hello"]})[:-3],
    "two values": packb({"inputs": ["hello"]}) * 2,
    "JSON": b'{"inputs": ["hello"]}',
    "a list": packb(["hello"]),
    "unknown extension": BAD_EXTENSION,
    "a tensor with too few bytes": SHORT_TENSOR,
    "a tensor that is none": NO_TENSOR,
    "a key that is no text": packb({1: 2}),
    "half a character": packb({"inputs": ["hello"]}).replace(b"hello", b"hell\xff"),
    "a list that says it is huge": b"\x81\xa6inputs\xdd\xff\xff\xff\xff",
    "a thousand lists deep": b"\x81\xa6inputs" + b"\x91" * 5000 + b"\xc0",
}


@pytest.mark.parametrize("what", WRONG_MSGPACK)
def test_wrong_msgpack_is_422(http: httpx.Client, what: str) -> None:
    response = send(http, "embed", WRONG_MSGPACK[what])
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_input"
    assert error["message"]
    assert send(http, "embed", packb({"inputs": ["hello"]})).status_code == 200
