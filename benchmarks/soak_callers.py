"""The traffic of `benchmarks.soak`: callers of every kind, and an owner who deploys and removes vFMs that are in use."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import openai

from fmplex import AsyncClient

TEXT, LONG, ENDLESS = 60, 400, 15_000  # tokens
_PROMPTS = [
    "tea",
    "the cat sat on",
    "a dog in the house and " * 4,
    "anna has seen paris, überall Käse 🧀 " * 6,
    "tea or coffee, they asked, and the cat sat on the mat " * 10,
]
_NEAR_TIE = 1e-3
_CARD = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
_EXTRA = {"extra_body": {"ignore_eos": True}}
_GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": TEXT, **_EXTRA}
_NOT_THERE = {"model_not_found", "vfm_closed"}

# (vFM, prompt, chat or not) -> its greedy text
Expected = dict[tuple[str, str, bool], str]


class Notes(Protocol):
    """Notes that callers write down."""

    did: Counter[str]
    wrong: list[str]


async def references(client: AsyncClient, vfms: list[str]) -> Expected:
    """Collect greedy texts without company. Those in which two tokens are nearly as good as each other are left out: which of
    them comes may depend on who shares the pass."""
    out: Expected = {}
    for vfm in vfms:
        for prompt in _PROMPTS:
            for chat in (False, True):
                value: str | dict[str, Any] = {"messages": _messages(prompt)} if chat else prompt
                params: dict[str, Any] = {"temperature": 0, "max_tokens": TEXT, "ignore_eos": True, "logprobs": 2}
                output = (await client.infer(vfm, value, **params)).output
                tops = [[entry["logprob"] for entry in token["top"]] for token in output["logprobs"]]
                if all(best - second > _NEAR_TIE for best, second in tops):
                    out[vfm, prompt, chat] = output["text"]
    return out


def _messages(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


class Owner:
    """The one that deploys guests and removes them, whoever is using them."""

    def __init__(self, client: AsyncClient, packages: list[Path], rng: random.Random, did: Counter[str]) -> None:
        self._client = client
        self._packages = packages
        self._random = rng
        self._did = did
        self.serving: list[str] = []

    async def run(self, over: asyncio.Event) -> None:
        """Deploy or remove something every now and then until it is over."""
        while not over.is_set():
            package = self._random.choice(self._packages)
            if package.name in self.serving:
                await self._client.vfms.remove(package.name)
                self.serving.remove(package.name)
                self._did["removed"] += 1
            else:
                await self._client.vfms.deploy(package)
                self.serving.append(package.name)
                self._did["deployed"] += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(0.5, 3)):
                    await over.wait()


class Caller:
    """A caller that does one thing after the other, at random."""

    def __init__(self, url: str, expected: Expected, guests: list[str], rng: random.Random, notes: Notes) -> None:
        self._url = url
        self._expected = expected
        self._guests = guests
        self._random = rng
        self._notes = notes
        self._ai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=600)
        self._acts: list[Callable[[], Awaitable[None]]] = [
            *2 * [self.whole, self.streamed, self.left_midway, self.given_up, self.hung_up],
            self.slow, self.many, self.schema, self.vectors, self.refused, self.hasty, self.guest,
        ]  # fmt: skip

    async def run(self, over: asyncio.Event) -> None:
        """Do something until it is over."""
        async with self._ai:
            while not over.is_set():
                await self._do(self._random.choice(self._acts))

    async def _do(self, act: Callable[[], Awaitable[None]]) -> None:
        self._notes.did[act.__name__] += 1
        try:
            await act()
        except openai.APIError as e:
            self._notes.wrong.append(f"{act.__name__}: {e.code}: {e}")

    def _same(self, got: str, wanted: str, whole: bool) -> None:
        if not (got == wanted if whole else wanted.startswith(got)):
            self._notes.wrong.append(f"another text: {got!r}, not {wanted!r}")

    def _any(self) -> tuple[str, str, bool, str]:
        (vfm, prompt, chat), wanted = self._random.choice(list(self._expected.items()))
        return vfm, prompt, chat, wanted

    def _long(self) -> dict[str, Any]:
        return {"max_tokens": self._random.choice([LONG, LONG, ENDLESS // 100]), **_EXTRA}

    # ---- who stays ----

    async def whole(self) -> None:
        """Read a text as a whole."""
        vfm, prompt, chat, wanted = self._any()
        if chat:
            answer = await self._ai.chat.completions.create(model=vfm, messages=_messages(prompt), **_GREEDY)
            self._same(answer.choices[0].message.content or "", wanted, whole=True)
        else:
            said = await self._ai.completions.create(model=vfm, prompt=prompt, **_GREEDY)
            self._same(said.choices[0].text, wanted, whole=True)

    async def streamed(self, most: int = 1_000_000) -> None:
        """Read so many parts at most; then hang up."""
        vfm, prompt, chat, wanted = self._any()
        stream: Any
        if chat:
            stream = await self._ai.chat.completions.create(
                model=vfm, messages=_messages(prompt), stream=True, **_GREEDY
            )
        else:
            stream = await self._ai.completions.create(model=vfm, prompt=prompt, stream=True, **_GREEDY)
        got, parts, ended = "", 0, False
        async with stream:
            async for part in stream:
                choice = part.choices[0]
                got += (choice.delta.content or "") if chat else choice.text
                ended = choice.finish_reason is not None
                parts += 1
                if parts >= most:
                    break
        self._same(got, wanted, whole=ended)
        if not ended and parts < most:
            self._notes.wrong.append("a stream ended without a finish reason")

    async def slow(self) -> None:
        """Read a little at a time, and then all that is left."""
        reader, writer = await self._post(self._any_body(stream=True, max_tokens=LONG))
        for _ in range(self._random.randint(1, 30)):
            await reader.read(64)
            await asyncio.sleep(0.05)
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while line := await reader.readline():
                    if b"[DONE]" in line:
                        break
        writer.close()

    async def many(self) -> None:
        """Ask for three sampled texts of one prompt."""
        vfm, prompt, *_ = self._any()
        answer = await self._ai.chat.completions.create(
            model=vfm, messages=_messages(prompt), n=3, temperature=0.9, top_p=0.9, seed=self._random.randint(0, 99),
            stop=[" the"], presence_penalty=0.5, logprobs=True, top_logprobs=3, max_tokens=TEXT,
        )  # fmt: skip
        if len(answer.choices) != 3 or any(" the" in (choice.message.content or "") for choice in answer.choices):
            self._notes.wrong.append(f"not three texts before their stops: {answer}")

    async def schema(self) -> None:
        """Ask for a text that matches a JSON schema."""
        vfm, prompt, *_ = self._any()
        card: Any = {"type": "json_schema", "json_schema": {"name": "card", "schema": _CARD}}
        answer = await self._ai.chat.completions.create(
            model=vfm, messages=_messages(prompt), response_format=card, max_tokens=TEXT, temperature=0.7
        )
        choice = answer.choices[0]
        if choice.finish_reason == "stop" and set(json.loads(choice.message.content or "")) != {"ok"}:
            self._notes.wrong.append(f"not what the schema says: {choice}")

    async def vectors(self) -> None:
        """Ask for embeddings."""
        await self._ai.embeddings.create(model="vectors", input=self._random.sample(_PROMPTS, 3))

    # ---- who leaves ----

    async def left_midway(self) -> None:
        """Hang up in the middle of a stream."""
        await self.streamed(most=self._random.randint(1, 20))

    async def given_up(self) -> None:
        """Cancel a call, as a program does."""
        vfm, prompt, *_ = self._any()
        call = self._ai.completions.create(model=vfm, prompt=prompt, n=self._random.choice([1, 1, 3]), **self._long())
        with suppress(TimeoutError):
            await asyncio.wait_for(call, self._random.choice([0.001, 0.01, 0.1, 0.5, 2]))

    async def hung_up(self) -> None:
        """Break the connection: before the first byte, or after some."""
        stream = self._random.random() < 0.7
        reader, writer = await self._post(self._any_body(stream=stream, max_tokens=self._random.choice([LONG, 1])))
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(self._random.choice([0, 0.01, 0.1, 1])):
                await reader.readexactly(self._random.choice([1, 500, 5000]))
        writer.transport.abort()

    # ---- who asks for too much ----

    async def refused(self) -> None:
        """Ask for more than can ever fit."""
        vfm, prompt, *_ = self._any()
        await self._refused(
            {"context_length_exceeded"}, self._ai.completions.create(model=vfm, prompt=prompt, max_tokens=ENDLESS)
        )

    async def hasty(self) -> None:
        """Ask for what there is no time for: for some of it at most."""
        call = self._ai.completions.create(model="hasty", prompt=self._random.choice(_PROMPTS), **self._long())
        await self._refused({"deadline_exceeded"}, call, always=False)

    async def guest(self) -> None:
        """Ask a guest, which may be removed meanwhile."""
        if self._guests:
            call = self._ai.completions.create(model=self._random.choice(self._guests), prompt="tea", **self._long())
            await self._refused(_NOT_THERE, call, always=False)

    async def _refused(self, codes: set[str], call: Awaitable[Any], always: bool = True) -> None:
        try:
            await call
        except openai.APIError as e:
            if e.code not in codes:
                raise
            self._notes.did[f"… {e.code}"] += 1
        else:
            if always:
                self._notes.wrong.append(f"not refused with {codes}")

    # ---- bare sockets ----

    def _any_body(self, **params: Any) -> bytes:
        vfm, prompt, *_ = self._any()
        return json.dumps({"model": vfm, "prompt": prompt, "ignore_eos": True, **params}).encode()

    async def _post(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        at = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer
