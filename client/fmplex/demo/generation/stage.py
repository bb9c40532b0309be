"""The vFMs on stage: all of them answer the same question at once. In a terminal their texts grow side by side; else every text
is a line when it is complete."""

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
class Line:
    """What one vFM says. `seconds`: from the call to its end; `ttft`: to the first piece of text."""

    vfm: str
    text: str = ""
    tokens: int = 0
    ttft: float = 0.0
    seconds: float = 0.0
    ended: bool = False

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def chat(question: str) -> dict[str, Any]:
    """A question as a generating vFM takes it."""
    return {"messages": [{"role": "user", "content": question}]}


async def perform(out: Console, client: AsyncClient, prompts: Sequence[str]) -> dict[str, list[Line]]:
    """Question after question to all vFMs at once; their lines by vFM."""
    said: dict[str, list[Line]] = {voice.name: [] for voice in VOICES}
    for number, prompt in enumerate(prompts):
        if number and out.is_terminal:
            await asyncio.sleep(_PAUSE_S)
        out.print(f"\n> {prompt}", style="bold", highlight=False, markup=False)
        for line in await _ask_all(out, client, prompt):
            said[line.vfm].append(line)
    return said


async def _ask_all(out: Console, client: AsyncClient, prompt: str) -> list[Line]:
    lines = [Line(voice.name) for voice in VOICES]
    if not out.is_terminal:
        await asyncio.gather(*(_speak(client, prompt, line, out) for line in lines))
        return lines
    with Live(console=out, refresh_per_second=_REFRESHES, get_renderable=lambda: draw(lines, out.width)):
        await asyncio.gather(*(_speak(client, prompt, line) for line in lines))
    return lines


async def _speak(client: AsyncClient, prompt: str, line: Line, out: Console | None = None) -> None:
    """Greedily: the same text every time. `out`: where the whole of it is printed."""
    begun = time.monotonic()
    async with client.stream(line.vfm, chat(prompt), temperature=0.0) as stream:
        async for piece in stream:
            line.ttft = line.ttft or time.monotonic() - begun
            line.text += piece
    line.seconds = time.monotonic() - begun
    line.ended = True
    line.tokens = stream.result.output["completion_tokens"] if stream.result is not None else 0
    if out is not None:
        said = line.text.rstrip().replace("\n", "\n          |")
        out.print(Text(f"{line.vfm:9} | {said}"), soft_wrap=True)


def draw(lines: Sequence[Line], width: int) -> RenderableType:
    """As many columns as there is room for."""
    columns = max(1, min(len(lines), width // _NARROWEST))
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(columns):
        grid.add_column(ratio=1)
    for at in range(0, len(lines), columns):
        grid.add_row(*(_panel(line) for line in lines[at : at + columns]))
    return grid


def _panel(line: Line) -> Panel:
    foot = f"{line.rate:.0f}/s, first {1000 * line.ttft:.0f} ms" if line.ended else ""
    return Panel(Text(line.text), title=line.vfm, subtitle=foot, border_style="green" if line.ended else "cyan")
