"""LitServe: FastAPI processes in front of one inference process, batching on. Runs in LitServe's own environment.

python -m benchmarks.rivals_http.serve_litserve --port N
"""

from __future__ import annotations

import argparse
from typing import Any

import litserve

from benchmarks.rivals_http.minilm import MiniLM, answer, tuning


class Embed(litserve.LitAPI):  # type: ignore[misc]
    """One text in, one vector out; LitServe makes the batches."""

    def setup(self, device: str) -> None:
        """Load the model; see `litserve.LitAPI`."""
        self._model = MiniLM()

    # Without the type: LitServe would have FastAPI look for fields called so.
    def decode_request(self, request) -> str:  # type: ignore[no-untyped-def]
        """Take the text out of a request."""
        text: str = request["input"]
        return text

    def batch(self, inputs: list[str]) -> list[str]:
        """Keep a batch a list of texts."""
        return inputs  # not LitServe's default, which would stack arrays

    def predict(self, x: list[str]) -> list[list[float]]:
        """Embed a batch."""
        return self._model.encode(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """Take a batch of vectors apart."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """Write the answer."""
        return answer("minilm", output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    batch, wait_s = tuning()
    api = Embed(max_batch_size=batch, batch_timeout=wait_s, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
