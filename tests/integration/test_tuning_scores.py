"""The score that a tuning job says is that of what it publishes, as the gateway answers: templates included; with the `openai`
package from end to end."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from transformers import AutoTokenizer

from fmplex import Client
from fmplex.local import LocalFleet
from tests.support import tiny, tiny_lm
from tests.support.fleets import write_fleet
from tests.support.tuning_data import jsonl
from tests.support.waiting import wait_until
from tests.unit.tuning import learnable

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
EXACT = 1e-6
SYSTEM = "be brief"
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
AROUND = {"template": "the cat on the mat {text} in the house"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A tiny encoder and a tiny decoder, whose workers tune."""
    folder = tmp_path_factory.mktemp("scores")
    hosted = [
        {"name": "encoder", "model": str(tiny.save_model("bert", folder / "bert"))},
        {"name": "decoder", "model": str(tiny_lm.save_model("llama", folder / "llama")), "pass_units": 256},
    ]
    config = write_fleet(folder / "fleet.toml", *hosted, worker={"threads": 1, "tuning": {"enabled": True}})
    with LocalFleet(config, port=0, data=folder / "data") as running:
        yield running
        assert running.dead() == []


@pytest.fixture(scope="module")
def ai(fleet: LocalFleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.gateway_url}/v1", api_key="any", max_retries=0, timeout=90) as client:
        yield client


def trained(ai: openai.OpenAI, lines: Sequence[Any], **order: Any) -> tuple[FineTuningJob, float]:
    """Order a training, and wait until it has succeeded; return it with the score that it says."""
    file = ai.files.create(file=("lines.jsonl", io.BytesIO(jsonl(*lines))), purpose="fine-tune")
    job = ai.fine_tuning.jobs.create(training_file=file.id, **order)

    def ended() -> FineTuningJob | None:
        seen = ai.fine_tuning.jobs.retrieve(job.id)
        return seen if seen.status in ("succeeded", "failed") else None

    done: FineTuningJob = wait_until(ended, f"{job.id} ends", 120)
    assert done.status == "succeeded", done.error
    figures = [event.data for event in ai.fine_tuning.jobs.list_events(done.id, limit=100)]
    (score,) = [one["held_out_score"] for one in figures if isinstance(one, dict) and "held_out_score" in one]
    return done, float(score)


def served(fleet: LocalFleet, job: FineTuningJob, lines: Sequence[dict[str, Any]]) -> list[Any]:
    """Ask for the texts of some lines."""
    assert job.fine_tuned_model is not None
    with Client(fleet.gateway_url) as fm:
        return [result.output for result in fm.infer(job.fine_tuned_model, [line["text"] for line in lines])]


def cut(lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what is trained on and what is held out."""
    first = len(lines) - round(len(lines) / 3)
    return list(lines[:first]), list(lines[first:])


@pytest.mark.parametrize("fit", [{}, {"lora": {"r": 2}}], ids=["head", "lora"])
def test_a_classifier(ai: openai.OpenAI, fleet: LocalFleet, fit: dict[str, Any]) -> None:
    lines = learnable.labelled()
    job, score = trained(
        ai, lines, model="encoder", hyperparameters={"n_epochs": 4}, extra_body={"fit": {"input": AROUND, **fit}}
    )
    _, held = cut(lines)
    outputs = served(fleet, job, held)
    assert score == pytest.approx(
        sum(o["label"] == line["label"] for o, line in zip(outputs, held, strict=True)) / len(held), abs=EXACT
    )
    with Client(fleet.gateway_url) as fm:
        assert job.fine_tuned_model is not None
        assert fm.vfms.show(job.fine_tuned_model).input.template == AROUND["template"]


@pytest.mark.parametrize("fit", [{}, {"lora": {"r": 2}}], ids=["head", "lora"])
def test_a_number(ai: openai.OpenAI, fleet: LocalFleet, fit: dict[str, Any]) -> None:
    """R² shows every digit of what is answered."""
    lines = learnable.valued()
    head = {"head": "regression", "input": AROUND, **fit}
    job, score = trained(ai, lines, model="encoder", hyperparameters={"n_epochs": 4}, extra_body={"fit": head})
    train, held = cut(lines)
    mean = sum(line["value"] for line in train) / len(train)
    missed = sum((o["value"] - line["value"]) ** 2 for o, line in zip(served(fleet, job, held), held, strict=True))
    assert score == pytest.approx(1 - missed / sum((line["value"] - mean) ** 2 for line in held), abs=EXACT)


def test_generated_text(ai: openai.OpenAI, fleet: LocalFleet) -> None:
    """The share of the held-out tokens that it finds, one by one: the first one of each answer from a chat, by the vFM's own
    template, the others from what came before them."""
    lines = [
        chat(f"a {thing}?{' the' * (i % 3)}", f"the {thing} sat") for i, thing in enumerate(("cat", "dog", "house") * 6)
    ]
    fit = {"lora": {"r": 4}, "system": SYSTEM, "chat_template": TEMPLATE, "held_out": 1 / 3, "learning_rate": 0.01}
    job, score = trained(
        ai, lines, model="decoder", hyperparameters={"n_epochs": 5, "batch_size": 4}, extra_body={"fit": fit}
    )
    _, held = cut(lines)
    vfm = job.fine_tuned_model
    assert vfm is not None
    tokenizer = AutoTokenizer.from_pretrained(folder_of(fleet, "decoder"))
    found = [hit for line in held for hit in hits(ai, vfm, tokenizer, line["messages"])]
    assert 0 < score < 1
    assert score == pytest.approx(sum(found) / len(found), abs=EXACT)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def folder_of(fleet: LocalFleet, backbone: str) -> Path:
    return Path(fleet.spec.find(backbone).model)


def hits(ai: openai.OpenAI, vfm: str, tokenizer: Any, messages: list[Any]) -> Iterator[bool]:
    """Say of each token of an answer, its end included, whether the vFM would have written it."""
    whole = [{"role": "system", "content": SYSTEM}, *messages[:-1]]
    asked = tokenizer.apply_chat_template(whole, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False)
    before = tokenizer(asked, add_special_tokens=False)["input_ids"]
    said = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]
    for place, token in enumerate([*said, tokenizer.eos_token_id]):
        if place == 0:
            answer = ai.chat.completions.create(model=vfm, messages=messages[:-1], max_tokens=1, temperature=0)
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        else:
            going_on = ai.completions.create(model=vfm, prompt=[*before, *said[:place]], max_tokens=1, temperature=0)
            text, reason = going_on.choices[0].text, going_on.choices[0].finish_reason
        yield reason == "stop" if token == tokenizer.eos_token_id else text == tokenizer.decode([token])
