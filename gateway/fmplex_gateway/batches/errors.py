"""Why a line of a batch was not run."""

from __future__ import annotations

from fmplex_broker.errors import FmplexError


class NotRun(FmplexError):
    """The line was not run."""

    code, status = "not_run", 409


class BatchExpired(NotRun):
    """The batch's completion window was over first."""

    code = "batch_expired"


class BatchCancelled(NotRun):
    """The batch was cancelled first."""

    code = "batch_cancelled"


class InputFileDeleted(NotRun):
    """The batch's input file was deleted first."""

    code = "input_file_deleted"


class LineError(NotRun):
    """The line is no call that its batch makes. `line`: its number; `custom_id`: its id, None if it has none."""

    code, status = "invalid_line", 400
    line: int
    custom_id: str | None


class InvalidJsonLine(LineError):
    """The line is not one JSON object."""

    code = "invalid_json_line"


class LineTooLong(LineError):
    """The line has too many bytes, or is made of too many values."""

    code = "line_too_long"


class MissingCustomId(LineError):
    """The line has no `custom_id`."""

    code = "missing_custom_id"


class InvalidCustomId(LineError):
    """The `custom_id` is not a short text of printable characters."""

    code = "invalid_custom_id"


class InvalidMethod(LineError):
    """The line has another method than POST."""

    code = "invalid_method"


class UrlMismatch(LineError):
    """The line is for another endpoint than its batch."""

    code = "url_mismatch"


class InvalidBody(LineError):
    """The line has no `body`, or one that is no object."""

    code = "invalid_body"


class StreamNotSupported(LineError):
    """The line asks for its answer in parts."""

    code = "stream_not_supported"


class SeveralNotSupported(LineError):
    """The line asks for several texts at once."""

    code = "n_not_supported"
