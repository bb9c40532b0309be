"""mosec: its Rust front batches dynamically for one Python worker process. Runs in mosec's own environment.

python -m benchmarks.rivals_http.serve_mosec --port N
"""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker

from benchmarks.rivals_http.minilm import MiniLM, answer, tuning


class Embed(Worker):  # type: ignore[misc]  # not installed beside FMplex
    """Requests come decoded from JSON; `forward` sees one batch."""

    def __init__(self) -> None:
        self._model = MiniLM()

    def forward(self, data: Any) -> Any:
        """Embed one batch; see `mosec.Worker`."""
        if isinstance(data, dict):  # without batching mosec gives one request, not a list of one
            return answer(data["model"], self._model.encode([data["input"]])[0])
        vectors = self._model.encode([request["input"] for request in data])
        return [answer(request["model"], vector) for request, vector in zip(data, vectors, strict=True)]


if __name__ == "__main__":
    batch, wait_s = tuning()
    server = Server()
    server.append_worker(
        Embed, num=1, max_batch_size=batch, max_wait_time=int(wait_s * 1000), timeout=60, route="/v1/embeddings"
    )
    server.run()
