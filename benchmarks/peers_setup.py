"""Make the environments of the servers that `benchmarks.peers` compares with: one each, below .fmplex/peers.

    python -m benchmarks.peers_setup [mosec litserve infinity]

All versions are pinned, in `benchmarks/rivals_http/requirements-<peer>.txt`. What cannot be installed is said and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.rivals_http.servers import HOMES, ROOT, model_folder

REQUIREMENTS = Path(__file__).parent / "rivals_http"
PEERS = {"mosec": "mosec 0.9.8", "litserve": "litserve 0.2.19", "infinity": "infinity-emb 0.0.78"}


def install(peer: str) -> bool:
    """Install a peer unless its environment is complete and up to date. Returns whether it is there afterwards."""
    home, wanted = HOMES / peer, (REQUIREMENTS / f"requirements-{peer}.txt").read_text()
    stamp = home / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return True
    venv.create(home, clear=True, with_pip=True)
    # --no-deps: the files name everything, and a dependency that they do not name would not be pinned.
    command: list[str | Path] = [
        home / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    done = subprocess.run([*command, "-r", REQUIREMENTS / f"requirements-{peer}.txt"]).returncode
    if not done and peer == "infinity":
        export: list[str | Path] = [
            home / "bin" / "python",
            "-m",
            "benchmarks.rivals_http.export_onnx",
            model_folder(),
            home / "onnx",
        ]
        done = subprocess.run(export, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    if done:
        print(f"{peer} cannot be installed here (see above); the benchmark will leave it out", file=sys.stderr)
        return False
    stamp.write_text(wanted)
    return True


def main() -> int:
    """Install the peers that are named. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", default=list(PEERS), help=f"of {', '.join(PEERS)} (default: all)")
    done = [install(peer) for peer in parser.parse_args().peers]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
