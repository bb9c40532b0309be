"""The record of a file: whose it is, what for, how large, and until when. Its bytes lie in the artifact store under its id."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field, StringConstraints

from fmplex_broker.specs.schema import Spec

Purpose: TypeAlias = Literal["batch", "batch_output", "fine-tune", "fine-tune-results"]
UploadPurpose: TypeAlias = Literal["batch", "fine-tune"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
LIFE_S = 30 * 86_400  # how long a file is kept unless its maker says otherwise
LEAST_LIFE_S, MOST_LIFE_S = 3_600, 30 * 86_400
_ID = re.compile(r"file-[0-9a-f]{24}")
FileId = Annotated[str, StringConstraints(pattern=rf"^{_ID.pattern}$")]


class FileRecord(Spec):
    """A file. `owner`: the name of the key that made it; `created_at`, `expires_at`: seconds since 1970."""

    id: FileId
    owner: str
    bytes: int = Field(ge=0)
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose

    def shown(self) -> dict[str, str | int]:
        """Return the file in OpenAI's shape."""
        return {"object": "file", **self.model_dump(exclude={"owner"}), "status": "processed"}


def new_file_id() -> str:
    """Make the id of a new file. Ids sort by the time when they were made."""
    return f"file-{_moment(time.time())}{secrets.token_hex(6)}"


def derived_file_id(made_at: float, what: str) -> str:
    """Return the id of the file that `what` became at `made_at` (seconds since 1970): the same for the same."""
    return f"file-{_moment(made_at)}{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def is_file_id(text: str) -> bool:
    """Tell whether a text could be the id of a file."""
    return _ID.fullmatch(text) is not None


def _moment(seconds: float) -> str:
    return f"{round(seconds * 1000):012x}"
