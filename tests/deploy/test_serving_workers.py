"""deploy/serving/workers.py: several processes behind one port. Their work here is to say who they are."""
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException

import numpy as np
import pytest
from helpers import ROOT, match, read

from ppgfl.inference.runner import load_runner

for package in ("starlette", "h11", "multipart", "prometheus_client", "PIL"):
    pytest.importorskip(package)
httpx = pytest.importorskip("httpx")
if os.name != "posix":
    pytest.skip("processes that share a socket", allow_module_level=True)
SERVING = ROOT / "deploy" / "serving"
# A service without a model: it waits 20 ms and tells its process. BEHAVE: how a worker begins.
TOY = f"""
import asyncio, logging, os, signal, socket, sys, time
sys.path.insert(0, {str(SERVING)!r})
import connections, workers
logging.basicConfig(level=logging.INFO, format="%(message)s")

async def app(scope, receive, send):
    from prometheus_client import Counter
    await asyncio.sleep(0.02)
    text = str(os.getpid()).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]}})
    await send({{"type": "http.response.body", "body": text}})

async def work(listener, channel):
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = connections.Server(app, listener, requests_per_connection=20)
    server.start()
    workers.report_ready(channel, loop, ended.set)
    await ended.wait()
    await server.drain(10)

if "--inherited" in sys.argv:
    exec(os.environ.get("BEHAVE", ""))
    asyncio.run(work(*[socket.socket(fileno=int(number)) for number in sys.argv[-2:]]))
else:
    listener = connections.bind("127.0.0.1", 0)
    sys.exit(workers.supervise([sys.executable, __file__], int(sys.argv[1]), listener, grace=10))
"""


class Running:
    """A service as a user starts it, and what it has printed."""

    def __init__(self, *command, **environment):
        self.process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.STDOUT, env={**os.environ, **environment},
                                        start_new_session=True)
        self.text = ""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.text += line

    def until(self, pattern, count=1, seconds=60):
        """The groups of a pattern once it was printed so often."""
        end = time.monotonic() + seconds
        while len(found := re.findall(pattern, self.text)) < count:
            assert time.monotonic() < end, self.text
            assert self.reader.is_alive() or len(re.findall(pattern, self.text)) >= count, self.text
            time.sleep(0.01)
        return found

    def address(self):
        return self.until(r"serving on (\S+)")[0]

    def workers(self, count):
        return [int(number) for number in self.until(r"worker (\d+) is ready", count)]

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join()


@pytest.fixture
def toy(tmp_path):
    made = []

    def make(count, **environment):
        (tmp_path / "toy.py").write_text(TOY)
        made.append(Running(tmp_path / "toy.py", count, TMPDIR=str(tmp_path), **environment))
        return made[-1]

    yield make
    for running in made:
        running.close()


class Clients:
    """Threads that ask again and again, until they are told to stop or find nobody."""

    def __init__(self, address, count):
        self.address, self.stopping = address, False
        self.answers, self.refused, self.lost = Counter(), 0, 0
        self.threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self):
        connection = HTTPConnection(self.address.removeprefix("http://"), timeout=30)
        while not self.stopping:
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                assert answer.status == 200
                self.answers[int(answer.read())] += 1
            except ConnectionRefusedError:  # nobody listens: the request was never sent
                self.refused += 1
                return
            except (OSError, HTTPException):
                self.lost += 1
                connection.close()
        connection.close()

    def stop(self):
        self.stopping = True
        self.join()

    def join(self):
        for thread in self.threads:
            thread.join()


def test_every_worker_answers_and_a_killed_one_is_replaced(toy):
    running = toy(2)
    first = running.workers(2)
    clients = Clients(running.address(), 8)
    time.sleep(1)
    os.kill(first[0], signal.SIGKILL)
    third = running.workers(3)[2]
    time.sleep(1)
    clients.stop()
    assert set(clients.answers) == {*first, third}
    assert clients.lost <= 8  # what the dead one had, and nothing else
    assert clients.refused == 0
    assert f"worker {first[0]} ended with signal 9; another is started" in running.text
    running.process.terminate()
    assert running.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_under_load_loses_no_request(toy, number):
    running = toy(2)
    pids = running.workers(2)
    clients = Clients(running.address(), 16)
    time.sleep(0.7)
    os.killpg(running.process.pid, number)  # to all of them, as a terminal and some supervisors do
    assert running.process.wait(20) == 0
    clients.join()
    assert (clients.lost, clients.refused) == (0, 16)
    assert sum(clients.answers.values()) > 100
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_end_while_a_worker_begins_loses_no_request(toy, tmp_path):
    """One that opens its model has the socket too, and may take a while to die: nobody may connect to it then."""
    behave = (f"mark = {str(tmp_path / 'mark')!r}\n"
              "if os.path.exists(mark):\n"
              "    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), os._exit(1)))\n"
              "    print('beginning', flush=True)\n"
              "    time.sleep(60)\n"
              "open(mark, 'w').close()")
    running = toy(2, BEHAVE=behave)
    running.until("beginning")
    clients = Clients(running.address(), 8)
    time.sleep(0.5)
    running.process.terminate()
    assert running.process.wait(20) == 0
    clients.join()
    assert (clients.lost, clients.refused) == (0, 8)


