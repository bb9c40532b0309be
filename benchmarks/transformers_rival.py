"""transformers' own ways to generate text, in a process of its own: see `benchmarks.generation`.

A line in, a line out: a way and its requests, as `[way, [[prompt, tokens], …]]`; then `[tokens, seconds]`.

    python -m benchmarks.transformers_rival MODEL_FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.decoder import PASS_UNITS, GenerationRequest

_STATIC = 8  # requests a batch


class Transformers:
    """The model as transformers runs it; each way returns the number of useful tokens."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model, self._paged = (
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train(False) for _ in range(2)
        )

    @torch.inference_mode()
    def one(self, wanted: list[GenerationRequest]) -> int:
        """Generate one text at a time."""
        return sum(self._generate([request]) for request in wanted)

    @torch.inference_mode()
    def static(self, wanted: list[GenerationRequest]) -> int:
        """Generate in padded batches as the requests come, each until its longest text ends."""
        return sum(self._generate(wanted[at : at + _STATIC]) for at in range(0, len(wanted), _STATIC))

    def _generate(self, batch: list[GenerationRequest]) -> int:
        longest = max(len(request.prompt) for request in batch)
        ids = torch.tensor([[0] * (longest - len(request.prompt)) + request.prompt for request in batch])
        seen = torch.tensor([[0] * (longest - len(request.prompt)) + [1] * len(request.prompt) for request in batch])
        tokens = max(request.tokens for request in batch)
        self._model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return sum(request.tokens for request in batch)

    def cb(self, wanted: list[GenerationRequest]) -> int:
        """Generate by continuous batching, with room for all requests at once."""
        room = sum(len(request.prompt) + request.tokens for request in wanted)
        config = ContinuousBatchingConfig(
            page_size=32,
            num_blocks=room // 32 + 2 * len(wanted),
            max_batch_tokens=PASS_UNITS,
            allow_block_sharing=False,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        manager = self._paged.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
        manager.start()
        try:
            for i, request in enumerate(wanted):
                manager.add_request(request.prompt, request_id=str(i), max_new_tokens=request.tokens)
            made = 0
            left = len(wanted)
            while left:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    left -= 1
                    made += len(result.generated_tokens)
        finally:
            manager.stop(block=True)
        return made


def serve(folder: Path) -> None:
    """Answer lines until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # for libraries that print
    rival = Transformers(folder)
    ways = {"one": rival.one, "static": rival.static, "cb": rival.cb}
    for line in sys.stdin:
        way, wanted = json.loads(line)
        begun = time.perf_counter()
        tokens = ways[way]([GenerationRequest(*request) for request in wanted])
        print(json.dumps([tokens, time.perf_counter() - begun]), file=out, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
