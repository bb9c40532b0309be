"""infinity's own command line, its ONNX runtime held to the benchmark's threads (infinity has no flag for it).

Runs in infinity's own environment: python -m benchmarks.rivals_http.serve_infinity v2 …
"""

from __future__ import annotations

import os
from typing import Any

import onnxruntime
from infinity_emb.cli import cli

_open = onnxruntime.InferenceSession.__init__


def _open_with_threads(session: Any, path: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
    options = sess_options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
    _open(session, path, options, *args, **kwargs)


if __name__ == "__main__":
    onnxruntime.InferenceSession.__init__ = _open_with_threads
    cli()
