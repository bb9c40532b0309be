"""Looking through a batch's input file before any of it runs."""

from __future__ import annotations

from typing import IO, NamedTuple


class BatchError(NamedTuple):
    """Why a batch fails as a whole. `line`: the number of the line at fault, None if it is none; `param`: the part of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Checked(NamedTuple):
    """What was found in an input file: how many lines are not blank, and why the batch must not run, nothing if it may."""

    total: int
    errors: list[BatchError]


def check_file(file: IO[bytes]) -> Checked:
    """Count the lines of an input file and look for what fails the batch as a whole. Blocks; the memory it takes does not grow
    with the file. Raises what reading the file raises."""
    raise NotImplementedError
