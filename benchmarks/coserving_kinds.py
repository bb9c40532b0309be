"""What the real part of `benchmarks.coserving` serves and trains: a small encoder, and a small decoder that generates."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from benchmarks.models import MINILM, texts
from benchmarks.openloop import latencies, poisson, saturated
from fmplex import AsyncClient, VfmSpec
from fmplex_broker.specs.fitting import FitSpec, LoraSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.fleet import locate_model
from fmplex_broker.specs.heads import Embedding, Generation
from fmplex_broker.streams.queue_client import QueueClient

_VOCABULARY = 30_522  # of MiniLM's tokenizer, which all of them have
_WORDS = (1000, 29_000)  # of it
_EPOCHS, _PATIENCE = 10_000, 200  # a training that ends when it is cancelled
_EXAMPLES = 96
_LORA = LoraSpec(r=8)


class Size(NamedTuple):
    """Width and layers of a model."""

    hidden: int
    layers: int


class Served(NamedTuple):
    """What requests saw, in seconds: `waits`, to replies or from token to token, each to be within `target`; `means`: the same,
    but of a text the mean of all its tokens; `firsts`: to replies, or to first tokens."""

    waits: list[float]
    means: list[float]
    firsts: list[float]
    target: float


class Site(Protocol):
    """Where requests are sent: straight to the broker, as a client or by its queues."""

    client: AsyncClient
    session: QueueClient


class Kind(Protocol):
    """A kind of requests and of training. `order`: what the API's `fit` and hyperparameters say of the training;
    `module`: which trains where it is `fmplex fit` that does."""

    name: str
    pass_units: int
    module: str
    slo: dict[str, int]
    order: dict[str, Any]

    def save(self, folder: Path, size: Size) -> Path:
        """Save a model with random weights."""

    def vfm(self, name: str, backbone: str) -> VfmSpec:
        """Return the vFM that is asked."""

    def examples(self) -> list[dict[str, str]]:
        """Return what is learnt."""

    def spec(self, model: Path, data: Path, out: Path) -> FitSpec | TextLoraSpec:
        """Return the same training as `fmplex fit` is told of it."""

    async def most(self, site: Site, vfm: str, jobs: int) -> float:
        """Return jobs, or tokens, a second if so many requests wait from the beginning."""

    async def serve(self, site: Site, vfm: str, rate: float, seconds: float, seed: int) -> Served:
        """Let requests come at random, for so many jobs, or tokens, a second; wait for all."""


def examples_file(kind: Kind, folder: Path) -> Path:
    """Write what is learnt as a file."""
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in kind.examples()))
    return path


class Encoder:
    """Embeddings of sentences; a head and a LoRA of it are trained."""

    name, pass_units, module = "encoder", 512, "fmplex_worker.tuning"

    def __init__(self) -> None:
        self.slo = {"latency_ms": 1000}
        self.order = {
            "head": "classification", "lora": _LORA, "epochs": _EPOCHS, "batch_size": 4, "patience": _PATIENCE,
        }  # fmt: skip

    def save(self, folder: Path, size: Size) -> Path:
        """Save a BERT."""
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=size.hidden, num_hidden_layers=size.layers, intermediate_size=4 * size.hidden, num_attention_heads=12
        )  # fmt: skip
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        AutoTokenizer.from_pretrained(locate_model(MINILM, Path())).save_pretrained(folder)
        return folder

    def vfm(self, name: str, backbone: str) -> VfmSpec:
        """Return an embedding vFM; see `Kind.vfm`."""
        return VfmSpec(name=name, backbone=backbone, head=Embedding())

    def examples(self) -> list[dict[str, str]]:
        """Return sentences with labels that nobody can guess; see `Kind.examples`."""
        return [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts(_EXAMPLES, seed=1))]

    def spec(self, model: Path, data: Path, out: Path) -> FitSpec:
        """Return a `FitSpec`; see `Kind.spec`."""
        return FitSpec(
            name="beside", data=data, backbone="beside", model=str(model), out=out, head="classification", lora=_LORA,
            epochs=_EPOCHS, batch_size=4, patience=_PATIENCE, threads=1,
        )  # fmt: skip

    async def most(self, site: Site, vfm: str, jobs: int) -> float:
        """Return jobs a second; see `Kind.most`."""
        return await saturated(site.client, [vfm], texts(256), jobs)

    async def serve(self, site: Site, vfm: str, rate: float, seconds: float, seed: int) -> Served:
        """Send sentences; see `Kind.serve`."""
        waits = await latencies(site.client, [vfm], poisson(rate, seconds, 1, texts(256), seed))
        return Served(waits, waits, waits, self.slo["latency_ms"] / 1000)


class Generator:
    """Texts of random tokens; a LoRA of them is trained."""

    name, pass_units, module = "generation", 128, "fmplex_worker.tuning.decoder"

    def __init__(self) -> None:
        self.slo = {"ttft_ms": 2000, "inter_token_ms": 200}
        self.order = {
            "head": "generation", "lora": _LORA, "epochs": _EPOCHS, "batch_size": 1, "patience": _PATIENCE,
        }  # fmt: skip

    def save(self, folder: Path, size: Size) -> Path:
        """Save a Llama; see `Kind.save`."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=_VOCABULARY, hidden_size=size.hidden, intermediate_size=(size.hidden * 11 // 4 + 15) // 16 * 16,
            num_hidden_layers=size.layers, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(locate_model(MINILM, Path()), model_max_length=512).save_pretrained(folder)
        return folder

    def vfm(self, name: str, backbone: str) -> VfmSpec:
        """Return a generating vFM; see `Kind.vfm`."""
        return VfmSpec(name=name, backbone=backbone, head=Generation())

    def examples(self) -> list[dict[str, str]]:
        """Return sentences; see `Kind.examples`."""
        return [{"text": text} for text in texts(_EXAMPLES, seed=1)]

    def spec(self, model: Path, data: Path, out: Path) -> TextLoraSpec:
        """Return a `TextLoraSpec`; see `Kind.spec`."""
        return TextLoraSpec(
            name="beside", data=data, out=out, backbone="beside", model=str(model), lora=_LORA, epochs=_EPOCHS,
            batch_size=1, patience=_PATIENCE, threads=1,
        )  # fmt: skip

    async def most(self, site: Site, vfm: str, jobs: int) -> float:
        """Return tokens a second; see `Kind.most`."""
        drawn = _requests(jobs, 0)
        begun = time.perf_counter()
        await asyncio.gather(*(site.client.infer(vfm, {"input_ids": ids}, **_params(n)) for ids, n in drawn))
        return sum(n for _, n in drawn) / (time.perf_counter() - begun)

    async def serve(self, site: Site, vfm: str, rate: float, seconds: float, seed: int) -> Served:
        """Read along how texts come; see `Kind.serve`."""
        rng = np.random.default_rng(seed)
        mean = float(np.mean([n for _, n in _requests(64, 0)]))
        times = np.cumsum(rng.exponential(mean / rate, 1 + int(4 * rate * seconds / mean)))
        due = [float(t) for t in times if t < seconds] or [0.0]
        served = Served([], [], [], self.slo["inter_token_ms"] / 1000)
        drawn = _requests(len(due), seed)
        await asyncio.gather(*(_read(site.session, vfm, at, *one, served) for at, one in zip(due, drawn, strict=True)))
        return served


async def _read(session: QueueClient, vfm: str, due: float, ids: list[int], tokens: int, served: Served) -> None:
    """Send a request when it is due, and note when its tokens come."""
    await asyncio.sleep(due)
    begun = last = time.perf_counter()
    gaps: list[float] = []
    pending = (await session.submit(vfm, [{"input_ids": ids}], {**_params(tokens), "stream": True}))[0]
    first = True
    async for delta in pending.stream():
        now, count = time.perf_counter(), max(1, delta.tokens)
        if first:
            served.firsts.append(now - begun)
            first = False
        else:
            gaps += [(now - last) / count] * count
        last = now
    assert (await pending.result()).error is None
    served.waits.extend(gaps)
    served.means.append(sum(gaps) / max(1, len(gaps)))


def _requests(count: int, seed: int) -> Sequence[tuple[list[int], int]]:
    """Draw prompts of 8 to 64 tokens, and how many tokens of text each is to get."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(*_WORDS, int(rng.integers(8, 65))).tolist(), int(rng.integers(16, 49))) for _ in range(count)]


def _params(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
