"""Every kind of head, both ways to the fleet, alone and in a crowd: the same outputs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fmplex import AsyncClient, Client, Tensor
from fmplex.local import LocalFleet
from tests.integration.conftest import LABELS, TASKS, TEXTS
from tests.support.fleets import MODEL
from tests.support.outputs import difference
from tests.support.packages import HIDDEN, head_weights, write_package

SAME = 1e-5


@pytest.mark.parametrize("name", TASKS)
async def test_every_head_answers_in_its_own_shape(
    client: AsyncClient, name: str, references: dict[str, list[Any]]
) -> None:
    task = TASKS[name]
    results = await client.infer(name, task.inputs)
    for result, wanted in zip(results, references[name], strict=True):
        assert set(result.output) == task.keys
        assert difference(result.output, wanted) <= SAME
    assert len({result.version for result in results}) == 1


def test_scores_mean_what_the_labels_say(references: dict[str, list[Any]]) -> None:
    for output in references["sentiment"]:
        assert set(output["scores"]) == set(LABELS)
        assert sum(output["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert output["label"] == max(output["scores"], key=output["scores"].__getitem__)
    for output in references["topics"]:
        assert output["labels"] == [label for label, score in output["scores"].items() if score >= 0.5]
    for text, output in zip(TEXTS, references["entities"], strict=True):
        for span in output["spans"]:
            assert text[span["start"] : span["end"]] == span["text"]
            assert span["label"] in ("person", "place")
    assert any(output["spans"] for output in references["entities"])
    assert all(-1 <= output["score"] <= 1 for output in references["similar"])
    assert all(0 <= output["score"] <= 1 for output in references["ranker"])


def test_an_adapter_changes_what_its_own_vfm_answers(references: dict[str, list[Any]]) -> None:
    for plain, adapted in zip(references["embed"], references["embed-lora"], strict=True):
        assert difference(adapted, plain) > 0.01


async def test_strangers_in_the_same_pass_change_nothing(fleet: LocalFleet, references: dict[str, list[Any]]) -> None:
    async with AsyncClient(fleet.broker_url) as client:
        storm = [(name, i) for i in range(len(TEXTS)) for name in TASKS] * 4
        calls = [client.infer(name, TASKS[name].inputs[i]) for name, i in storm]
        results = await asyncio.gather(*calls)
    worst = max(difference(r.output, references[name][i]) for (name, i), r in zip(storm, results, strict=True))
    assert worst <= SAME


async def test_parameters_shape_the_output(client: AsyncClient, references: dict[str, list[Any]]) -> None:
    short = (await client.infer("embed-cls", TEXTS[0], dimensions=16)).output["embedding"]
    assert difference(short.tolist(), references["embed-cls"][0]["embedding"].tolist()[:16]) <= SAME
    best = (await client.infer("sentiment", TEXTS[0], top_k=2)).output
    assert len(best["scores"]) == 2
    assert best["label"] == next(iter(best["scores"]))
    cut = await client.infer("embed", "word " * 1000, truncate=True)
    assert cut.output["embedding"].shape == (HIDDEN,)


async def test_token_ids_and_a_pair_are_inputs_too(client: AsyncClient, references: dict[str, list[Any]]) -> None:
    ids = (await client.infer("embed", {"input_ids": [101, 7592, 102]})).output
    assert difference(ids, (await client.infer("embed", "hello")).output) <= SAME
    tensor = Tensor("int64", (3,), b"".join(n.to_bytes(8, "little") for n in (101, 7592, 102)))
    assert difference(ids, (await client.infer("embed", {"input_ids": tensor})).output) <= SAME
    together = (await client.infer("sentiment", {"text": TEXTS[0], "text_pair": TEXTS[1]})).output
    assert difference(together, references["sentiment"][0]) > SAME


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers what transformers calls otherwise now
def test_outputs_are_those_of_transformers_and_peft(fleet: LocalFleet, place: Path) -> None:
    """A package whose adapter the real PEFT wrote, against PEFT itself: one text at a time, its own copy of the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    from fmplex_broker.specs.fleet import locate_model

    torch.manual_seed(0)
    folder, head = place / "vfms" / "from-peft", {"kind": "classification", "labels": list(LABELS), "pooling": "mean"}
    model = AutoModel.from_pretrained(locate_model(MODEL, place)).eval()
    tokenizer = AutoTokenizer.from_pretrained(locate_model(MODEL, place))
    config = LoraConfig(r=8, lora_alpha=24, target_modules=["query", "value", "dense"], exclude_modules=["pooler.dense"],
                        rank_pattern={"value": 4}, init_lora_weights=False)  # fmt: skip
    tuned = get_peft_model(model, config).eval()
    write_package(folder, head, seed=11)
    tuned.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    weights = {name: torch.from_numpy(array) for name, array in head_weights(len(LABELS), 11).items()}
    with Client(fleet.gateway_url) as client, torch.no_grad():
        client.vfms.deploy(folder)
        for text, result in zip(TEXTS, client.infer("from-peft", list(TEXTS)), strict=True):
            hidden = tuned(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            scores = torch.softmax(weights["weight"] @ hidden + weights["bias"], 0).tolist()
            assert difference(list(result.output["scores"].values()), scores) <= SAME, json.dumps(result.output)
        client.vfms.remove("from-peft")
