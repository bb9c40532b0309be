"""Texts and conversations to learn from: what there is to learn, and what is wrong, named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.texts import Conversation, Message, PlainText, read

ASKED, SAID = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here."}
GOOD = {"messages": [ASKED, SAID]}


def _write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def _chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": messages}


def test_conversations_and_texts_are_read(tmp_path: Path) -> None:
    before = {**SAID, "weight": 0}
    records = read(
        _write(tmp_path / "d", GOOD, "", {"text": "a text"}, _chat(ASKED, before, ASKED, {**SAID, "weight": 1}))
    )
    asked, said = Message(role="user", content="Where is it?"), Message(role="assistant", content="Here.")
    assert records[:2] == [Conversation(messages=(asked, said)), PlainText(text="a text")]
    assert isinstance(records[2], Conversation)
    assert [m.model_dump() for m in records[2].messages] == [ASKED, SAID, ASKED, SAID], "templates know no weight"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        ("[1]", "not a JSON object"),
        ({}, "key 'text' is missing"),
        ({"text": ""}, "'text': .*at least 1"),
        ({"text": 3}, "'text': .*string"),
        ({"messages": []}, "'messages': at least 1 must be given, not 0"),
        (_chat(SAID), "an answer to nothing"),
        (_chat(ASKED, {"role": "assistant"}), "key 'messages.1.content' is missing"),
        (_chat(ASKED, {**SAID, "content": None}), "'messages.1.content': .*string"),
        (_chat(ASKED, {**SAID, "content": ""}), "'messages.1.content': "),
        (_chat(ASKED, {**SAID, "role": "tool"}), "'messages.1.role': .*'assistant'"),
        (_chat(ASKED, {**SAID, "tool_calls": []}), "'messages.1.tool_calls': "),
        ({**GOOD, "tools": []}, "'tools': "),
        (_chat(SAID, ASKED), "nothing to learn: the last message is of the user"),
        (_chat(ASKED, {**SAID, "weight": 0}), "nothing to learn: the last message has weight 0"),
        (_chat(ASKED, {**SAID, "content": " \n"}), "nothing to learn: the last message is blank"),
        (_chat(ASKED, {**SAID, "weight": 2}), "'messages.1.weight': "),
        (_chat(ASKED, {**SAID, "weight": 1}, ASKED, SAID), "another has weight 1; make a row of each answer"),
        ({"prompt": "a", "completion": "b"}, "has 'prompt'; write"),
        ({"input": GOOD, "preferred_output": [], "non_preferred_output": []}, r"is a preference \(DPO\); only supervised"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = _write(tmp_path / "d", *[GOOD] * 3, "", line, *[GOOD] * 3)
    with pytest.raises(InvalidInput, match=f"line 5: .*{message}") as e:
        read(path)
    assert e.value.field == "data"
    assert e.value.message.count("line ") == 1


def test_ten_bad_lines_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as e:
        read(_write(tmp_path / "d", *["{"] * 14, GOOD))
    assert "14 bad line(s)" in e.value.message
    assert [f"line {n}:" in e.value.message for n in (1, 10, 11)] == [True, True, False]
    assert "(and 4 more)" in e.value.message


def test_one_text_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds 1 texts; give at least 2"):
        read(_write(tmp_path / "d", GOOD))
