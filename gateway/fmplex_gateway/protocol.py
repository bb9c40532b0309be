"""One HTTP/1.1 connection: uvicorn's, and what that lacks: limits of time for those who send and those who read, small turns, and
answers for those who have closed only their side."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for a whole head, and for the rest of a body whose request has been answered
REST_S = 75.0  # between requests: longer than clients keep a connection (5 to 60 s); some would write to one that is being closed
STALL_S = 30.0  # an answer of which nothing has been read for so long is not waited for
PROBE_S = 1.0  # how often to look whether a client that has closed its side still listens
# One read gives the event loop to this connection for as long as its parsing takes: h11 needs 10 µs for a chunk of one byte.
_READ_BYTES = 16_384
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.BufferedProtocol):
    """A connection that is read in small turns. It takes what uvicorn makes its protocols of."""

    def __init__(self, **named: Any) -> None:
        self._http = LimitedHttp(**named)
        self._buffer = memoryview(bytearray(_READ_BYTES))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._http.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the room for the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has been read."""
        self._http.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        """Note that the client has closed its side; True if the connection is kept for an answer."""
        return self._http.eof_received()

    def pause_writing(self) -> None:
        """Stop writing."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Write again."""
        self._http.resume_writing()


class LimitedHttp(H11Protocol):
    """HTTP with limits. How fast a body must come is not decided here: whoever reads it knows (`receiving.py`)."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.timeout_keep_alive = REST_S  # type: ignore[assignment]  # uvicorn says int
        self._owed: Any = None  # what the client has to send: h11.IDLE, a head; h11.SEND_BODY, the rest of a body
        self._owed_timer: asyncio.TimerHandle | None = None
        self._begun = False  # some of a head has come
        self._unread = 0.0  # bytes of answers that the client had not taken when last looked at
        self._read_timer: asyncio.TimerHandle | None = None
        self._half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin: a request is to come."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        for timer in (self._owed_timer, self._read_timer):
            if timer is not None:
                timer.cancel()

    # --- what the client sends ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take what has been read."""
        super().data_received(data)
        self._watch()
        if self._owed is h11.IDLE and not self._begun:
            self._begun = True
            if self.cycle is not None:
                self._set_limit()  # it may have rested

    def on_response_complete(self) -> None:
        """Go on after an answer: with what has come meanwhile, or with waiting for more."""
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()
        self._watch()

    def _watch(self) -> None:
        """Set the limits that hold for the state the connection is in now."""
        if self.transport.is_closing():
            self._await_reader()
        owed = self.conn.their_state if self._between_requests() else None
        if owed is self._owed:
            return
        self._owed, self._begun = owed, False
        self._set_limit()

    def _set_limit(self) -> None:
        if self._owed_timer is not None:
            self._owed_timer.cancel()
        self._owed_timer = None if self._owed is None else self.loop.call_later(HEAD_S, self._came_too_late)

    def _between_requests(self) -> bool:
        """Tell whether nothing is being answered, and the client has to send: a head, or the rest of a body nobody reads."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def _came_too_late(self) -> None:
        if self._owed is h11.IDLE and self.cycle is not None and not self._begun:
            return  # it rests
        if self._begun:  # else nobody waits for an answer
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been of no use for a while."""
        super().timeout_keep_alive_handler()
        self._watch()

    # --- a client that has closed its side ---------------------------------------------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the answer, if a whole request is being answered; True if so."""
        if not self._being_answered():
            self.loop.call_soon(self._watch)  # it is closed then
            return False
        if not self._half_closed:
            self._half_closed = True
            self.loop.call_later(PROBE_S, self._probe)
        return True

    def _being_answered(self) -> bool:
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        return whole and self.cycle is not None and not self.cycle.response_complete

    def _probe(self) -> None:
        """Find out whether the client still listens. One that has closed everything looks like one that has closed its side only,
        until it is sent something: then its system resets the connection."""
        if self.transport.is_closing():
            return
        sock: socket.socket = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        # What is harmless to send: HTTP/1.1 allows any number of these before an answer (RFC 9110, 15.2).
        waiting = (
            self._being_answered() and self.conn.our_state is h11.SEND_RESPONSE and not self.cycle.response_started
        )
        if waiting and self.scope["http_version"] == "1.1":
            event = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(event) or b"")
        self.loop.call_later(PROBE_S, self._probe)

    # --- what the client reads ---------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Stop writing: the client does not keep up."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Write again: the client has taken some."""
        super().resume_writing()
        self._unread = math.inf

    def _await_reader(self) -> None:
        if self._read_timer is None:
            self._unread = self.transport.get_write_buffer_size()
            self._read_timer = self.loop.call_later(STALL_S, self._check_reader)

    def _check_reader(self) -> None:
        """Give up a client that has taken nothing since the last look; go on waiting for one that reads."""
        self._read_timer = None
        unread = self.transport.get_write_buffer_size()
        if not unread or not (self.flow.write_paused or self.transport.is_closing()):
            return
        if unread < self._unread:
            self._await_reader()
        else:
            self.transport.abort()
