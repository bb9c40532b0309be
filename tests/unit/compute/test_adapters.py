"""PEFT folders: what is read, how the segments are applied, and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft_lora import LoraConfig
from fmplex_broker.wire.messages import Request
from fmplex_worker.adapters.loading import load_adapter
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.packed.grouping import group_from
from fmplex_worker.packed.segments import Adapter, Factors, Scale, Segments
from tests.support import tiny
from tests.support.hanging import within

CPU = torch.device("cpu")
QUERY, VALUE = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"


def read(bert: PackedEngine, folder: Path) -> Adapter:
    config, weights = (folder / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    return load_adapter(config.read_bytes(), weights.read_bytes(), bert._backbone, 1)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_prefix_of_a_task_class_is_understood(bert: PackedEngine, tmp_path: Path, prefix: str) -> None:
    """Patterns are matched against the name in the model that PEFT wrapped, prefix and all."""
    tensors = {**tiny.lora(prefix + QUERY), **tiny.lora(prefix + VALUE, rank=2)}
    folder = tiny.save_adapter(tmp_path, tensors, rank_pattern={f"^{prefix}{VALUE}": 2}, alpha_pattern={"value": 3})
    adapter = read(bert, folder)
    for module, rank, alpha in ((QUERY, 4, 8), (VALUE, 2, 3)):
        pair = adapter.updates[bert._backbone.targets[module].slot]
        assert isinstance(pair, Factors)
        a, b = (tensors[f"base_model.model.{prefix}{module}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(pair.down, a.t())
        torch.testing.assert_close(pair.up, b.t() * alpha / rank)
    assert sum(pair is not None for pair in adapter.updates) == 2
    assert adapter.nbytes == 4 * (4 + 2) * 2 * tiny.HIDDEN


@pytest.mark.parametrize(
    "module", ["a.b.query", "a.b2.query", "model.query_key", "query", "x.layers.11.v", "layers.1.v"]
)
@pytest.mark.parametrize(
    "patterns",
    [("query",), ("b.query",), (r".*\.b\d.query", "query"), (r"layers\.1.*",), ("^query",), ("^a.b", "v|key")],
)
def test_patterns_match_as_in_peft(module: str, patterns: tuple[str, ...]) -> None:
    config = LoraConfig(peft_type="LORA", r=7, lora_alpha=1, rank_pattern={p: i + 1 for i, p in enumerate(patterns)})
    assert config.rank(module) == (config.rank_pattern or {}).get(get_pattern_key(patterns, module), 7)


def test_a_pattern_that_never_ends_holds_up_nobody(bert: PackedEngine, tmp_path: Path) -> None:
    """Python's `re` would take longer than anybody waits, with the interpreter in its hands."""
    endless = {".?" * 60 + "x": 3, "(e|e)?" * 40 + "x": 3}
    with within(30):
        adapter = read(bert, tiny.save_adapter(tmp_path, tiny.lora(QUERY), rank_pattern=endless, alpha_pattern=endless))
    assert adapter.updates[bert._backbone.targets[QUERY].slot] is not None


