"""Many LoRAs in one pass: packed rows with adapter segments, against every other way to serve them.

32 requests of lognormal lengths over 16 adapters on a BERT-base-wide encoder (random weights), on CPU. All variants
compute the same hidden states; `max_rel_error` compares ours with PEFT, one adapter at a time.

    python -m benchmarks.adapters [--json] [--rounds N] [--quick]        (about three minutes)
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.harness import Benchmark, Ratios, Report, interleave, main, timed
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.adapters.loading import load_adapter
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.row import Pack, TokenSpan, pack, packed_order
from fmplex_worker.packed.segments import Adapter, Factors, Segments

VOCABULARY, RANK = 1000, 16
WAYS = ("plain", "packed", "padded", "peft_mixed", "one_at_a_time", "copies")


@dataclass(frozen=True)
class Size:
    """The width is BERT-base's; ratios do not depend on depth, so few layers save time."""

    layers: int = 2
    requests: int = 32
    adapters: int = 16


@dataclass
class Case:
    """The same requests for everybody, ordered by adapter and then by length."""

    size: Size
    backbone: Backbone
    adapters: list[Adapter]
    texts: list[Text]
    owner: list[int]  # adapter of each text
    peft: Any  # PEFT model with all adapters
    plain: nn.Module  # the same backbone, as transformers has it

    def groups(self) -> list[tuple[int, list[int]]]:
        """Return pairs of an adapter and its texts."""
        return [(a, [i for i, o in enumerate(self.owner) if o == a]) for a in sorted(set(self.owner))]


def build(size: Size, folder: Path) -> Case:
    """Make the backbone, its adapters and the requests, with files in a folder."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = BertConfig(vocab_size=VOCABULARY, num_hidden_layers=size.layers)
    BertModel(config).save_pretrained(folder / "model")
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512).save_pretrained(folder / "model")
    backbone = load_backbone(BackboneSpec(name="bert", model=str(folder / "model")), "cpu")
    plain = BertModel.from_pretrained(folder / "model", add_pooling_layer=False).train(False).requires_grad_(False)
    mixed = _write_adapters(copy.deepcopy(plain), size.adapters, folder)
    adapters = [_load(folder / f"a{i}", backbone, i + 1) for i in range(size.adapters)]
    lengths = np.clip(rng.lognormal(np.log(48), 0.8, size.requests), 8, 256).astype(int)
    texts = [Text.of_ids(rng.integers(1, VOCABULARY, n)) for n in lengths]
    owners = [i % size.adapters for i in range(size.requests)]
    order = packed_order([TokenSpan(t.tokens, adapters[o]) for t, o in zip(texts, owners, strict=True)])
    return Case(size, backbone, adapters, [texts[i] for i in order], [owners[i] for i in order], mixed, plain)


def _load(folder: Path, backbone: Backbone, number: int) -> Adapter:
    config, weights = (folder / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    return load_adapter(config.read_bytes(), weights.read_bytes(), backbone, number)


def _write_adapters(model: nn.Module, count: int, folder: Path) -> Any:
    """Write PEFT folders `a0`... with every linear of the blocks, A and B random. Returns PEFT's own model of all of them."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=False)
    mixed = peft.get_peft_model(model, config, adapter_name="a0")
    for i in range(1, count):
        mixed.add_adapter(f"a{i}", config)
    with torch.no_grad():
        for name, weight in mixed.named_parameters():
            if "lora_" in name:
                nn.init.normal_(weight, std=0.02)
    mixed.save_pretrained(str(folder / "saved"), selected_adapters=[f"a{i}" for i in range(count)])
    for i in range(count):
        (folder / "saved" / f"a{i}").rename(folder / f"a{i}")
    return mixed.eval()


