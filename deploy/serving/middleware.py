"""What stands between the connections and the routes: a prefix, a number for each request, limits."""
from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from typing import Any

from connections import App, Message, Receive, Send
from starlette.exceptions import HTTPException
from starlette.responses import Response

DRAIN_SECONDS = 2.0  # how long the rest of a refused request is read
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")  # what may go into a log and a header as it came
log = logging.getLogger("serving")


class JsonAnswer(Response):
    """JSON in ASCII, so that it holds whatever a class is called, also halves of letters."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def prefixed(app: App, root_path: str) -> App:
    """The app below a prefix, as behind a proxy that leaves it in the path; paths without it work too, since other
    proxies cut it off, and probes come without a proxy."""
    async def cut(scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if root_path and (path == root_path or path.startswith(f"{root_path}/")):
            scope = {**scope, "path": path[len(root_path):] or "/"}
        await app(scope, receive, send)

    return cut


def numbered(app: App, *, log_all: bool, when_crowded: tuple[str, ...]) -> App:
    """The app with `scope["request_id"]`: the client's X-Request-Id if it is a plain word, else one of our own. The
    answer has it, and so has its line in the log: one for each answer of 400 and above, or for each.

    Where there are too many connections, only the paths `when_crowded` get to the app.
    """
    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        name = scope["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        start, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
            await send(message)

        try:
            if scope.get("crowded") and scope["path"] not in when_crowded:
                await refused(scope, HTTPException(503, "too many connections; try again in a second",
                                                   {"Retry-After": "1"}))(scope, receive, noting)
            else:
                await app(scope, receive, noting)
        except Exception:  # whatever it is, the client was told (or has gone), and here is the reason
            log.exception("request %s: %s %s failed", name, scope["method"], ascii(scope["path"])[1:201])
            if not status:
                await noting_failure(noting, name)
        if log_all or status >= 400:
            log.info("request %s: %s %s %d in %.1f ms", name, scope["method"], ascii(scope["path"])[1:-1][:200], status,
                     1000 * (time.perf_counter() - start))

    return answer


async def noting_failure(send: Send, name: str) -> None:
    body = json.dumps({"error": "the service failed; its log says why", "request_id": name}).encode()
    await send({"type": "http.response.start", "status": 500, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def refused(scope: Message, error: HTTPException) -> Response:
    """What was not read of the request must not be taken for the next one: the connection ends with the answer."""
    headers = {**(error.headers or {}), "Connection": "close"}
    content = {"error": error.detail, **({"request_id": scope["request_id"]} if "request_id" in scope else {})}
    return JsonAnswer(content, status_code=error.status_code, headers=headers)


def guarded(app: App, max_bytes: int) -> App:
    """The app behind a guard: a body is cut off with a 413 where it exceeds the limit, whatever its headers promised;
    and what is left of a refused one is read for a while, since some clients read an answer only after they have sent
    all."""
    async def guard(scope: Message, receive: Receive, send: Send) -> None:
        total, ended = 0, False

        async def counted() -> Message:
            nonlocal total, ended
            message = await receive()
            ended = not message.get("more_body", False)
            total += len(message.get("body", b""))
            check_size(total, max_bytes)
            return message

        async def drain() -> None:
            nonlocal total, ended
            while not ended and total < 8 * max_bytes:
                message = await receive()
                ended = not message.get("more_body", False)
                total += len(message.get("body", b""))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(drain(), DRAIN_SECONDS)
            await send(message)

        await app(scope, counted, answer)

    return guard


def check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise HTTPException(413, f"the request is larger than {max_bytes} bytes")
