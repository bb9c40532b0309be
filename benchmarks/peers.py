"""MiniLM embeddings over HTTP: FMplex against mosec, infinity and LitServe, all with as many torch threads.

32 closed-loop clients (one process, the same for all) send one text a request, of lognormal length. All have the settings that
`benchmarks.rivals_http.tune` found best, and before anything is timed the peers must give FMplex's vectors. `infinity` is
its torch engine with BetterTransformer (no padding), `infinity_onnx` its ONNX Runtime engine.
`fmplex_plain` is one vFM, `fmplex_loras` the same requests spread over 16 vFMs with a LoRA each.

    python -m benchmarks.peers_setup            (once: the peers' environments, below .fmplex/peers)
    python -m benchmarks.peers [--json] [--rounds N] [--quick]
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Options, Report, cpu_name, interleave, main, ratio
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
    """A server, the requests it gets, and what each round measured."""

    server: Server
    bodies: list[str]
    clients: Clients
    samples: dict[str, list[float]] = field(default_factory=dict)

    def round(self) -> None:
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
        for name, value in measured.items():
            self.samples.setdefault(name, []).append(value)


def open_servers(stack: ExitStack, folder: Path, loras: int) -> dict[str, Server]:
    """All that can be started, FMplex first; says on stderr what is left out and why."""
    running = {"fmplex": stack.enter_context(servers.fmplex(folder / "fleet", loras, THREADS, PASS_UNITS))}
    for name in BEST:
        if not servers.installed(name):
            print(f"{name} left out: not installed; python -m benchmarks.peers_setup", file=sys.stderr)
            continue
        try:
            running[name] = stack.enter_context(servers.peer(name, BEST[name], THREADS, folder))
        except RuntimeError as e:
            print(f"{name} left out: {e}", file=sys.stderr)
    if len(running) == 1:
        raise SystemExit("no peer to compare with; python -m benchmarks.peers_setup")
    return running


def least_cosine(server: Server, reference: Server, sample: list[str]) -> float:
    """The smallest cosine of a text's two vectors. Raises `RuntimeError` when the servers do not serve the same model."""
    cosines = []
    with server.turn():
        for text in sample:
            a, b = (np.array(servers.embed(s.port, "minilm", text)) for s in (server, reference))
            cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    if min(cosines) <= 0.999:
        raise RuntimeError(f"{server.name} gives other vectors than {reference.name}: cosine {min(cosines):.4f}")
    return min(cosines)


def variants_of(running: dict[str, Server], inputs: list[str], loras: int, clients: Clients) -> dict[str, Variant]:
    plain = [servers.body("minilm", text) for text in inputs]
    rng = random.Random(0)
    spread = [servers.body(f"lora-{rng.randrange(loras)}", text) for text in inputs]
    made = {PLAIN: Variant(running["fmplex"], plain, clients), WITH_LORAS: Variant(running["fmplex"], spread, clients)}
    return made | {name: Variant(server, plain, clients) for name, server in running.items() if name != "fmplex"}


def ratios_of(variants: dict[str, Variant]) -> tuple[dict[str, float], str]:
    """FMplex over the best peer, and who that is: the one that it leads by least, compared round by round (a median of its
    own would depend on when the machine was busy)."""
    rates = {name: variant.samples["requests_per_s"] for name, variant in variants.items()}
    versus = {name: ratio(rates, PLAIN, name) for name in rates if name not in (PLAIN, WITH_LORAS)}
    best = min(versus, key=lambda name: versus[name])
    ratios = {
        "requests_per_s_vs_best_peer": versus[best],
        "requests_per_s_vs_best_peer_with_loras": ratio(rates, WITH_LORAS, best),
        **{f"requests_per_s_vs_{name}": value for name, value in versus.items()},
    }
    return ratios, best


def run(options: Options) -> Report:
    loras, count, rounds = (2, 64, 2) if options.quick else (LORAS, 400, 7)
    rounds = options.rounds or rounds
    inputs, lengths = texts(servers.model_folder(), count)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running = open_servers(stack, Path(folder), loras)
        cosines = {n: least_cosine(s, running["fmplex"], inputs[:8]) for n, s in running.items() if n != "fmplex"}
        variants = variants_of(running, inputs, loras, stack.enter_context(Clients()))
        interleave({name: variant.round for name, variant in variants.items()}, rounds)
    for variant in variants.values():  # the warm-up round
        variant.samples = {name: values[1:] for name, values in variant.samples.items()}
    ratios, best = ratios_of(variants)
    config = {
        "clients": CLIENTS,
        "requests": count,
        "rounds": rounds,
        "torch_threads": THREADS,
        "torch": torch.__version__,
        "tokens": {"sum": sum(lengths), "median": statistics.median(lengths), "longest": max(lengths)},
        "loras": loras,
        "pass_units": PASS_UNITS,
        "best_peer": best,
        "peers": {
            name: {"version": PEERS[name.partition("_")[0]], "tuning": asdict(BEST[name]), "least_cosine": cosine}
            for name, cosine in cosines.items()
        },
        "goal": "requests_per_s_vs_best_peer >= 1.2, requests_per_s_vs_best_peer_with_loras >= 1.0",
    }  # fmt: skip
    samples = {f"{name}_{what}": v for name, variant in variants.items() for what, v in variant.samples.items()}
    return Report("peers", ratios, samples, config, cpu_name())


if __name__ == "__main__":
    main(run, __doc__ or "")