def test_workers_end_when_their_supervisor_is_killed(toy):
    running = toy(2)
    running.workers(2)
    address = running.address()
    assert httpx.get(address).status_code == 200
    running.process.kill()
    end = time.monotonic() + 10
    with pytest.raises(httpx.ConnectError):
        while time.monotonic() < end:
            httpx.get(address)
            time.sleep(0.05)


@pytest.mark.parametrize("behave,code", [("print('error: no model'); sys.exit(2)", 2), ("1 / 0", 1)])
def test_what_cannot_begin_ends_the_service(toy, behave, code):
    running = toy(3, BEHAVE=behave)
    assert running.process.wait(20) == code
    running.reader.join()
    assert running.text.count("error: no model" if code == 2 else "ZeroDivisionError") == 1


def test_workers_that_fail_later_are_tried_again_after_a_while(toy, tmp_path):
    behave = f"mark = {str(tmp_path / 'mark')!r}\nif os.path.exists(mark): sys.exit(3)\nopen(mark, 'w').close()"
    running = toy(2, BEHAVE=behave)
    running.until(r"worker \d+ ended with exit code 3; another is started in (\d+) s", 2)
    assert re.findall(r"started in (\d+) s", running.text)[:2] == ["1", "3"]
    assert httpx.get(running.address()).status_code == 200
    os.unlink(tmp_path / "mark")
    running.workers(2)


def test_a_second_signal_does_not_wait(toy):
    running = toy(1, BEHAVE="workers.report_ready = lambda channel, loop, then: channel.send(workers.READY)\n"
                            "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    running.workers(1)
    running.process.terminate()
    time.sleep(0.5)
    assert running.process.poll() is None
    running.process.terminate()
    assert running.process.wait(5) == 128 + signal.SIGTERM


@pytest.mark.drill
def test_the_service_with_two_workers(exported, small_coco):
    """Answers, prefix, metrics of all, ids, readiness; a worker is killed in between."""
    runner = load_runner().Runner(exported[0])
    photos = [(path.read_bytes(), runner([read(path)])[0]) for path in sorted((small_coco / "val2017").iterdir())]
    running = Running(SERVING / "server.py", "--port", 0, "--model_dir", exported[0], "--workers", 2,
                      "--root_path", "/gfl", "--cpu_threads", 2)
    try:
        address, pids = running.address(), running.workers(2)
        assert running.until(r"running .*?(\d+) threads", 2) == ["1", "1"]

        def check():
            for data, wanted in photos:
                answer = httpx.post(f"{address}/gfl/predict?threshold=0", content=data, timeout=60)
                rows = [[d["label"], d["score"], *d["box"]] for d in answer.json()["results"][0]["detections"]]
                match(np.array(rows).reshape(-1, 6), wanted, pixels=2e-2, score=1e-4)

        check()
        os.kill(pids[0], signal.SIGKILL)
        check()
        running.workers(3)
        check()
        text = httpx.get(f"{address}/gfl/metrics").text
        for line in ("ppgfl_images_in_flight 0.0", "ppgfl_images_total 15.0", 'ppgfl_requests_total{status="200"} 15.0',
                     "ppgfl_worker_restarts_total 1.0", "ppgfl_request_seconds_count 15.0"):
            assert line in text, text
        assert httpx.get(f"{address}/readyz").json() == {"ready": True}
        answer = httpx.post(f"{address}/gfl/predict", content=b"x", headers={"X-Request-Id": "mine"})
        assert (answer.status_code, answer.json()["request_id"]) == (415, "mine")
        assert "request mine: POST /predict 415" in running.until(r".*request mine.*")[0]
        assert '<base href="/gfl/">' in httpx.get(f"{address}/gfl").text
        running.process.terminate()
        assert running.process.wait(40) == 0
    finally:
        running.close()


def test_too_many_workers_or_a_wrong_prefix_is_one_line():
    for words in (["--workers", "0"], ["--root_path", "gfl"], ["--root_path", "/a b"], ["--model_name", "a/b"],
                  ["--drain_seconds", "-1"]):
        done = subprocess.run([sys.executable, str(SERVING / "server.py"), "--model_dir", "none", *words], text=True,
                              capture_output=True, check=False, timeout=60)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert done.stderr.startswith(f"error: {words[0]}: ")


def test_several_workers_have_the_metrics_of_one(tmp_path):
    code = (f"import sys; sys.path[:0] = [{str(SERVING)!r}, {str(ROOT / 'deploy/python')!r}]\n"
            "import asyncio, json, numpy as np, types, service\n"
            "runner = types.SimpleNamespace(threads=1, class_names=['a'], description='x', detect=None)\n"
            "s = service.Service(runner)\ns.enter(2)\n"
            "text = asyncio.run(s.metrics(None)).body.decode()\n"
            "print(json.dumps(sorted(l.split('{')[0].split()[0] for l in text.splitlines() if l[0] != '#')))\n"
            "assert 'ppgfl_images_in_flight 2.0' in text")
    names = []
    for environment in ({}, {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, text=True, check=True,
                              capture_output=True, timeout=60)
        names.append({name for name in json.loads(done.stdout) if not name.endswith("_created")})
    assert names[0] == names[1]
