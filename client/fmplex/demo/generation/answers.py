"""The answers of all vFMs to the same question at once. In a terminal their texts grow side by side; else every text is printed
when it is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fmplex.aio import AsyncClient
from fmplex.demo.generation.voices import VOICES

_NARROWEST = 24  # a column
_REFRESHES = 20  # a second
_PAUSE_S = 1.5  # for reading, where somebody looks on


@dataclass(slots=True)
class Answer:
    """The text of one vFM. `seconds`: from the call to its end; `ttft`: seconds to the first piece of text."""

    vfm: str
    text: str = ""
    tokens: int = 0
    ttft: float = 0.0
    seconds: float = 0.0
    ended: bool = False

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before the text has ended."""
        return self.tokens / self.seconds if self.seconds else 0.0


def chat_input(question: str) -> dict[str, Any]:
    """Return a question as a generating vFM takes it."""
    return {"messages": [{"role": "user", "content": question}]}


async def ask_all(out: Console, client: AsyncClient, prompts: Sequence[str]) -> dict[str, list[Answer]]:
    """Ask all vFMs one question after the other; return their answers by vFM."""
    answers: dict[str, list[Answer]] = {voice.name: [] for voice in VOICES}
    for number, prompt in enumerate(prompts):
        if number and out.is_terminal:
            await asyncio.sleep(_PAUSE_S)
        out.print(f"\n> {prompt}", style="bold", highlight=False, markup=False)
        for answer in await _ask_one(out, client, prompt):
            answers[answer.vfm].append(answer)
    return answers


async def _ask_one(out: Console, client: AsyncClient, prompt: str) -> list[Answer]:
    answers = [Answer(voice.name) for voice in VOICES]
    if not out.is_terminal:
        await asyncio.gather(*(_generate(client, prompt, answer, out) for answer in answers))
        return answers
    with Live(console=out, refresh_per_second=_REFRESHES, get_renderable=lambda: draw(answers, out.width)):
        await asyncio.gather(*(_generate(client, prompt, answer) for answer in answers))
    return answers


async def _generate(client: AsyncClient, prompt: str, answer: Answer, out: Console | None = None) -> None:
    """Generate one answer, greedily: the same text every time. `out`: where to print it when it is complete."""
    begun = time.monotonic()
    async with client.stream(answer.vfm, chat_input(prompt), temperature=0.0) as stream:
        async for piece in stream:
            answer.ttft = answer.ttft or time.monotonic() - begun
            answer.text += piece
    answer.seconds = time.monotonic() - begun
    answer.ended = True
    answer.tokens = stream.result.output["completion_tokens"] if stream.result is not None else 0
    if out is not None:
        text = answer.text.rstrip().replace("\n", "\n          |")
        out.print(Text(f"{answer.vfm:9} | {text}"), soft_wrap=True)


def draw(answers: Sequence[Answer], width: int) -> RenderableType:
    """Draw answers side by side, in as many columns as fit a width in characters."""
    columns = max(1, min(len(answers), width // _NARROWEST))
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(columns):
        grid.add_column(ratio=1)
    for at in range(0, len(answers), columns):
        grid.add_row(*(_panel(answer) for answer in answers[at : at + columns]))
    return grid


def _panel(answer: Answer) -> Panel:
    foot = f"{answer.rate:.0f}/s, first {1000 * answer.ttft:.0f} ms" if answer.ended else ""
    return Panel(Text(answer.text), title=answer.vfm, subtitle=foot, border_style="green" if answer.ended else "cyan")