def test_scaling() -> None:
    plain = LoraConfig(peft_type="LORA", r=4, lora_alpha=8)
    assert plain.scaling("q") == 2
    assert plain.model_copy(update={"use_rslora": True}).scaling("q") == 8 / math.sqrt(4)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_segments(data: st.DataObject) -> None:
    """Any adapters, ranks, missing layers and rows without an adapter, by segments and by the grouped kernel."""
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    rest = data.draw(st.integers(0, 3))
    ranks = [data.draw(st.sampled_from([0, 3, 8])) for _ in sizes]
    pairs = [Factors(torch.randn(r, 16).t(), torch.randn(r, 8)) if r else None for r in ranks]
    adapters = [Adapter(i + 1, (pair,)) for i, pair in enumerate(pairs)]
    x = torch.randn(1, sum(sizes) + rest, 16)
    want = torch.zeros(1, x.shape[1], 8)
    start = 0
    for size, pair in zip(sizes, pairs, strict=True):
        if pair is not None:
            want[0, start : start + size] = x[0, start : start + size] @ pair.down @ pair.up
        start += size
    for grouping in (None, 1):
        y = torch.zeros_like(want)
        Segments.of(adapters, sizes, x.shape[1], CPU, grouping).add(0, x, y)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_segments_out_of_place(data: st.DataObject) -> None:
    """With gradients: the same to the bit as in place, by segments and by the grouped kernel, LoRA and (IA)³, and nothing that
    went in is written; gradients are those of the same done row by row."""
    kinds = data.draw(st.lists(st.sampled_from(["lora", "ia3", "inputs", "none"]), min_size=1, max_size=4))
    grouping = data.draw(st.sampled_from([None, 1]))
    if grouping:
        kinds = ["lora"] * len(kinds)  # of one rank, or the kernel does not take them
    sizes = [data.draw(st.integers(1, 7)) for _ in kinds]
    learnt = [torch.randn(8, 16) for _ in kinds], [torch.randn(8, 8) for _ in kinds], torch.randn(1, sum(sizes) + 3, 16)
    for tensor in (*learnt[0], *learnt[1], learnt[2]):
        tensor.requires_grad_()
    downs, ups, x = learnt
    adapters = [
        {
            "lora": Adapter(i + 1, (Factors(downs[i].t(), ups[i]),)),
            "ia3": Adapter(i + 1, (Scale(ups[i][0]),)),
            "inputs": Adapter(i + 1, (None,), {0: downs[i][0]}),
            "none": Adapter(i + 1, (None,)),
        }[kind]
        for i, kind in enumerate(kinds)
    ]
    segments = Segments.of(adapters, sizes, x.shape[1], CPU, grouping)
    weight = torch.randn(8, 16)
    before = x.detach().clone()
    scaled = segments.scaled(0, x)
    y = scaled @ weight.t()
    plain = y.detach().clone()
    ours = segments.updated(0, scaled, y)
    with torch.no_grad():
        in_place = plain.clone()
        segments.add(0, segments.scaled(0, before), in_place)
    assert torch.equal(ours, in_place)
    assert torch.equal(y, plain)
    assert torch.equal(x, before)
    rows, start = [], 0
    for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        part = x[0, start : start + size]
        part = part * downs[i][0] if kind == "inputs" else part
        row = part @ weight.t()
        rows.append(row + part @ downs[i].t() @ ups[i] if kind == "lora" else row * ups[i][0] if kind == "ia3" else row)
        start += size
    theirs = torch.cat([*rows, x[0, start:] @ weight.t()]).unsqueeze(0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    some = torch.randn(ours.shape)
    inputs = [*downs, *ups, x]
    got, want = (torch.autograd.grad((out * some).sum(), inputs, allow_unused=True) for out in (ours, theirs))
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_rows_that_are_not_tokens_are_refused() -> None:
    segments = Segments.of([Adapter(1, (None,))], [4], 4, CPU, None)
    for shape in ((1, 5, 2), (2, 2, 2), (4, 2)):
        for apply in (segments.add, segments.updated):
            with pytest.raises(RuntimeError, match="packed row has 4 tokens"):
                apply(0, torch.zeros(shape), torch.zeros(shape))


def test_grouping_is_not_used_on_cpu() -> None:
    assert group_from(CPU, torch.float32, 32) is None


def test_grouped_pass_equals_segments(bert: PackedEngine, tmp_path: Path, monkeypatch: Any) -> None:
    digests = []
    for i in range(3):
        tensors = {name: t + i for name, t in {**tiny.lora(QUERY, 8), **tiny.lora(VALUE, 8)}.items()}
        digests.append(tiny.load(bert, tiny.FEATURES, adapter=tiny.save_adapter(tmp_path / f"{i}", tensors, r=8)))
    jobs = list(zip([*digests, tiny.load(bert, tiny.FEATURES)], tiny.ids(5, 9, 2, 4), strict=True))
    segments = tiny.features(bert, *jobs)
    monkeypatch.setattr(bert, "_group_from", 2)
    for ours, theirs in zip(tiny.features(bert, *jobs), segments, strict=True):
        assert tiny.relative(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["classifier"]}, "head.safetensors"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate"]}, "target_modules"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"monteclora_config": {"a": 1}}, "MonteCLoRA"),
        ({"use_next_years_idea": True}, "use_next_years_idea: this option is not known here"),
        ({"rank_pattern": {"(?=a)b": 3}}, "too complex"),
        ({"alpha_pattern": {"a{99}": 3}}, "too complex"),
        ({"rank_pattern": {"[": 3}}, "not a regular expression"),
        ({"r": 0}, "r: "),
        ({"lora_alpha": float("nan")}, "lora_alpha: "),
    ],
)
def test_option_is_refused(bert: PackedEngine, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    folder = tiny.save_adapter(tmp_path, tiny.lora(QUERY), **options)
    with pytest.raises(PackageRejected) as caught:
        read(bert, folder)
    assert says in caught.value.message
    assert caught.value.field == "adapter"


def test_options_that_change_nothing_are_taken(bert: PackedEngine, tmp_path: Path) -> None:
    harmless = dict.fromkeys(LoraConfig.harmless, "anything")
    read(bert, tiny.save_adapter(tmp_path, tiny.lora(QUERY), **harmless, init_lora_weights="gaussian", use_dora=False))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"peft_type": "LORA"}', "[" * 100_000, '{"a": 1}\ud800'])
