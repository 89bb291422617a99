"""deploy/serving/connections.py and middleware.py: what a connection may do, and how it ends."""
import asyncio
import importlib
import socket
import sys
import threading
import time

import pytest
from helpers import ROOT

for package in ("starlette", "h11", "multipart", "prometheus_client", "PIL"):
    pytest.importorskip(package)
httpx = pytest.importorskip("httpx")
sys.path[:0] = [str(ROOT / "deploy" / name) for name in ("serving", "python")]
connections, middleware = (importlib.import_module(name) for name in ("connections", "middleware"))


async def deaf(scope, receive, send):
    """Reads nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def echo(scope, receive, send):
    """Answers with method, path and body; waits as long as the path says."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        parts.append(message["body"])
        more = message["more_body"]
    body = b"".join(parts)
    if scope["path"].startswith("/wait"):
        await asyncio.sleep(float(scope["path"][len("/wait"):]))
    if scope["path"] == "/broken":
        raise ValueError("broken")
    text = b"%s %s %s" % (scope["method"].encode(), scope["path"].encode(), body)
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(text)).encode())]})
    await send({"type": "http.response.body", "body": text})


class Running:
    """A server in a thread of its own."""

    def __init__(self, app=echo, **settings):
        self.loop, self.listener = asyncio.SelectorEventLoop(), connections.bind("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.server = connections.Server(app, self.listener, **settings)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.call(self.start())

    async def start(self):
        self.server.start()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def client(self, data=b""):
        deadline = time.monotonic() + 5
        while True:
            try:
                client = socket.create_connection(self.address, timeout=10)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
        client.sendall(data)
        return client

    def close(self):
        if not self.server.draining:
            self.call(self.server.drain(0)).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def running(request):
    server = Running(**getattr(request, "param", {}))
    yield server
    server.close()


def rest(client):
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return data


GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_connection_carries_many_requests_also_such_that_come_at_once(running):
    chunks = b"Transfer-Encoding: chunked\r\n\r\n1\r\np\r\n2\r\nqr\r\n0\r\n\r\n"
    chunked = b"POST /d HTTP/1.1\r\nHost: a\r\n" + chunks
    with running.client(GET % b"/a" + GET % b"/b" + b"POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz"
                        + chunked + b"HEAD /e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as client:
        answer = rest(client)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 ")[1:]]
    assert bodies == [b"GET /a ", b"GET /b ", b"POST /c xyz", b"POST /d pqr", b""]


def test_a_client_that_ends_its_direction_gets_its_answer(running):
    with running.client(GET % b"/wait0.2") as client:
        client.shutdown(socket.SHUT_WR)
        assert rest(client).endswith(b"GET /wait0.2 ")


def test_offers_of_other_protocols_are_not_taken(running):
    """Java's client offers HTTP/2 in each request."""
    offer = b"Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
    with running.client(b"POST /a HTTP/1.1\r\n" + offer + b"Content-Length: 1\r\n\r\nx") as client:
        assert client.recv(1000).endswith(b"POST /a x")
        client.sendall(b"GET /b HTTP/1.1\r\n" + offer + b"\r\n")
        assert client.recv(1000).endswith(b"GET /b ")
    with running.client(b"GET /old HTTP/1.0\r\n\r\n") as client:
        assert rest(client).endswith(b"GET /old ")


def test_who_does_not_read_his_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.3)
    ended = threading.Event()

    async def much(scope, receive, send):
        size = 30_000_000
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})
        ended.set()

    running = Running(much)
    with running.client(GET % b"/") as slow:
        assert ended.wait(5)
        assert len(rest(slow)) < 30_000_000
        # The other one only has to be read in time, which a busy machine may be late with.
        monkeypatch.setattr(connections, "ANSWER_SECONDS", 30.0)
        with running.client(GET % b"/") as quick:
            quick.shutdown(socket.SHUT_WR)
            assert len(rest(quick)) > 30_000_000
    running.close()


def test_expect_100_continue(running):
    with running.client(b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n") as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"hi")
        assert client.recv(1000).endswith(b"POST /a hi")


def test_a_large_body_is_not_read_before_somebody_wants_it():
    """An app that does not read leaves the client waiting: the kernel's buffers are full, the memory is not."""
    gate = threading.Event()

    async def late(scope, receive, send):
        while not gate.is_set():
            await asyncio.sleep(0.01)
        await echo(scope, receive, send)

    running, size = Running(late), 20_000_000
    header = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    with running.client(header) as client:
        client.settimeout(0.3)
        sent = 0
        with pytest.raises(socket.timeout):
            while True:
                sent += client.send(bytes(1_000_000))
        assert sent < size / 2
        connection, = running.server.connections
        assert len(connection.h11.trailing_data[0]) < 1_000_000
        gate.set()
        client.settimeout(20)
        client.sendall(bytes(size - sent))
        assert len(rest(client)) > size
    running.close()


def test_who_says_nothing_or_a_part_is_cut_off(running, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)  # a busy machine may halt a client for half of this
    for data in (b"", b"GET / HTTP/1.1\r\nX-Long: ", GET % b"/a"):
        start = time.monotonic()
        with running.client(data) as client:
            assert rest(client).endswith(b"/a " if data.endswith(b"\r\n\r\n") else b"")
        assert 0.9 < time.monotonic() - start < 8
    start = time.monotonic()
    with running.client(b"GET / HTTP/1.1\r\nX-Long: ") as client, pytest.raises(OSError):
        while time.monotonic() - start < 20:  # a byte now and then is not enough
            client.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - start < 8
    with running.client(GET % b"/wait1.5") as client:  # but an answer may take its time
        assert client.recv(1000).endswith(b"/wait1.5 ")


def test_headers_without_end_get_a_4xx(running):
    with running.client() as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * 200_000)
        assert rest(client).startswith(b"HTTP/1.1 4")


