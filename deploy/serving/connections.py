"""HTTP/1.1 for an ASGI app: h11 knows the protocol, asyncio carries it, this file knows when to wait and when to end.

A server that strangers may reach has to cut off who says nothing, and one that is replaced while it works has to answer
all that was asked before it goes. Both are matters of a single connection's state, which general servers keep to
themselves: so it is kept here.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import h11

# ASGI's
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADER_SECONDS = 10.0  # a client that takes longer to say what it wants is cut off, after an answer too,
ANSWER_SECONDS = 30.0  # and one that takes longer to read a part of its answer
HEADER_BYTES, PART_BYTES = 65_536, 262_144
QUIET_SECONDS = 1.0  # at the end, a request that was sent may take so long to arrive
LINGER_SECONDS = 2.0  # how long a connection that got its last answer is read, so that the answer is not lost with it
log = logging.getLogger("serving")


class Server:
    """Answers what arrives at a listening socket with an ASGI app.

    Args:
        app: gets the scopes "http"; `scope["crowded"]` tells whether there are more connections than allowed.
        listener: a bound socket.
        max_connections: see `app`.
        requests_per_connection: then a connection is closed, so that clients spread over workers; None: without end.
    """

    def __init__(self, app: App, listener: socket.socket, *, max_connections: int = 256,
                 requests_per_connection: int | None = None) -> None:
        self.app, self.listener = app, listener
        self.max_connections, self.requests_per_connection = max_connections, requests_per_connection
        self.connections: set[Connection] = set()
        self.arriving: set[asyncio.Task] = set()
        self.draining = False

    def start(self) -> None:
        """Accept connections. Raises OSError where another program listens."""
        self.loop = asyncio.get_running_loop()
        self.listener.setblocking(False)
        self.listener.listen(2048)
        self.loop.add_reader(self.listener, self._accept)

    def _accept(self) -> bool:
        """Take one connection, if there is any: workers share the socket, and each should get some."""
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return False
        except OSError as error:  # too many open files: some will be closed
            log.error("a connection cannot be accepted: %s", error.strerror)
            self.loop.remove_reader(self.listener)
            self.loop.call_later(1.0, self._resume)
            return False
        connection.setblocking(False)
        task = self.loop.create_task(self._connect(connection))
        self.arriving.add(task)
        task.add_done_callback(self.arriving.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.connect_accepted_socket(lambda: Connection(self), connection)
        except OSError:  # it has gone already
            connection.close()

    def _resume(self) -> None:
        if not self.draining:
            self.loop.add_reader(self.listener, self._accept)

    async def drain(self, seconds: float) -> None:
        """Accept those who have connected already, then nobody; answer all requests, wait for those on their way, and
        close every connection; what takes longer than `seconds` is cut off."""
        self.loop.remove_reader(self.listener)
        self.draining = True
        while self._accept():
            pass
        self.listener.close()
        start = time.monotonic()
        while (self.connections or self.arriving) and time.monotonic() - start < seconds:
            if time.monotonic() - start > QUIET_SECONDS:
                for connection in [connection for connection in self.connections if connection.idle()]:
                    connection.transport.close()
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            log.error("a request was cut off: it took longer than the %.0f seconds that the end may take", seconds)
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """One client. Bytes are read only while somebody waits for them, so that nobody fills the memory."""

    transport: Any

    def __init__(self, server: Server) -> None:
        self.server, self.loop = server, server.loop
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES)
        self.exchange: asyncio.Task | None = None  # the request under way
        self.request: h11.Request | None = None
        self.requests, self.header = 0, b""
        self.lost = self.ending = False
        self.changed, self.writable = asyncio.Event(), asyncio.Event()
        self.writable.set()
        self.timer: asyncio.TimerHandle | None = None

    def idle(self) -> bool:
        """Whether it neither answers a request nor has a part of one."""
        return self.exchange is None and not self.ending and not self.h11.trailing_data[0]

    # --- asyncio's calls

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.connections.add(self)
        self._wait_at_most(HEADER_SECONDS)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.server.connections.discard(self)
        self._wait_at_most(None)
        self.changed.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.ending:
            return
        self.h11.receive_data(data)
        if self.exchange is None:
            self._next_request()
        else:
            self.transport.pause_reading()
            self.changed.set()

    def eof_received(self) -> bool:
        """True keeps the other direction open: some clients end theirs and wait for the answer."""
        if self.ending:
            return False
        self.h11.receive_data(b"")
        self.changed.set()
        if self.exchange is None:
            self._next_request()
        return self.exchange is not None

    # --- requests

    def _wait_at_most(self, seconds: float | None) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _next_request(self) -> None:
        try:
            event = self.h11.next_event()
        except h11.RemoteProtocolError as error:
            body = b'{"error":"this is not a valid HTTP request"}'
            self._write(h11.Response(status_code=error.error_status_hint or 400, headers=[
                ("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]))
            self._write(h11.Data(body))
            self._write(h11.EndOfMessage())
            self._linger()
            return
        if isinstance(event, h11.Request):
            self._wait_at_most(None)
            self.request = event
            self.requests += 1
            self.exchange = self.loop.create_task(self._answer(event))
        elif event is not h11.NEED_DATA:  # the client has gone
            self.transport.close()

    async def _answer(self, request: h11.Request) -> None:
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode(), "method": request.method.decode("ascii"), "scheme": "http",
            "path": unquote(path.decode("ascii", "replace")), "raw_path": path, "query_string": query, "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers],
            "client": address(self.transport, "peername"), "server": address(self.transport, "sockname"),
            "crowded": len(self.server.connections) > self.server.max_connections}
        try:
            await self.server.app(scope, self._receive, self._send)
        except Exception:
            log.exception("a request was not answered")
        self.exchange = None
        with contextlib.suppress(h11.RemoteProtocolError):  # an app reads what it wants, as nothing of a GET
            while self.h11.their_state is h11.SEND_BODY and self.h11.next_event() is not h11.NEED_DATA:
                pass
        if self.lost:
            return
        if self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE:
            self.h11.start_next_cycle()
            self._wait_at_most(HEADER_SECONDS)
            self.transport.resume_reading()
            self._next_request()
        elif self.h11.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._linger()
        else:  # the app failed in the midst of its answer
            self.transport.abort()

    def _linger(self) -> None:
        """End our direction and read until the client ends its own: a socket that is closed on unread bytes resets the
        connection, and the answer with it."""
        self.ending = True
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self.transport.resume_reading()
        self._wait_at_most(LINGER_SECONDS)

    # --- ASGI's calls

    async def _receive(self) -> Message:
        while not self.lost:
            if self.h11.they_are_waiting_for_100_continue:
                self._write(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                event = self.h11.next_event()
            except h11.RemoteProtocolError:
                break
            if isinstance(event, h11.Data):
                return {"type": "http.request", "body": bytes(event.data), "more_body": True}
            if isinstance(event, h11.EndOfMessage):
                return {"type": "http.request", "body": b"", "more_body": False}
            if event is not h11.NEED_DATA:
                break
            self.changed.clear()
            self.transport.resume_reading()
            await self.changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.lost:
            return
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            if self.server.draining or self.requests == self.server.requests_per_connection:
                headers = [(name, value) for name, value in headers if name.lower() != b"connection"]
                headers.append((b"Connection", b"close"))
            self.header = self.h11.send(h11.Response(status_code=message["status"], headers=headers)) or b""
            return  # it is sent with what follows
        body = message.get("body", b"") if self.request and self.request.method != b"HEAD" else b""
        for start in range(0, len(body), PART_BYTES):
            self._write(h11.Data(body[start:start + PART_BYTES]))
            try:
                await asyncio.wait_for(self.writable.wait(), ANSWER_SECONDS)
            except asyncio.TimeoutError:
                self.transport.abort()
            if self.lost or self.transport.is_closing():
                return
        if not message.get("more_body", False):
            self._write(h11.EndOfMessage())

    def _write(self, event: Any) -> None:
        data, self.header = self.header + (self.h11.send(event) or b""), b""
        if data:
            self.transport.write(data)


def address(transport: Any, kind: str) -> tuple[str, int] | None:
    """Host and port of one end of a connection."""
    place = transport.get_extra_info(kind)
    return tuple(place[:2]) if isinstance(place, tuple) else None


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet. Raises OSError where the address cannot be listened at."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # elsewhere this option would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
