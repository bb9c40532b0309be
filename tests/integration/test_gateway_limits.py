"""What one client may do to a gateway: heads and bodies that do not come, junk, large uploads. One process, without a broker."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fmplex_broker.packages.archive import MEDIA_TYPE
from tests.integration.archives import archive
from tests.integration.shell import clean_environment
from tests.integration.test_gateway_process import BACKBONE, command
from tests.support.fleets import status, write_fleet
from tests.support.waiting import wait_until

MB = 1 << 20
SOON_S = 30.0  # three times what a head may take


class Gateway:
    """The process, and how to reach it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = psutil.Process(process.pid)
        self.port = port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def most_bytes(self) -> int:
        """Most memory that the process has ever had."""
        [kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(kib) << 10

    @property
    def clients(self) -> int:
        return sum(c.status == psutil.CONN_ESTABLISHED for c in self.process.net_connections("tcp"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    place = tmp_path_factory.mktemp("gateway")
    config = write_fleet(place / "fleet.toml", BACKBONE, artifacts=str(place / "store"))
    with socket.create_server(("127.0.0.1", 0)) as listening, (place / "log").open("wb") as log:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            command(config, "--fd", listening.fileno()), pass_fds=[listening.fileno()], stdout=log, stderr=log,
            env=clean_environment(),
        )  # fmt: skip
    try:
        wait_until(lambda: status(f"http://127.0.0.1:{port}/healthz") == 200, "it serves")
        served = Gateway(process, port)
        yield served
        served.http.close()
        assert process.poll() is None, (place / "log").read_text()
        assert "Traceback" not in (place / "log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def posted(path: str, body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n".encode() + body


def answer(client: socket.socket) -> bytes:
    said = b""
    while part := client.recv(1 << 16):
        said += part
    return said


def test_memory_of_large_bodies_is_given_back(gateway: Gateway) -> None:
    """In the first test of the process: what others have left in its heap would hide what this leaves."""
    before = gateway.process.memory_info().rss
    body = json.dumps({"inputs": ["x" * 16_000] * 2000}).encode()
    for _ in range(3):
        assert gateway.http.post("/v1/vfms/v/infer", content=body).status_code == 503, "there is no broker"
    wait_until(lambda: gateway.process.memory_info().rss < before + 16 * MB, "the memory is given back", SOON_S)


def test_heads_and_bodies_that_do_not_come_are_not_waited_for(gateway: Gateway) -> None:
    """Both at a time: each takes the ten seconds that the gateway gives it."""
    heads = [gateway.connect() for _ in range(400)]
    for head in heads:
        head.sendall(b"POST /v1/vfms/v/infer HTTP/1.1\r\nhost: x\r\nx-more: ")
    assert gateway.http.get("/healthz").status_code == 200
    assert trickled(gateway).startswith(b"HTTP/1.1 408")
    wait_until(lambda: gateway.clients < 10, "they are gone", SOON_S)
    for head in heads:
        head.close()


def trickled(gateway: Gateway) -> bytes:
    """Send a body of which a byte comes every half second; return what it is answered."""
    stop = threading.Event()
    with gateway.connect() as client:
        client.sendall(posted("/v1/vfms/v/infer", b'{"inputs": [', length=1000))

        def trickle() -> None:
            while not stop.wait(0.5):
                client.sendall(b" ")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        client.settimeout(SOON_S)
        try:
            return client.recv(4096)
        finally:
            stop.set()
            trickling.join()


def test_who_has_closed_their_side_is_answered(gateway: Gateway) -> None:
    """The broker is away, so this takes a moment: the end of the client's side is seen before there is an answer."""
    for _ in range(5):
        with gateway.connect() as client:
            client.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            assert b" 503 " in answer(client)


def listed(item: str) -> str:
    """33 MB of it."""
    return "[" + ",".join([item] * (32_500_000 // (len(item) + 1))) + "]"


@pytest.mark.parametrize(
    ("path", "before", "item"),
    [
        ("/v1/chat/completions", '"model": "m", "messages": ', "0"),
        ("/v1/chat/completions", '"model": "m", "messages": ', "{}"),
        ("/v1/vfms/v/infer", '"inputs": ', "[]"),
        ("/v1/embeddings", '"model": "m", "input": ', '["x"]'),
    ],
)
def test_others_are_answered_while_33_mb_of_junk_are_read(gateway: Gateway, path: str, before: str, item: str) -> None:
    junk = f"{{{before}{listed(item)}}}".encode()
    memory, said, answered = gateway.most_bytes(), [], 0
    with gateway.connect() as client:
        client.sendall(posted(path, junk))
        reading = threading.Thread(target=lambda: said.append(answer(client)))
        reading.start()
        while not said:
            assert gateway.http.get("/healthz").status_code == 200
            answered += not said
            reading.join(0.005)  # a client in a hurry would leave the parser, which gives way, no processor
        reading.join()
    assert said[0].startswith(b"HTTP/1.1 4")
    assert len(said[0]) < 4096
    assert answered >= 10
    assert gateway.most_bytes() < memory + 64 * MB


def test_an_upload_of_250_mb_takes_no_more_memory_than_that(gateway: Gateway) -> None:
    """It is refused in the end, as there is no broker; but it has been checked and stored then."""
    memory = gateway.most_bytes()
    weight = b"base_model.model.encoder.layer.0.attention.self.query.lora_%s.weight"
    rows = 40_000
    header = {
        (weight % side).decode(): {"dtype": "F32", "shape": shape, "data_offsets": span}
        for side, shape, span in (
            (b"A", [rows, 784], [0, rows * 3136]),
            (b"B", [784, rows], [rows * 3136, 2 * rows * 3136]),
        )
    }
    raw = json.dumps(header).encode()
    tensors = len(raw).to_bytes(8, "little") + raw + bytes(2 * rows * 3136)
    spec = {"name": "large", "backbone": "m", "head": {"kind": "embedding"}}
    config = {"peft_type": "LORA", "r": rows, "lora_alpha": 1, "target_modules": ["query"]}
    blob = archive(
        ("vfm.json", json.dumps(spec).encode()),
        ("adapter/adapter_config.json", json.dumps(config).encode()),
        ("adapter/adapter_model.safetensors", tensors),
    )
    assert len(blob) > 250_000_000
    done = gateway.http.post("/v1/vfms", content=blob, headers={"Content-Type": MEDIA_TYPE})
    assert (done.status_code, done.json()["error"]["code"]) == (503, "broker_unavailable")
    assert gateway.most_bytes() < memory + 300 * MB
    wait_until(lambda: gateway.process.memory_info().rss < memory + 100 * MB, "the memory is given back", SOON_S)
