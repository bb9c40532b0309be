"""The choice of the settings in `benchmarks.peers`: one server, many settings, requests a second of each.

python -m benchmarks.rivals_http.tune mosec|litserve|infinity|fmplex [--requests N] [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.rivals_http import servers
from benchmarks.rivals_http.load import Clients
from benchmarks.rivals_http.servers import Server, Tuning
from benchmarks.rivals_http.texts import texts

_BATCHES = [
    Tuning(1),
    Tuning(2),
    Tuning(8, part=2),
    Tuning(16, part=2),
    *(Tuning(32, part=n) for n in (1, 2, 4, 8, 32)),
]
_ONNX = ("--engine", "optimum", "--pooling-method", "mean")
CANDIDATES: dict[str, list[Tuning]] = {
    "mosec": [*_BATCHES, Tuning(32, wait_ms=5, part=2)],
    "litserve": [*_BATCHES, Tuning(32, wait_ms=5, part=2)],
    "infinity": [
        Tuning(n, flags=(flag,))
        for flag in ("--bettertransformer", "--no-bettertransformer")
        for n in (2, 4, 8, 16, 32)
    ],
    "infinity_onnx": [Tuning(n, flags=_ONNX) for n in (1, 2, 3, 4, 8, 16)],
    "fmplex": [Tuning(n) for n in (320, 512, 640, 1024, 2048)],  # tokens a pass
}


def _open(name: str, tuning: Tuning, folder: Path) -> AbstractContextManager[Server]:
    if name == "fmplex":
        return servers.fmplex(folder / "fleet", 0, 1, tuning.batch)
    return servers.peer(name, tuning, 1, folder)


def main() -> None:
    """Try every setting of one server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CANDIDATES)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bodies = [servers.body("minilm", text) for text in texts(servers.model_folder(), args.requests)[0]]
    with tempfile.TemporaryDirectory() as folder, Clients() as clients:
        for number, tuning in enumerate(CANDIDATES[args.name]):
            logs = Path(folder) / str(number)
            logs.mkdir()
            with _open(args.name, tuning, logs) as server, server.turn():
                rounds = [_measure(server, clients, bodies) for _ in range(args.rounds + 1)][1:]
            rate, cpu_ms = (statistics.median(values) for values in zip(*rounds, strict=True))
            print(f"{args.name} {tuning}: {rate:.1f} requests/s, {cpu_ms:.1f} ms CPU each", flush=True)


def _measure(server: Server, clients: Clients, bodies: list[str]) -> tuple[float, float]:
    """Return requests a second, and milliseconds of CPU a request."""
    before = server.cpu_s()
    seconds = clients.round(server.port, servers.PATH, 32, bodies)["seconds"]
    return len(bodies) / seconds, 1000 * (server.cpu_s() - before) / len(bodies)


if __name__ == "__main__":
    main()
