"""Tokens a second of generated text: FMplex's worker against transformers' own ways with the same model.

24 requests of mixed lengths come at once. FMplex: a real worker behind the broker. `cb`: transformers' continuous batching
(block sharing off, room for all requests at once); `static`: its `generate` in padded batches of 8 as the requests come, each
until its longest text ends; `one`: its `generate`, one request at a time. Every process has the same core, one awake at a time.
The model: a Llama of about 50 M random weights. Texts end after the number of tokens that was asked for, whatever they say.

`ratios`: tokens a second over those of each (short prompts: 8 to 128 tokens, long: 512 to 1,024; without either name: the lower
of both); `lora8_step_over_plain`: the time of a decoding pass of 8 rows with 8 LoRAs (r16, all linears) over one without.
`samples` has TTFT and inter-token latencies too, with the same requests spread out over the time in which the worker can do them
twice.

    python -m benchmarks.generation [--json] [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import psutil
import torch
import uvloop
from fmplex_broker.specs.vfm import VfmSpec
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Options, Report, cpu_name, main, ratio
from benchmarks.models import MINILM
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, make_package
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec, locate_model
from fmplex_broker.specs.heads import Generation
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.protocol import Work

_VOCABULARY = 30_522  # of the tokenizer that is at hand
_PASS_UNITS = 256
_STATIC = 8  # requests a batch
_ADAPTERS, _STEPS = 8, 40
LENGTHS = {"short": (8, 128), "long": (512, 1024)}
_TEXT = (16, 64)


@dataclass(frozen=True)
class Ask:
    """One request: token ids, and how many tokens of text."""

    prompt: list[int]
    tokens: int


def asks(kind: str, count: int, seed: int = 0) -> list[Ask]:
    rng = np.random.default_rng(seed)
    low, high = LENGTHS[kind]
    lengths, texts = rng.integers(low, high + 1, count), rng.integers(_TEXT[0], _TEXT[1] + 1, count)
    return [
        Ask(rng.integers(1000, _VOCABULARY - 1000, n).tolist(), int(m)) for n, m in zip(lengths, texts, strict=True)
    ]


def save_llama(folder: Path) -> Path:
    """About 50 M random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate_model(MINILM, Path()), model_max_length=2048).save_pretrained(folder)
    return folder


