"""Decoders and LoRAs for them, trained from texts: what comes out can be served, and what was wrong is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fmplex_broker.errors import Conflict, InvalidInput, NonFiniteOutput
from fmplex_broker.examples.texts import Conversation, Message, read
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.fitting import FitDone, FitFailed
from fmplex_broker.specs.fitting_text import DecoderSpec, TextEvent, TextLoraSpec, TextStarted, TextStep
from fmplex_worker.tuning.decoder import loop
from fmplex_worker.tuning.decoder.__main__ import SPECS, train
from fmplex_worker.tuning.decoder.adapting import train_lora
from fmplex_worker.tuning.decoder.examples import IGNORED, batches, encode, in_order
from fmplex_worker.tuning.decoder.pretraining import train_decoder
from fmplex_worker.tuning.decoder.tokenizer import train_tokenizer
from fmplex_worker.tuning.process import serve

THINGS = ("door", "house", "tree", "boat")
SIZES: dict[str, Any] = {
    "vocabulary": 320, "width": 32, "inner": 48, "layers": 2, "heads": 2, "kv_heads": 1, "positions": 64, "steps": 200,
    "batch_tokens": 256, "learning_rate": 1e-2, "threads": 1,
}  # fmt: skip


def _lines(say: Any = str) -> list[dict[str, Any]]:
    return [_chat(f"Which {thing}?", say(f"The {thing} here.")) for thing in THINGS * 6]


def _chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderSpec, list[TextEvent]]:
    """A decoder that was trained, and what was told meanwhile."""
    folder = tmp_path_factory.mktemp("decoder")
    data = _write(folder / "data.jsonl", [{"text": "a line of its own"}, *_lines()])
    spec = DecoderSpec(name="tiny", data=data, out=folder / "out", ask="Which boat?", **SIZES)
    events: list[TextEvent] = []
    train_decoder(spec, events.append)
    return spec, events


def test_it_learns_what_it_reads_and_says_so_on_the_way(decoder: tuple[DecoderSpec, list[TextEvent]]) -> None:
    _, (started, *steps, done) = decoder
    assert isinstance(started, TextStarted)
    assert isinstance(done, FitDone)
    assert started.trained == started.parameters > 0
    told = [step for step in steps if isinstance(step, TextStep)]
    assert told[-1].step == told[-1].steps == SIZES["steps"]
    assert told[-1].loss < 0.2 * told[0].loss
    assert [step.sample for step in told if step.sample][-1] == "The boat here."
    assert done.score > done.baseline


def test_the_folder_is_what_a_worker_opens(decoder: tuple[DecoderSpec, list[TextEvent]]) -> None:
    from tests.support import tiny_lm

    engine = tiny_lm.open_tiny(decoder[0].out)
    digest = tiny_lm.load(engine)
    asked = {"messages": [{"role": "user", "content": "Which tree?"}]}
    (output,) = tiny_lm.drive(engine, [tiny_lm.prepare(engine, digest, asked, temperature=0.0)])
    assert (output["text"], output["finish_reason"]) == ("The tree here.", "stop")


def test_a_lora_gives_a_voice_and_leaves_a_package(
    decoder: tuple[DecoderSpec, list[TextEvent]], tmp_path: Path
) -> None:
    from tests.support import tiny_lm

    spec, done = _lora(decoder[0], tmp_path)
    assert done.score > done.baseline
    package = read_package(spec.out)
    assert package.digest == done.artifact
    assert package.spec.head is not None
    assert package.spec.head.model_dump(include={"kind", "max_tokens"}) == {"kind": "generation", "max_tokens": 17}
    engine = tiny_lm.open_tiny(decoder[0].out)
    digest = tiny_lm.load(engine, spec.out / "adapter")
    asked = {"messages": [{"role": "user", "content": "Which door?"}]}
    (output,) = tiny_lm.drive(engine, [tiny_lm.prepare(engine, digest, asked, temperature=0.0)])
    assert output["text"] == "The door here. The door here."


def test_the_same_spec_gives_the_same_version(decoder: tuple[DecoderSpec, list[TextEvent]], tmp_path: Path) -> None:
    _, one = _lora(decoder[0], tmp_path / "a", steps=3)
    _, two = _lora(decoder[0], tmp_path / "b", steps=3)
    _, other = _lora(decoder[0], tmp_path / "c", steps=3, seed=1)
    assert one.artifact == two.artifact != other.artifact


def _lora(decoder: DecoderSpec, folder: Path, **options: Any) -> tuple[TextLoraSpec, FitDone]:
    folder.mkdir(exist_ok=True)
    data = _write(folder / "data.jsonl", _lines(lambda text: f"{text} {text}"))
    given = {"steps": 120, "batch_tokens": 256, "learning_rate": 1e-2, "threads": 1, **options}
    spec = TextLoraSpec(
        name="twice", data=data, out=folder / "twice", backbone="tiny", model=str(decoder.out), max_tokens=17, **given
    )
    return spec, train_lora(spec, lambda _: None)


def test_of_a_chat_only_the_answer_is_learnt() -> None:
    tokenizer = train_tokenizer(["Which door?", "The door here."], 320, 64)
    chat = Conversation(
        messages=(Message(role="user", content="Which door?"), Message(role="assistant", content="The door here."))
    )
    (example,) = encode([chat], tokenizer, 64)
    asked, said = example.tokens[: example.learn], example.tokens[example.learn :]
    assert tokenizer.decode(asked) == "<|user|>Which door?<|end|><|assistant|>"
    assert tokenizer.decode(said) == "The door here.<|end|>"
    (batch,) = in_order([example], 64)
    assert batch.targets[batch.targets != IGNORED].tolist() == said


def test_an_epoch_takes_every_text_once_and_no_batch_is_too_large() -> None:
    chats = [
        Conversation(messages=(Message(role="user", content="?"), Message(role="assistant", content="x" * n)))
        for n in range(1, 40)
    ]
    examples = encode(chats, train_tokenizer(["x", "?"], 300, 64), 64)
    epoch, seen = batches(examples, 128, torch.Generator().manual_seed(0)), []
    while len(seen) < len(examples):
        batch = next(epoch)
        assert batch.inputs.numel() <= 128
        seen += (batch.targets != IGNORED).sum(1).tolist()
    assert sorted(seen) == sorted(len(e.tokens) - e.learn for e in examples)


def test_any_text_can_be_said_whatever_was_read() -> None:
    tokenizer = train_tokenizer(["only ascii"], 300, 64)
    assert tokenizer.decode(tokenizer.encode("Käse 🧀", add_special_tokens=False)) == "Käse 🧀"


# --- what is wrong is said ---


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("not json", "line 2"),
        ('{"text": ""}', "line 2"),
        ('{"text": "a", "label": "b"}', "label"),
        ('{"messages": [{"role": "user", "content": "alone"}]}', "nothing to learn"),
        ('{"messages": [{"role": "nobody", "content": "a"}, {"role": "assistant", "content": "b"}]}', "role"),
    ],
)
def test_a_bad_line_is_named(line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match=what) as caught:
        read(path)
    assert caught.value.field == "data"


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    data = _write(tmp_path / "data.jsonl", _lines())
    (tmp_path / "out").mkdir()
    with pytest.raises(Conflict, match="there already"):
        train_decoder(DecoderSpec(name="tiny", data=data, out=tmp_path / "out", **SIZES), lambda _: None)


def test_training_that_diverges_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _write(tmp_path / "data.jsonl", _lines())
    monkeypatch.setattr(loop, "_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(NonFiniteOutput, match="step 1"):
        train_decoder(DecoderSpec(name="tiny", data=data, out=tmp_path / "out", **SIZES), lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_failed_spec_does_not_end_the_next(tmp_path: Path) -> None:
    data = _write(tmp_path / "data.jsonl", _lines())
    good = DecoderSpec(name="good", data=data, out=tmp_path / "out", **SIZES | {"steps": 2})
    bad = good.model_copy(update={"name": "bad", "data": tmp_path / "none.jsonl"})
    events: list[Any] = []
    lines = [b'{"kind": "decoder"}', *(spec.model_dump_json().encode() for spec in (bad, good))]
    assert serve(lines, SPECS, train, events.append) is False
    assert [(e.name, e.field) for e in events if isinstance(e, FitFailed)] == [
        ("line 1", "decoder.name"),
        ("bad", "data"),
    ]
    assert isinstance(events[-1], FitDone)


def test_the_process_says_nothing_but_events(tmp_path: Path) -> None:
    data = _write(tmp_path / "data.jsonl", _lines())
    spec = DecoderSpec(name="tiny", data=data, out=tmp_path / "out", **SIZES | {"steps": 2})
    lora = TextLoraSpec(
        name="twice", data=data, out=tmp_path / "twice", backbone="tiny", model=str(spec.out), steps=2, threads=1
    )
    done = subprocess.run(
        [sys.executable, "-m", "fmplex_worker.tuning.decoder"],
        input="".join(s.model_dump_json() + "\n" for s in (spec, lora)),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert kinds == ["started", "step", "step", "done"] * 2
