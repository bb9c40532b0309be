"""A gateway of a few lines, on a socket, that keeps files and batches as OpenAI's API has them, without a fleet.

A batch looks validating when it is made, in progress with half of its lines when it is looked at next, and completed after that.
A line whose input is `REFUSED` fails; the others are answered with their input.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.gateways import REFUSED

RUN = {"version": "v1", "units": 3, "queue_ms": 1.5, "run_ms": 2.5, "load_ms": 0.0}


class BatchGateway:
    """What the gateway has been given, and how it is to behave. `lost`: requests to answer with nothing, as (method, path);
    `cuts`: downloads to break off in their middle; `stuck`: batches stay in progress."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lost: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.cuts = 0
        self.stuck = False

    def add_file(self, content: bytes, name: str) -> dict[str, Any]:
        file_id = f"file-{len(self.files):04}"
        self.files[file_id], self.names[file_id] = content, name
        return {"id": file_id, "object": "file", "bytes": len(content), "filename": name, "purpose": "batch"}

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch_{len(self.batches):04}", "object": "batch", "status": "validating", "created_at": 1_800_000_000,
            "request_counts": {"total": 0, "completed": 0, "failed": 0}, "newer": 1, "metadata": None, **body,
        }  # fmt: skip
        self.batches[batch["id"]] = batch
        return dict(batch)

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch on, and show it."""
        if batch["status"] == "cancelling":
            self._end(batch, "cancelled")
        elif batch["status"] == "in_progress" and not self.stuck:
            self._end(batch, "completed")
        elif batch["status"] == "validating":
            lines = self._lines(batch)
            batch["status"] = "in_progress" if lines else "failed"
            batch["request_counts"] = {"total": len(lines), "completed": len(lines) // 2, "failed": 0}
            if not lines:
                fault = {"code": "empty_file", "message": "there is no line", "line": None, "param": None}
                batch["errors"] = {"object": "list", "data": [fault]}
        return batch

    def _lines(self, batch: dict[str, Any]) -> list[tuple[int, bytes]]:
        content = self.files[batch["input_file_id"]].removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return [(number, raw) for number, raw in enumerate(content, 1) if raw.strip()]

    def _end(self, batch: dict[str, Any], status: str) -> None:
        rows = [_row(number, raw, status) for number, raw in self._lines(batch)]
        # Answers come as they come: here the last one first.
        good = b"".join(row for row, failed in reversed(rows) if not failed)
        bad = b"".join(row for row, failed in reversed(rows) if failed)
        batch["status"] = status
        batch["output_file_id"] = self.add_file(good, "output")["id"] if good else None
        batch["error_file_id"] = self.add_file(bad, "errors")["id"] if bad else None
        failed = sum(failed for _, failed in rows)
        batch["request_counts"] = {"total": len(rows), "completed": len(rows) - failed, "failed": failed}


def _row(number: int, raw: bytes, status: str) -> tuple[bytes, bool]:
    """What comes of a line, and whether that is an error."""
    row: dict[str, Any] = {
        "id": f"batch_req_{number}",
        "custom_id": None,
        "response": None,
        "error": None,
        "line": number,
    }
    try:
        asked = json.loads(raw)
        row["custom_id"] = asked["custom_id"]
        inputs, infer = asked["body"].get("inputs"), "vfms" in asked["url"]
    except (ValueError, KeyError, TypeError):
        row["error"] = {
            "code": "invalid_json_line",
            "message": f"line {number} is not JSON",
            "line": number,
            "param": None,
        }
        return _dumped(row), True
    if status == "cancelled":
        row["error"] = {"code": "batch_cancelled", "message": "the batch was cancelled", "line": number, "param": None}
        return _dumped(row), True
    body: dict[str, Any] = {"model": asked["body"].get("model"), "choices": [], "usage": {"total_tokens": 7}}
    if infer:
        vfm = asked["url"].split("/")[3]
        body = {"vfm": vfm, "version": "v1", "usage": {"units": 3}, "runs": [RUN] * len(inputs), "outputs": inputs}
    code, refused = 200, inputs == [REFUSED]
    if refused:
        code, body = 422, {"error": {"code": "text_too_long", "message": "is refused", "field": "inputs.0"}}
    row["response"] = {"status_code": code, "request_id": "req_1", "body": body}
    row["version"] = "v1"
    return _dumped(row), refused


def _dumped(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _handler(gateway: BatchGateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            path, query = self._asked()
            if path == "/v1/files":
                self._answer(gateway.add_file(content, query["filename"]))
            elif path == "/v1/batches":
                self._answer(gateway.create(json.loads(content)))
            elif (batch := self._batch(path.removesuffix("/cancel"))) is not None:
                if batch["status"] in ("completed", "failed"):
                    self._answer({"error": {"code": "conflict", "message": "it has ended"}}, 409)
                    return
                if batch["status"] == "validating":
                    batch["status"] = "cancelled"  # without files
                elif batch["status"] != "cancelled":
                    batch["status"] = "cancelling"
                self._answer(batch)

        def do_GET(self) -> None:
            path, query = self._asked()
            if found := re.fullmatch("/v1/files/(.*)/content", path):
                self._content(gateway.files[found[1]])
            elif path == "/v1/batches":
                self._answer(self._page(int(query["limit"]), query.get("after")))
            elif (batch := self._batch(path)) is not None:
                self._answer(gateway.look(batch))

        def _asked(self) -> tuple[str, dict[str, str]]:
            parts = urlsplit(self.path)
            gateway.requests.append(f"{self.command} {parts.path}")
            return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}

        def _batch(self, path: str) -> dict[str, Any] | None:
            batch = gateway.batches.get(path.removeprefix("/v1/batches/"))
            if batch is None:
                self._answer({"error": {"code": "unknown_batch", "message": "no such batch"}}, 404)
            return batch

        def _page(self, limit: int, after: str | None) -> dict[str, Any]:
            newest = sorted(gateway.batches, reverse=True)
            left = newest[newest.index(after) + 1 :] if after else newest
            data = [gateway.batches[name] for name in left[:limit]]
            return {"object": "list", "data": data, "has_more": len(left) > limit}

        def _content(self, content: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
            rest = content[int(asked[1]) :] if asked else content
            cut = gateway.cuts > 0 and len(rest) > 1
            gateway.cuts -= cut
            self.send_response(206 if asked else 200)
            self.send_header("content-length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2] if cut else rest)
            self.close_connection = cut

        def _answer(self, value: Any, status: int = 200) -> None:
            asked = (self.command, urlsplit(self.path).path)
            if asked in gateway.lost:
                gateway.lost.remove(asked)
                self.close_connection = True
                return
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def batch_gateway() -> Iterator[BatchGateway]:
    """Give a running gateway for batches."""
    gateway = BatchGateway()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(gateway)) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield gateway
        server.shutdown()
        thread.join()
