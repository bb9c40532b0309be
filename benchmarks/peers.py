"""MiniLM embeddings over HTTP: FMplex against mosec, infinity and LitServe, all with as many torch threads.

32 closed-loop clients (one process, the same for all) send one text a request, of lognormal length. All have the settings that
`benchmarks.rivals_http.tune` found best, and before anything is timed the peers must give FMplex's vectors. `infinity` is
its torch engine with BetterTransformer (no padding), `infinity_onnx` its ONNX Runtime engine.
`fmplex_plain` is one vFM, `fmplex_loras` the same requests spread over 16 vFMs with a LoRA each.

    python -m benchmarks.peers_setup            (once: the peers' environments, below .fmplex/peers)
    python -m benchmarks.peers [--json] [--rounds N] [--quick]         (about five minutes; peers that are missing are left out)
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Benchmark, Ratios, Report, interleave, main
from benchmarks.peers_setup import PEERS
from benchmarks.rivals_http import servers
from benchmarks.rivals_http.load import Clients
from benchmarks.rivals_http.servers import Server, Tuning
from benchmarks.rivals_http.texts import texts

THREADS, CLIENTS, LORAS, PASS_UNITS = 1, 32, 16, 1024
PLAIN, WITH_LORAS = "fmplex_plain", "fmplex_loras"
BEST = {
    "mosec": Tuning(32, part=2),
    "litserve": Tuning(32, part=4),
    "infinity": Tuning(32, flags=("--bettertransformer",)),
    "infinity_onnx": Tuning(2, flags=("--engine", "optimum", "--pooling-method", "mean")),
}


@dataclass
class Variant:
    """A server and the requests it gets."""

    server: Server
    bodies: list[str]
    clients: Clients

    def round(self, name: str) -> dict[str, float]:
        """Send all requests. Returns figures, each with the variant's name before it."""
        with self.server.turn():
            before = self.server.cpu_s()
            got = self.clients.round(self.server.port, servers.PATH, CLIENTS, self.bodies)
            cpu_s = self.server.cpu_s() - before
        p50, p99 = np.percentile(got["latencies"], (50, 99))
        measured = {
            "requests_per_s": len(self.bodies) / got["seconds"],
            "cpu_ms_per_request": 1000 * cpu_s / len(self.bodies),
            "p50_ms": 1000 * float(p50),
            "p99_ms": 1000 * float(p99),
        }
        return {f"{name}_{what}": value for what, value in measured.items()}


def open_servers(stack: ExitStack, folder: Path, loras: int) -> tuple[dict[str, Server], dict[str, str]]:
    """Start all that can be started, FMplex first. Returns them, and why others are left out."""
    running = {"fmplex": stack.enter_context(servers.fmplex(folder / "fleet", loras, THREADS, PASS_UNITS))}
    left_out: dict[str, str] = {}
    for name in BEST:
        if not servers.installed(name):
            left_out[name] = "not installed; python -m benchmarks.peers_setup"
            continue
        try:
            running[name] = stack.enter_context(servers.peer(name, BEST[name], THREADS, folder))
        except RuntimeError as e:
            left_out[name] = str(e)
    for name, why in left_out.items():
        print(f"{name} left out: {why}", file=sys.stderr)
    return running, left_out


def least_cosine(server: Server, reference: Server, sample: list[str]) -> float:
    """Return the smallest cosine of a text's two vectors. Raises `RuntimeError` when the servers do not serve the same model."""
    cosines = []
    with server.turn():
        for text in sample:
            a, b = (np.array(servers.embed(s.port, "minilm", text)) for s in (server, reference))
            cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    if min(cosines) <= 0.999:
        raise RuntimeError(f"{server.name} gives other vectors than {reference.name}: cosine {min(cosines):.4f}")
    return min(cosines)


def variants_of(running: dict[str, Server], inputs: list[str], loras: int, clients: Clients) -> dict[str, Variant]:
    """Make the variants: FMplex without and with LoRAs, and each peer."""
    plain = [servers.body("minilm", text) for text in inputs]
    rng = random.Random(0)
    spread = [servers.body(f"lora-{rng.randrange(loras)}", text) for text in inputs]
    made = {PLAIN: Variant(running["fmplex"], plain, clients), WITH_LORAS: Variant(running["fmplex"], spread, clients)}
    return made | {name: Variant(server, plain, clients) for name, server in running.items() if name != "fmplex"}


def ratios(report: Report) -> Ratios:
    """Compare FMplex to every peer and to the best one: that which it leads by least, compared round by round (a median of its
    own would depend on when the machine was busy). Without peers: FMplex with LoRAs to FMplex without."""
    versus = {
        name: report.ratio(f"{PLAIN}_requests_per_s", f"{name}_requests_per_s")
        for name in report.config.get("peers", ())
    }
    out = {f"requests_per_s_vs_{name}": values for name, values in versus.items()}
    if any(versus.values()):
        best = _best(versus)
        out["requests_per_s_vs_best_peer"] = versus[best]
        out["requests_per_s_vs_best_peer_with_loras"] = report.ratio(
            f"{WITH_LORAS}_requests_per_s", f"{best}_requests_per_s"
        )
    return out | {"loras_over_plain": report.ratio(f"{WITH_LORAS}_requests_per_s", f"{PLAIN}_requests_per_s")}


def _best(versus: Ratios) -> str:
    return min((name for name, values in versus.items() if values), key=lambda name: statistics.median(versus[name]))


def run(report: Report) -> None:
    """Start all servers, compare their vectors, and let them take turns."""
    loras, count = (2, 64) if report.options.quick else (LORAS, 400)
    inputs, lengths = texts(servers.model_folder(), count)
    report.config |= _config(loras, count, report.options.rounds, lengths)
    with tempfile.TemporaryDirectory(prefix="fmplex-peers-") as folder, ExitStack() as stack:
        running, report.config["left_out"] = open_servers(stack, Path(folder), loras)
        report.config["peers"] = {
            name: {
                "version": PEERS[name.partition("_")[0]],
                "tuning": asdict(BEST[name]),
                "least_cosine": least_cosine(server, running["fmplex"], inputs[:8]),
            }
            for name, server in running.items()
            if name != "fmplex"
        }
        variants = variants_of(running, inputs, loras, stack.enter_context(Clients()))
        turns = {name: partial(variant.round, name) for name, variant in variants.items()}
        interleave(report, turns, report.options.rounds)


def _config(loras: int, count: int, rounds: int, lengths: list[int]) -> dict[str, Any]:
    return {
        "clients": CLIENTS,
        "requests": count,
        "rounds": rounds,
        "torch_threads": THREADS,
        "torch": torch.__version__,
        "tokens": {"sum": sum(lengths), "median": statistics.median(lengths), "longest": max(lengths)},
        "loras": loras,
        "pass_units": PASS_UNITS,
        "goal": "requests_per_s_vs_best_peer >= 1.2, requests_per_s_vs_best_peer_with_loras >= 1.0",
    }


if __name__ == "__main__":
    main(Benchmark("peers", run, ratios, __doc__ or "", rounds=7))
