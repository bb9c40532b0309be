"""The light client needs none of the heavy packages."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = (
    "torch",
    "transformers",
    "fastapi",
    "numpy",
    "safetensors",
    "tokenizers",
    "peft",
    "psutil",
    "uvicorn",
    "matplotlib",
    "plotly",
)
PROGRAM = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'{name} is not installed here')
sys.meta_path.insert(0, Blocker())
import fmplex, fmplex.cli
with fmplex.Client('redis://127.0.0.1:1', retries=0) as direct, fmplex.Client('http://127.0.0.1:1', retries=0) as http:
    for client in (direct, http):
        try:
            client.infer('x', 'y')
        except fmplex.Unavailable as e:
            print(type(e).__name__)
print(fmplex.Tensor('float32', (2,), bytes(8)).tolist())
"""


def test_it_imports_and_works_without_them() -> None:
    program = f"BLOCKED = {BLOCKED!r}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BrokerUnavailable", "Unavailable", "[0.0,", "0.0]"]