def save_lora(model: Path, folder: Path, seed: int) -> Path:
    """A LoRA of r16 on all linears, as PEFT saves it, that changes the outputs."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


# ---- transformers, in a process of its own ----


class Transformers:
    """The model as transformers runs it; each way gives the number of useful tokens."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
        self._paged = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def one(self, wanted: list[Ask]) -> int:
        return sum(self._generate([ask]) for ask in wanted)

    @torch.inference_mode()
    def static(self, wanted: list[Ask]) -> int:
        return sum(self._generate(wanted[at : at + _STATIC]) for at in range(0, len(wanted), _STATIC))

    def _generate(self, batch: list[Ask]) -> int:
        longest = max(len(ask.prompt) for ask in batch)
        ids = torch.tensor([[0] * (longest - len(ask.prompt)) + ask.prompt for ask in batch])
        seen = torch.tensor([[0] * (longest - len(ask.prompt)) + [1] * len(ask.prompt) for ask in batch])
        tokens = max(ask.tokens for ask in batch)
        self._model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return sum(ask.tokens for ask in batch)

    def cb(self, wanted: list[Ask]) -> int:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        room = sum(len(ask.prompt) + ask.tokens for ask in wanted)
        config = ContinuousBatchingConfig(
            page_size=32,
            num_blocks=room // 32 + 2 * len(wanted),
            max_batch_tokens=_PASS_UNITS,
            allow_block_sharing=False,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        manager = self._paged.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
        manager.start()
        try:
            for i, ask in enumerate(wanted):
                manager.add_request(ask.prompt, request_id=str(i), max_new_tokens=ask.tokens)
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


def rival(folder: str) -> None:
    """A line in, a line out: a way and its requests; tokens and seconds."""
    out = sys.__stdout__  # `main` has put stderr in its place, for libraries that print
    served = Transformers(Path(folder))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        way, wanted = json.loads(line)
        begun = time.perf_counter()
        tokens = getattr(served, way)([Ask(*ask) for ask in wanted])
        print(json.dumps([tokens, time.perf_counter() - begun]), file=out, flush=True)


class Rival:
    """The process that `rival` runs in."""

    def __init__(self, folder: Path, core: int) -> None:
        command = [sys.executable, "-m", "benchmarks.generation", "--rival", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        while self._process.stdout.readline().strip() != "ready":
            if self._process.poll() is not None:
                raise RuntimeError("the rival did not start")
        pin(self._process.pid, [core])

    def run(self, way: str, wanted: list[Ask]) -> float:
        """Tokens a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([way, [[ask.prompt, ask.tokens] for ask in wanted]]), file=self._process.stdin, flush=True)
        tokens, seconds = json.loads(self._process.stdout.readline())
        assert tokens == sum(ask.tokens for ask in wanted), f"{way} gave {tokens} tokens"
        return float(tokens / seconds)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


# ---- FMplex ----


async def together(session: QueueClient, vfm: str, wanted: list[Ask]) -> float:
    """Tokens a second of requests that come at once."""
    begun = time.perf_counter()
    await asyncio.gather(*(_whole(session, vfm, ask) for ask in wanted))
    return sum(ask.tokens for ask in wanted) / (time.perf_counter() - begun)


async def _whole(session: QueueClient, vfm: str, ask: Ask) -> None:
    pending = await session.submit(vfm, [{"input_ids": ask.prompt}], params(ask))
    reply = await pending[0].result()
    assert reply.error is None, reply.error
    assert reply.output["completion_tokens"] == ask.tokens


def params(ask: Ask) -> dict[str, object]:
    return {"max_tokens": ask.tokens, "ignore_eos": True, "temperature": 0}


async def spread_out(
    session: QueueClient, vfm: str, wanted: list[Ask], seconds: float
) -> tuple[list[float], list[float]]:
    """Times to first tokens, and from each word of a text to the next, of requests that come evenly over so many seconds."""
    first: list[float] = []
    gaps: list[float] = []

    async def one(ask: Ask, due: float) -> None:
        await asyncio.sleep(due)
        begun = last = time.perf_counter()
        pending = (await session.submit(vfm, [{"input_ids": ask.prompt}], params(ask) | {"stream": True}))[0]
        told = 0
        async for delta in pending.stream():
            now = time.perf_counter()
            if told:
                gaps.extend([(now - last) / max(delta.tokens, 1)] * max(delta.tokens, 1))
            else:
                first.append(now - begun)
            told, last = told + delta.tokens, now
        assert (await pending.result()).error is None

    await asyncio.gather(*(one(ask, seconds * i / len(wanted)) for i, ask in enumerate(wanted)))
    return first, gaps


# ---- LoRAs in a decoding pass ----


class Steps:
    """Decoding passes of 8 rows, with an adapter each or none."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        spec = BackboneSpec(name="steps", model=str(folder), pass_units=_PASS_UNITS)
        self._engine = open_engine(spec, WorkerSpec(device="cpu"))
        self._digests = {"plain": [self._load("plain", None)] * _ADAPTERS}
        self._digests["lora8"] = [
            self._load(f"lora{i}", save_lora(folder, folder.parent / f"adapter{i}", i)) for i in range(_ADAPTERS)
        ]

    def _load(self, name: str, adapter: Path | None) -> str:
        files = {}
        if adapter is not None:
            files = {
                ADAPTER_CONFIG: (adapter / "adapter_config.json").read_bytes(),
                ADAPTER_WEIGHTS: (adapter / "adapter_model.safetensors").read_bytes(),
            }
        package = make_package(VfmSpec(name=name, backbone="steps", head=Generation()), files)
        self._engine.load(self._engine.fit(package))
        return package.digest

    def seconds(self, which: str) -> float:
        """Of the median decoding pass."""
        rows = [(digest, Request({"input_ids": ask.prompt}, params(Ask([], _STEPS + 2)))) for digest, ask in
                zip(self._digests[which], asks("short", _ADAPTERS), strict=True)]  # fmt: skip
        jobs = self._engine.prepare(rows)
        self._engine.step([Work(job, sum(p.tokens for p in job.pieces())) for job in jobs])  # type: ignore[union-attr]
        took = [self._engine.step([Work(job, 1) for job in jobs]).seconds for _ in range(_STEPS)]  # type: ignore[arg-type]
        for job in jobs:
            self._engine.drop(job)  # type: ignore[arg-type]
        return statistics.median(took)


# ---- all of it ----


async def measure(options: Options, folder: Path) -> Report:
    rounds, count = (1, 4) if options.quick else (options.rounds or 3, 24)
    kinds = {"short": rounds, "long": max(1, rounds - 1) if not options.quick else 1}
    model = save_llama(folder / "model")
    *rest, core = cores()
    rest = rest or [core]
    samples: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    steps = Steps(model)
    for number in range(-1, 2 * rounds + 1):
        for which in ("plain", "lora8") if number % 2 else ("lora8", "plain"):
            seconds = steps.seconds(which)
            if number >= 0:
                add(f"step_{which}_s", seconds)
    del steps

    with EmbeddedServer(folder / "broker") as server, Workers(folder, server.url) as workers:
        session = QueueClient.connect(server.url)
        workers.start(fleet_file(folder, "llama", model, pass_units=_PASS_UNITS, threads=1))
        await workers.ready(session.registry)
        async with open_client(server.url, folder) as client:
            await deploy(client, [VfmSpec(name="writer", backbone="llama", head=Generation())])
        await workers.settled()
        workers.pin([core])
        workers.freeze()
        other = Rival(model, core)
        pin(server.pid, rest)
        pin(psutil.Process().pid, rest)
        try:
            for kind, times in kinds.items():
                for number in range(-1, times):
                    wanted = asks(kind, count if number >= 0 else 2, max(number, 0))
                    ways = ["fmplex", "cb", "static", "one"]
                    for way in ways if number % 2 == 0 else ways[::-1]:
                        if way != "fmplex":
                            speed = await asyncio.to_thread(other.run, way, wanted)
                        else:
                            workers.thaw()
                            speed = await together(session, "writer", wanted)
                            if number >= 0:
                                seconds = 2 * sum(ask.tokens for ask in wanted) / speed
                                first, gaps = await spread_out(
                                    session, "writer", asks(kind, count, 100 + number), seconds
                                )
                                for name, values in (("ttft", first), ("inter_token", gaps)):
                                    for q in (50, 99):
                                        add(f"{kind}_{name}_p{q}_s", float(np.percentile(values, q)))
                            workers.freeze()
                        if number >= 0:
                            add(f"{kind}_{way}_tokens_per_s", speed)
        finally:
            other.stop()
            await session.close()
    ratios = {
        f"tokens_s_over_{name}_{kind}": ratio(samples, f"{kind}_fmplex_tokens_per_s", f"{kind}_{way}_tokens_per_s")
        for kind in kinds
        for way, name in (("cb", "transformers_cb"), ("static", "static"), ("one", "one"))
    }
    ratios["tokens_s_over_static"] = min(ratios[f"tokens_s_over_static_{kind}"] for kind in kinds)
    ratios["lora8_step_over_plain"] = ratio(samples, "step_lora8_s", "step_plain_s")
    config = {
        "requests": count,
        "prompts": LENGTHS,
        "texts": _TEXT,
        "pass_units": _PASS_UNITS,
        "rounds": kinds,
        "threads": 1,
    }
    return Report("generation", ratios, samples, config, f"{cpu_name()}, torch {torch.__version__}")


def run(options: Options) -> Report:
    if options.more.rival:
        rival(options.more.rival)
        sys.exit(0)
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(measure(options, Path(folder)))


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rival", help=argparse.SUPPRESS)


if __name__ == "__main__":
    main(run, __doc__ or "", _more)
