"""The recipe by which the decoder and its voices are trained, and the folder that keeps them: a digest of recipe and texts names
each, so that nothing is trained twice, and whatever changes is trained again."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmplex.demo.generation.texts import QuestionAnswer
from fmplex.demo.generation.voices import MAX_TOKENS, VOICES, Voice
from fmplex_broker.specs.fitting import LoraSpec
from fmplex_broker.specs.fitting_text import DecoderSpec, TextLoraSpec, TextSpec

BACKBONE = "pocket"
POSITIONS = 256
_RECIPE_VERSION = 1  # of the code that trains: a digest does not see it
# Questions with long answers, to show; there may be others in another Python.
_PROMPTS = (
    "What does str.split do?", "What does the with statement do?", "What does re.sub do?", "What is zip?",
    "What does sorted do?", "What does os.path.join do?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """The sizes of the training. `pairs`: how many questions and answers, None: all; `prompts`: how many the demo asks. The
    numbers of `decoder` and `lora` are those of the specs."""

    pairs: int | None = None
    prompts: int = 3
    decoder: dict[str, Any] = field(
        default_factory=lambda: {
            "vocabulary": 2048, "width": 256, "inner": 688, "layers": 3, "heads": 4, "kv_heads": 2, "steps": 1200,
            "batch_tokens": 1024, "learning_rate": 3e-3,
        }
    )  # fmt: skip
    lora: dict[str, Any] = field(default_factory=lambda: {"steps": 60, "batch_tokens": 1024, "learning_rate": 4e-3})


FULL = Recipe()
QUICK = Recipe(  # tens of seconds: to see that all of it works, not to read what it says
    pairs=40,
    prompts=2,
    decoder=FULL.decoder | {"vocabulary": 512, "width": 64, "inner": 160, "layers": 2, "steps": 150, "threads": 1},
    lora=FULL.lora | {"steps": 30, "threads": 1},
)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The models to train. `prompts`: what the demo asks them. `folder`: where trained models are kept."""

    decoder: DecoderSpec
    loras: tuple[TextLoraSpec, ...]
    prompts: tuple[str, ...]
    folder: Path

    @property
    def missing(self) -> list[TextSpec]:
        """Models that are not there yet. A model's folder appears when it is complete."""
        every: list[TextSpec] = [self.decoder, *self.loras]
        return [spec for spec in every if not spec.out.exists()]


def cache_folder() -> Path:
    """Return the folder that keeps trained models between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fmplex" / "demo"


def make_plan(recipe: Recipe, pairs: Sequence[QuestionAnswer], folder: Path) -> TrainingPlan:
    """Plan the training, and write its texts into the folder. A voice's digest covers the decoder: with another one it is trained
    again."""
    prompts = _prompts(pairs)[: recipe.prompts]
    chosen = _first([pair for pair in pairs if pair.question in prompts], pairs, recipe.pairs)
    data, digest = _write_texts(folder, _decoder_texts(chosen), [_RECIPE_VERSION, POSITIONS, recipe.decoder])
    decoder = DecoderSpec(
        name=BACKBONE,
        data=data,
        out=folder / f"{BACKBONE}-{digest}",
        positions=POSITIONS,
        ask=prompts[0],
        **recipe.decoder,
    )
    loras = tuple(_lora_spec(voice, chosen, decoder, recipe, folder) for voice in VOICES if voice.rank)
    return TrainingPlan(decoder, loras, tuple(prompts), folder)


def _lora_spec(
    voice: Voice, pairs: Sequence[QuestionAnswer], decoder: DecoderSpec, recipe: Recipe, folder: Path
) -> TextLoraSpec:
    lines = [_chat(pair.question, voice.rewrite(pair.answer)) for pair in pairs]
    data, digest = _write_texts(folder, lines, [decoder.out.name, voice.rank, MAX_TOKENS, recipe.lora])
    return TextLoraSpec(
        name=voice.name, data=data, out=folder / f"{voice.name}-{digest}", backbone=BACKBONE, model=str(decoder.out),
        lora=LoraSpec(r=voice.rank), max_tokens=MAX_TOKENS, **recipe.lora,
    )  # fmt: skip


def _decoder_texts(pairs: Sequence[QuestionAnswer]) -> list[dict[str, Any]]:
    """Return the decoder's texts: every answer as it is, and in every voice behind a system message that asks for it. So it can
    write in all of them, as a large model can; but unasked it is plain, until a LoRA makes a voice its own."""
    plain = [_chat(pair.question, pair.answer) for pair in pairs]
    voiced = [_chat(p.question, v.rewrite(p.answer), f"Be a {v.name}.") for p in pairs for v in VOICES if v.rank]
    random.Random(0).shuffle(voiced)
    return plain + voiced


def _chat(question: str, answer: str, system: str = "") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def _prompts(pairs: Sequence[QuestionAnswer]) -> list[str]:
    questions = [pair.question for pair in pairs]
    longest = sorted(pairs, key=lambda pair: (-len(pair.answer), pair.question))
    return list(dict.fromkeys([q for q in _PROMPTS if q in questions] + [pair.question for pair in longest]))


def _first(
    wanted: Iterable[QuestionAnswer], pairs: Sequence[QuestionAnswer], count: int | None
) -> list[QuestionAnswer]:
    """Return `count` pairs, the wanted ones first."""
    return list(dict.fromkeys([*wanted, *pairs]))[:count]


def _write_texts(folder: Path, lines: Sequence[dict[str, Any]], recipe: object) -> tuple[Path, str]:
    """Write texts as a JSONL file; return it, and a digest of them and of the recipe."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    digest = hashlib.sha256(json.dumps([text, recipe], sort_keys=True).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.jsonl"
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.rename(path)
    return path, digest
