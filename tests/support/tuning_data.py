"""Training files, as people upload them."""

from __future__ import annotations

import json
from typing import Any

LABELLED = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": "Here."}]}
    for n in range(6)
]


def jsonl(*lines: Any) -> bytes:
    """Lines of JSON; texts as they are."""
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