def test_config_that_is_none(bert: PackedEngine, tmp_path: Path, text: str) -> None:
    folder = tiny.save_adapter(tmp_path, tiny.lora(QUERY))
    (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PackageRejected, match="is not a PEFT config"):
        read(bert, folder)


def _without(tensors: dict[str, torch.Tensor], ending: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if not name.endswith(ending)}


_A = f"base_model.model.{QUERY}.lora_A.weight"
_B = f"base_model.model.{QUERY}.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "changes no layer"),
        (_without(tiny.lora(QUERY), "lora_B.weight"), "has lora_A only"),
        (
            {**tiny.lora(QUERY), "base_model.model.classifier.weight": torch.ones(2, 2)},
            "put a head into head.safetensors",
        ),
        ({**tiny.lora(QUERY), "base_model.model.bert.embeddings.lora_embedding_A": torch.ones(2, 2)}, "embeddings"),
        ({**tiny.lora(QUERY), f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(2)}, "DoRA"),
        ({**tiny.lora(QUERY), f"base_model.model.{QUERY}.lora_B.bias": torch.ones(2)}, "not a LoRA weight"),
        ({**tiny.lora(QUERY), "strange": torch.ones(2)}, "'strange'"),
        ({**tiny.lora(QUERY), _A: torch.ones(4 * tiny.HIDDEN)}, "no pair [rank, in], [out, rank]"),
        ({**tiny.lora(QUERY), _A: torch.ones(3, tiny.HIDDEN)}, "no pair [rank, in], [out, rank]"),
        ({_A: torch.ones(0, tiny.HIDDEN), _B: torch.ones(tiny.HIDDEN, 0)}, "no pair"),
        (tiny.lora(QUERY, rank=3), "has rank 3, adapter_config.json says 4"),
        ({**tiny.lora(QUERY), _A: torch.full((4, tiny.HIDDEN), math.nan)}, "lora_A holds NaN"),
        ({**tiny.lora(QUERY), _B: torch.full((tiny.HIDDEN, 4), math.inf)}, "lora_B holds NaN or infinite"),
        ({**tiny.lora(QUERY), _A: torch.ones(4, tiny.HIDDEN, dtype=torch.int8)}, "is I8; save it as float32"),
    ],
)
def test_tensors_are_refused(bert: PackedEngine, tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    folder = tiny.save_adapter(tmp_path, tensors)
    with pytest.raises(PackageRejected) as caught:
        read(bert, folder)
    assert says in caught.value.message


def test_overflow_in_the_backbones_dtype(bert: PackedEngine, tmp_path: Path) -> None:
    tensors = {**tiny.lora(QUERY), _A: torch.full((4, tiny.HIDDEN), 1e300, dtype=torch.float64)}
    with pytest.raises(PackageRejected, match=r"as torch\.float32"):
        read(bert, tiny.save_adapter(tmp_path, tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_taken(bert: PackedEngine, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in tiny.lora(QUERY).items()}
    pair = read(bert, tiny.save_adapter(tmp_path, tensors)).updates[0]
    assert isinstance(pair, Factors)
    assert pair.up.dtype is torch.float32


def test_made_for_another_backbone(bert: PackedEngine, tmp_path: Path) -> None:
    wide = tiny.save_adapter(tmp_path / "wide", tiny.lora(QUERY, inputs=768, outputs=768))
    with pytest.raises(PackageRejected, match=r"another backbone: .*self\.query .* 768 → 768, here it is 32 → 32"):
        read(bert, wide)
    deep = tiny.save_adapter(tmp_path / "deep", tiny.lora("encoder.layer.11.output.dense"))
    with pytest.raises(PackageRejected, match=r"another backbone: it changes encoder\.layer\.11.*\(4, 32\)"):
        read(bert, deep)


def test_idle_pooler(bert: PackedEngine, tmp_path: Path) -> None:
    """PEFT's 'all-linear' reaches the pooler; untrained it changes nothing, trained it would be lost."""
    pooler = tiny.lora("bert.pooler.dense")
    b = next(name for name in pooler if "lora_B" in name)
    untrained = {**tiny.lora("bert." + QUERY), **pooler, b: torch.zeros_like(pooler[b])}
    assert read(bert, tiny.save_adapter(tmp_path / "zero", untrained)).updates[0] is not None
    with pytest.raises(PackageRejected, match="changes the pooler"):
        read(bert, tiny.save_adapter(tmp_path / "trained", {**tiny.lora("bert." + QUERY), **pooler}))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file(bert: PackedEngine, tmp_path: Path, keep: int) -> None:
    folder = tiny.save_adapter(tmp_path, tiny.lora(QUERY))
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(PackageRejected, match="is not a whole safetensors file"):
        read(bert, folder)


def test_file_that_lies(bert: PackedEngine, tmp_path: Path) -> None:
    folder = tiny.save_adapter(tmp_path, tiny.lora(QUERY))
    header = json.dumps({_A: {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 10**15]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PackageRejected, match="is not a whole safetensors file"):
        read(bert, folder)


def test_plans_of_two_threads_do_not_mix(bert: PackedEngine, tmp_path: Path) -> None:
    """The plan travels with the call: two passes at once, each with an adapter of its own."""
    texts = tiny.ids(20, 20)
    jobs = []
    for i, text in enumerate(texts):
        tensors = {name: t * (i + 1) for name, t in {**tiny.lora(QUERY), **tiny.lora(VALUE)}.items()}
        jobs.append((tiny.load(bert, tiny.FEATURES, adapter=tiny.save_adapter(tmp_path / f"{i}", tensors)), text))
    alone = [tiny.features(bert, job)[0] for job in jobs]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda i: (i, tiny.features(bert, jobs[i])[0]), [i % 2 for i in range(200)]))
    assert all(torch.equal(states, alone[i]) for i, states in results)


def test_unloading_spares_prepared_jobs(engine_of: Callable[[str], PackedEngine], tmp_path: Path) -> None:
    engine = engine_of("bert")
    digest = tiny.load(engine, tiny.FEATURES, adapter=tiny.save_adapter(tmp_path, tiny.lora(QUERY)))
    jobs = engine.prepare([(digest, Request({"input_ids": [7, 8]}, {}))])
    before = tiny.step(engine, jobs)[0]["features"]
    engine.unload(digest)
    assert digest not in engine.loaded
    assert tiny.step(engine, jobs)[0]["features"] == before