def padded(texts: list[Text]) -> dict[str, torch.Tensor]:
    """Make the batch `[texts, longest]` that transformers takes."""
    longest = max(t.tokens for t in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for i, text in enumerate(texts):
        ids[i, : text.tokens] = torch.from_numpy(text.ids)
        mask[i, : text.tokens] = 1
    return {"input_ids": ids, "attention_mask": mask}


class PaddedLinear(nn.Module):
    """Our segments on a padded batch: the ablation of packing alone."""

    plan: Segments  # set by the variant; one thread, one batch

    def __init__(self, base: nn.Linear, slot: int) -> None:
        super().__init__()
        self.weight, self.bias, self.slot = base.weight, base.bias, slot

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the linear, and every adapter to its rows; `x`: `[texts, longest, features]`."""
        y = functional.linear(x, self.weight, self.bias)
        PaddedLinear.plan.add(self.slot, x.view(1, -1, x.shape[-1]), y.view(1, -1, y.shape[-1]))
        return y


def variants(case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """Make the ways to serve the case; each returns the hidden states `[tokens, hidden]` of all texts, in order."""
    adapters = [case.adapters[o] for o in case.owner]
    with_adapters = _packed(case, adapters)
    without = _packed(case, [None] * len(adapters))
    everybody = padded(case.texts)
    names = [f"a{o}" for o in case.owner]
    grouped = [(a, rows, padded([case.texts[i] for i in rows])) for a, rows in case.groups()]
    segmented = _segmented(case)
    copies = {a: _merged(case, a) for a, _, _ in grouped}

    def states(out: Any, texts: list[Text]) -> list[torch.Tensor]:
        return [row[: text.tokens] for row, text in zip(out.last_hidden_state, texts, strict=True)]

    def one_at_a_time() -> torch.Tensor:
        parts = []
        for adapter, rows, batch in grouped:
            case.peft.set_adapter(f"a{adapter}")
            parts += states(case.peft(**batch), [case.texts[i] for i in rows])
        return torch.cat(parts)

    def own_copies() -> torch.Tensor:
        done = (states(copies[a](**batch), [case.texts[i] for i in rows]) for a, rows, batch in grouped)
        return torch.cat([part for parts in done for part in parts])

    return {
        "plain": lambda: case.backbone.encode(without, case.texts),
        "packed": lambda: case.backbone.encode(with_adapters, case.texts),
        "padded": lambda: torch.cat(states(segmented(**everybody), case.texts)),
        "peft_mixed": lambda: torch.cat(states(case.peft(**everybody, adapter_names=names), case.texts)),
        "one_at_a_time": one_at_a_time,
        "copies": own_copies,
    }


def _packed(case: Case, adapters: list[Any]) -> Pack:
    owned = [TokenSpan(text.tokens, adapter) for text, adapter in zip(case.texts, adapters, strict=True)]
    return pack(owned, case.backbone.device, None)


def _segmented(case: Case) -> nn.Module:
    """Put `PaddedLinear`s into the plain model, with the plan of the whole padded batch."""
    model = copy.deepcopy(case.plain)
    for path, target in case.backbone.targets.items():
        parent, _, name = path.rpartition(".")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), name, PaddedLinear(linear, target.slot))
    longest = max(t.tokens for t in case.texts)
    sizes = [len(rows) * longest for _, rows in case.groups()]
    present = [case.adapters[a] for a, _ in case.groups()]
    PaddedLinear.plan = Segments.of(present, sizes, sum(sizes), torch.device("cpu"), None)
    return model


def _merged(case: Case, adapter: int) -> nn.Module:
    """Copy the model with the adapter merged into its weights, as it would be served alone."""
    model = copy.deepcopy(case.plain)
    for path, target in case.backbone.targets.items():
        pair = case.adapters[adapter].updates[target.slot]
        if isinstance(pair, Factors):
            model.get_parameter(f"{path}.weight").data += (pair.down @ pair.up).t()
    return model


@torch.inference_mode()
def run(report: Report) -> None:
    """Compare the ways' outputs, then their times."""
    torch.set_num_threads(1)  # two threads on a shared machine wait for each other, and hide what is measured
    size = Size(layers=1, requests=8, adapters=4) if report.options.quick else Size()
    warnings.filterwarnings("ignore", module="peft")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        case = build(size, Path(folder))
    report.config |= _config(size, case, report.options.rounds)
    ways = variants(case)
    reference = ways["one_at_a_time"]()
    errors = {name: float((ways[name]() - reference).abs().max() / reference.abs().max()) for name in ways}
    report.config["rel_errors"] = errors  # that of plain shows that the adapters matter
    interleave(report, {name: timed(name, way) for name, way in ways.items()}, report.options.rounds)


def _config(size: Size, case: Case, rounds: int) -> dict[str, Any]:
    lengths = [t.tokens for t in case.texts]
    return {
        "layers": size.layers,
        "hidden": case.backbone.hidden,
        "requests": size.requests,
        "adapters": size.adapters,
        "rank": RANK,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "weights": "random",
        "goal": "packed_over_plain <= 1.15, max_rel_error <= 1e-4",
    }


def ratios(report: Report) -> Ratios:
    """Compare every way to the plain backbone; and the largest relative error of ours."""
    errors = report.config.get("rel_errors", {})
    out = {f"{name}_over_plain": report.ratio(name, "plain") for name in WAYS if name != "plain"}
    return out | {"max_rel_error": [errors["packed"]] if errors else []}


if __name__ == "__main__":
    main(Benchmark("adapters", run, ratios, __doc__ or "", rounds=9))
