"""How the decoder and its voices are trained, and where they are kept: a digest of recipe and texts names each, so that what was
trained once is there at once, and whatever changes is trained again."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmplex.demo.generation.texts import Pair
from fmplex.demo.generation.voices import MAX_TOKENS, VOICES, Voice
from fmplex_broker.specs.fitting import LoraSpec
from fmplex_broker.specs.fitting_text import DecoderSpec, TextLoraSpec, TextSpec

BACKBONE = "pocket"
POSITIONS = 256
_EDITION = 1  # of the code that trains: a digest does not see it
# Questions with long answers, for the stage; there may be others in another Python.
_PROMPTS = (
    "What does str.split do?", "What does the with statement do?", "What does re.sub do?", "What is zip?",
    "What does sorted do?", "What does os.path.join do?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """`pairs`: how many questions and answers, None: all. The numbers of `decoder` and `lora` are those of the specs."""

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
    """What there is to train. `prompts`: what the stage asks. `shelf`: the folder of what has been trained."""

    decoder: DecoderSpec
    loras: tuple[TextLoraSpec, ...]
    prompts: tuple[str, ...]
    shelf: Path

    @property
    def missing(self) -> list[TextSpec]:
        """What is not there yet. A folder appears when it is complete."""
        every: list[TextSpec] = [self.decoder, *self.loras]
        return [spec for spec in every if not spec.out.exists()]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fmplex" / "demo"


def make_plan(recipe: Recipe, pairs: Sequence[Pair], shelf: Path) -> TrainingPlan:
    """Writes the texts into the shelf. A voice hangs on the decoder too: another one, and it is trained again."""
    prompts = _prompts(pairs)[: recipe.prompts]
    chosen = _first([pair for pair in pairs if pair.question in prompts], pairs, recipe.pairs)
    data, digest = _shelve(shelf, _curriculum(chosen), [_EDITION, POSITIONS, recipe.decoder])
    decoder = DecoderSpec(
        name=BACKBONE,
        data=data,
        out=shelf / f"{BACKBONE}-{digest}",
        positions=POSITIONS,
        ask=prompts[0],
        **recipe.decoder,
    )
    loras = tuple(_lora_spec(voice, chosen, decoder, recipe, shelf) for voice in VOICES if voice.rank)
    return TrainingPlan(decoder, loras, tuple(prompts), shelf)


def _lora_spec(voice: Voice, pairs: Sequence[Pair], decoder: DecoderSpec, recipe: Recipe, shelf: Path) -> TextLoraSpec:
    lines = [_chat(pair.question, voice.say(pair.answer)) for pair in pairs]
    data, digest = _shelve(shelf, lines, [decoder.out.name, voice.rank, MAX_TOKENS, recipe.lora])
    return TextLoraSpec(
        name=voice.name, data=data, out=shelf / f"{voice.name}-{digest}", backbone=BACKBONE, model=str(decoder.out),
        lora=LoraSpec(r=voice.rank), max_tokens=MAX_TOKENS, **recipe.lora,
    )  # fmt: skip


def _curriculum(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """What the decoder reads: every answer as it is, and in every voice behind a message that asks for it. So it can speak in all
    of them, as a large model can; but unasked it is plain, until a LoRA makes a voice its own."""
    plain = [_chat(pair.question, pair.answer) for pair in pairs]
    voiced = [_chat(p.question, v.say(p.answer), f"Be a {v.name}.") for p in pairs for v in VOICES if v.rank]
    random.Random(0).shuffle(voiced)
    return plain + voiced


def _chat(question: str, answer: str, system: str = "") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def _prompts(pairs: Sequence[Pair]) -> list[str]:
    questions = [pair.question for pair in pairs]
    longest = sorted(pairs, key=lambda pair: (-len(pair.answer), pair.question))
    return list(dict.fromkeys([q for q in _PROMPTS if q in questions] + [pair.question for pair in longest]))


def _first(wanted: Iterable[Pair], pairs: Sequence[Pair], count: int | None) -> list[Pair]:
    """`count` pairs, those that are wanted first."""
    return list(dict.fromkeys([*wanted, *pairs]))[:count]


def _shelve(shelf: Path, lines: Sequence[dict[str, Any]], recipe: object) -> tuple[Path, str]:
    """The file of the texts, and a digest of them and of the recipe."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    digest = hashlib.sha256(json.dumps([text, recipe], sort_keys=True).encode()).hexdigest()[:16]
    shelf.mkdir(parents=True, exist_ok=True)
    path = shelf / f"{digest}.jsonl"
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.rename(path)
    return path, digest