def test_a_failing_app_ends_its_connection_only(running):
    with running.client(GET % b"/broken") as client, running.client(GET % b"/fine") as other:
        assert rest(client) == b""
        assert other.recv(1000).endswith(b"/fine ")


@pytest.mark.parametrize("running", [{"app": deaf}], indirect=True)
def test_an_app_that_reads_nothing_keeps_its_connections(running):
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz"
    with running.client(GET % b"/a" + post + GET % b"/b" + post[:-1]) as client:
        assert rest(client).count(b"HTTP/1.1 200") == 4  # and no more: a body that never came ends it


@pytest.mark.parametrize("running", [{"requests_per_connection": 2}], indirect=True)
def test_a_connection_ends_after_so_many_requests(running):
    with running.client(GET % b"/a" + GET % b"/b" + GET % b"/c") as client:
        answer = rest(client)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.lower().count(b"connection: close") == 1


def test_the_end_loses_no_request(running, monkeypatch):
    """At the end there are one under way, a half one, two that connected and are silent, of which one asks a little
    later, one that was answered and has asked again, and some that nobody has accepted yet."""
    monkeypatch.setattr(connections, "QUIET_SECONDS", 3.0)  # "a little later" is a tenth of it, also when it is late
    under_way, answered, half = (running.client(GET % path) for path in (b"/wait0.5", b"/first", b"/"))
    assert answered.recv(1000).endswith(b"/first ")
    half.recv(1000)
    half.sendall(b"GET /half HTTP/1.1\r\nHo")
    silent, later = running.client(), running.client()
    time.sleep(0.3)
    blocked = threading.Event()
    running.loop.call_soon_threadsafe(blocked.wait)  # the server sees nothing of what comes now before its end begins
    answered.sendall(GET % b"/second")
    unread = [running.client(GET % b"/unread") for _ in range(20)]
    drained = running.call(running.server.drain(20))
    blocked.set()
    time.sleep(0.3)
    later.sendall(GET % b"/later")
    half.sendall(b"st: a\r\n\r\n")
    for client, path in ((under_way, b"/wait0.5"), (answered, b"/second"), (half, b"/half"), (later, b"/later"),
                         *[(client, b"/unread") for client in unread]):
        answer = rest(client)
        assert answer.endswith(path + b" ")
        if path in (b"/wait0.5", b"/half", b"/later"):  # others may have been answered just before
            assert b"connection: close" in answer.lower()
        client.close()
    assert rest(silent) == b""
    silent.close()
    drained.result(10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(running.address, timeout=5)


def test_the_end_does_not_wait_for_ever(running):
    with running.client(GET % b"/wait60") as client:
        time.sleep(0.2)
        running.call(running.server.drain(0.5)).result(5)
        assert rest(client) == b""


# --- the middleware


def ask(app, path="/x", **headers):
    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(send())


def test_request_ids(caplog):
    caplog.set_level("INFO")
    app = middleware.numbered(echo, log_all=True, when_crowded=())
    assert ask(app, **{"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert "request abc-1: GET /x 200 in" in caplog.text
    wrong = ("", "a b", "x" * 129, "a\tb", "<")
    made = {ask(app, **{"X-Request-Id": given}).headers["x-request-id"] for given in wrong}
    assert len(made) == 5
    assert all(len(name) == 32 for name in made)
    caplog.clear()
    answer = ask(app, "/broken", **{"X-Request-Id": "abc-2"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "abc-2")
    assert "request abc-2" in caplog.text
    assert "ValueError: broken" in caplog.text


def test_paths_work_with_the_prefix_and_without():
    app = middleware.prefixed(echo, "/a/b")
    for path, seen in (("/a/b/x", "/x"), ("/x", "/x"), ("/a/b", "/"), ("/a/b/", "/"), ("/a/bc", "/a/bc"), ("/a", "/a"),
                       ("/a/b/a/b/x", "/a/b/x")):
        assert ask(app, path).text == f"GET {seen} "
    assert ask(middleware.prefixed(echo, ""), "/x").text == "GET /x "


@pytest.mark.parametrize("running", [{"max_connections": 2, "app": middleware.numbered(
    echo, log_all=False, when_crowded=("/livez",))}], indirect=True)
def test_too_many_connections_are_told_so(running):
    with running.client(), running.client(), running.client(GET % b"/a") as third:
        answer = rest(third)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too many connections" in answer
        with running.client(GET % b"/livez") as probe:
            assert probe.recv(1000).endswith(b"GET /livez ")
