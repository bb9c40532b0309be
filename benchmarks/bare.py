"""The least that serving embeddings can cost: a loop over the plain packed backbone, nothing around it.

A process of its own. For every line on stdin it runs all jobs, already tokenised, in passes of the fleet file's budget, and
prints the wall seconds and the processor seconds that took. The model is loaded as the worker loads it.

    python -m benchmarks.bare --config FLEET.toml --jobs N
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.models import texts
from fmplex_broker.specs.fleet import load_fleet
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.heads.pooling import pool
from fmplex_worker.packed.row import TokenSpan, pack, packed_order


def passes(jobs: list[Text], budget: int) -> Iterator[list[Text]]:
    """Yield passes of jobs in order, as many as the budget takes; within a pass sorted by length."""
    begun = units = 0
    for at, text in enumerate(jobs):
        if units + text.tokens > budget and units:
            yield _sorted(jobs[begun:at])
            begun, units = at, 0
        units += text.tokens
    yield _sorted(jobs[begun:])


def _sorted(jobs: list[Text]) -> list[Text]:
    return [jobs[i] for i in packed_order([TokenSpan(text.tokens, None) for text in jobs])]


@torch.inference_mode()
def loop(backbone: Backbone, jobs: list[Text]) -> None:
    """Run all jobs, up to their normalised mean vectors."""
    for texts_ in passes(jobs, backbone.spec.pass_units):
        row = pack([TokenSpan(text.tokens, None) for text in texts_], backbone.device, None)
        hidden = backbone.encode(row, texts_)
        functional.normalize(pool(hidden, row.starts, row.lengths, ["mean"] * len(texts_)), dim=1).numpy()


def serve(config: Path, count: int) -> None:
    """Load the model and the jobs, and run them for every line on stdin."""
    spec = load_fleet(config).find(None)
    torch.set_num_threads(spec.worker.threads or 1)
    backbone = load_backbone(spec, "cpu")
    jobs = backbone.tokenizer.encode(texts(count))
    for _ in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        loop(backbone, jobs)
        print(time.perf_counter() - begun, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    args = parser.parse_args()
    serve(args.config, args.jobs)
