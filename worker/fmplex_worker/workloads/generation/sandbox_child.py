"""The process behind `sandbox.Sandbox`: it answers one question after the other, until there are none or one kills it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from fmplex_worker.workloads.generation.grammars import compiled, servable, tokenizer_of, try_out
from fmplex_worker.workloads.generation.sandbox import read, write

_SPARE_BYTES = 1 << 30
_MOST_S = 10  # of processor time a question: whoever waits for the answer gives up before, unless it is dead
_MOST_CHARS = 1 << 22  # of a chat; tokenizing takes a second for so many
_MOST_SAID = 500  # characters of an error
_HAS = Path("/proc/self/statm")


class SandboxChild:
    """State of the process between questions: the tokenizer, once it was sent."""

    def __init__(self) -> None:
        self._tokenizer: LLTokenizer | None = None
        _limit_memory()

    def answer(self, question: Mapping[str, Any]) -> str:
        """Answer a question. Raises whatever goes wrong."""
        if "template" in question:
            return _rendered(question["template"], question["messages"], question["variables"])
        if "tokenizer" in question:
            _limit(resource.RLIMIT_AS, None)
            self._tokenizer = tokenizer_of(question["tokenizer"], question["vocabulary"], question["ends"])
            _limit_memory()
        else:
            assert self._tokenizer is not None
            schema = servable(question["schema"], question["strict"])
            try_out(compiled(self._tokenizer, schema))
            return schema
        return ""


def _rendered(template: str, messages: list[dict[str, str]] | None, variables: Mapping[str, Any]) -> str:
    """Render a template; if `messages` is None, only compile it."""
    # As the tokenizer's `apply_chat_template` calls it. It is a sandbox: a template reaches nothing but the messages.
    render: Any = render_jinja_template  # its annotations are wrong
    if messages is None:
        render([], chat_template=template)
        return ""
    (text,), _ = render([messages], chat_template=template, **variables)
    if len(text) > _MOST_CHARS:
        raise ValueError(f"it makes {len(text)} characters of them, and {_MOST_CHARS} are the most; send less")
    return str(text)


def _limit_memory() -> None:
    """Limit the memory to what it has, and some; only Linux says what it has, and keeps to the limit."""
    if not _HAS.exists():
        return
    pages = int(_HAS.read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + _SPARE_BYTES)


def _limit(what: int, most: int | None) -> None:
    """Limit a resource; None: as far as this process may go."""
    _, hard = resource.getrlimit(what)
    soft = hard if most is None or most > hard >= 0 else most
    resource.setrlimit(what, (soft, hard))


def main() -> None:
    """Answer questions from standard input on standard output until it closes."""
    questions, answers = os.dup(0), os.dup(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child = SandboxChild()
    # What a library prints is no answer; and one that dies says so at length. Only what keeps this from starting is of use.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    write(answers, {"value": "ready"})
    while True:
        try:
            question = read(questions)
        except EOFError:
            os._exit(0)  # at once: taking everything down in order takes a second
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + _MOST_S)
        try:
            answer = {"value": child.answer(question)}
        except MemoryError:
            os._exit(1)  # what it has left may not do for the next one
        except Exception as e:  # templates raise what they like
            answer = {"error": (str(e) or type(e).__name__)[:_MOST_SAID]}
        write(answers, answer)


if __name__ == "__main__":
    main()
