"""A training on several nodes that loses one goes on, as deploy/slurm starts it, with a stand-in for the scheduler.

Each of the two nodes is a launcher of Paddle with one process on this machine, as on a cluster; only `srun` and
`scontrol` are played. deploy/kubernetes/train.yml starts the same deploy/slurm/node.sh.
"""
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, options, rows_of

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc") or not shutil.which("bash"), reason="needs bash and /proc")

RESUMED = r"resumed from \S+/(\w+): epoch 1, step (\d+)"
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
for node in 0 1; do
    SLURM_NODEID=$node "$@" > "$STATE/node$node.txt" 2>&1 &
    echo $! > "$STATE/node$node.pid"
done
code=0
for node in 0 1; do
    wait "$(cat "$STATE/node$node.pid")"; ended=$?
    echo $ended >> "$STATE/codes"
    [ $ended -gt $code ] && code=$ended
done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; echo localhost; else echo "$@" >> "$STATE/scontrol"; fi
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder to train in, with `srun` and `scontrol` in bin, and a free port."""
    for name in ("tools", "deploy", "ppgfl", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(content, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    yield tmp_path
    send(signal.SIGKILL, found("-f", tmp_path))  # of a test that failed


def free_job():
    """The number of a job whose port nobody listens at."""
    for job in range(os.getpid() % 5000, 10000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + job)):
                return job
    raise AssertionError("no free port")


def submit(cluster, arguments, *, restarts=0, job=None, **more):
    """train.sbatch, running -> (its process, the environment's STATE)."""
    state = cluster / f"state{restarts}"
    state.mkdir()
    environment = {
        **os.environ, "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "STATE": str(state), "OMP_NUM_THREADS": "1",
        "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
        "SLURM_JOB_NODELIST": "localhost[0-1]", "SLURM_JOB_ID": str(job or free_job()), "SLURM_NNODES": "2",
        "SLURM_SUBMIT_DIR": str(cluster), "SLURM_RESTART_COUNT": str(restarts), "PADDLE_NPROC_PER_NODE": "1", **more}
    process = subprocess.Popen(["bash", str(ROOT / "deploy/slurm/train.sbatch"), *map(str, arguments)], cwd=cluster,
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return process, state


def node(state, number):
    path = state / f"node{number}.txt"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def wait_for(words, cluster, state, already):
    """Until the process of node 0 has said them."""
    deadline = time.monotonic() + 90
    while words not in said(cluster, already):
        assert time.monotonic() < deadline, node(state, 0) + node(state, 1)
        time.sleep(0.1)


def logs(cluster):
    return set(cluster.glob("log/*-node0/workerlog.0"))


def said(cluster, already):
    """What the process of node 0 has written to another log than those that were there already: its launcher passes it
    on two seconds later, or never when it is stopped before."""
    return "".join(log.read_text(encoding="utf-8") for log in logs(cluster) - already)


def found(*arguments):
    return [int(pid) for pid in subprocess.run(["pgrep", *map(str, arguments)], capture_output=True, text=True,
                                               check=False).stdout.split()]


def processes_of(parent):
    return [parent, *(pid for child in found("-P", parent) for pid in processes_of(child))]


def send(sent, pids):
    for pid in pids:
        try:
            os.kill(pid, sent)
        except ProcessLookupError:
            continue


def test_a_run_that_loses_a_node_and_is_preempted_ends_as_one_that_was_left_alone(shapes, cluster, tmp_path):
    def run(name):
        return ["-c", "shapes_gfl", "-o", *options(shapes, tmp_path / name, "worker_num=1", "log_iter=1",
                                                   "TrainDataset.repeat=24")]  # 2 epochs of 48 steps

    whole, state = submit(cluster, run("whole"), restarts=9)
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output + node(state, 0) + node(state, 1)
    assert not (state / "scontrol").exists()
    # Node 0 loses power: the meeting place and the one that writes the files are gone. Then the time is up.
    for restarts, lost in enumerate([True, False]):
        already = logs(cluster)
        process, state = submit(cluster, run("broken"), restarts=restarts)
        wait_for("epoch 2/2 [3/48]", cluster, state, already)
        began = time.monotonic()
        if lost:
            send(signal.SIGKILL, processes_of(int((state / "node0.pid").read_text())))
        else:
            process.terminate()
        output, _ = process.communicate(timeout=60)
        print(f"{'node 0 lost' if lost else 'SIGTERM'}: all have ended after {time.monotonic() - began:.0f} s")
        assert process.returncode not in (0, 2), output
        assert "queued again" in output
        assert (state / "scontrol").read_text().startswith("requeue ")
    assert re.findall(RESUMED, said(cluster, already)) == [("0", "48")]
    already = logs(cluster)
    process, state = submit(cluster, run("broken"), restarts=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output + node(state, 0) + node(state, 1)
    (name, step), = re.findall(RESUMED, said(cluster, already))
    assert name == "interrupted"
    assert 50 < int(step) < 96
    a, b = (tmp_path / name / "shapes_gfl" for name in ("whole", "broken"))
    assert rows_of(a) == rows_of(b)
    assert len(rows_of(a)) == 2
    a, b = (pickle.loads((folder / "model_final.pdparams").read_bytes()) for folder in (a, b))
    assert all(np.array_equal(a[key], b[key]) for key in a if hasattr(a[key], "shape"))
    deadline = time.monotonic() + 10
    while found("-f", tmp_path):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.2)


def test_a_mistake_is_not_started_anew_and_restarts_have_an_end(shapes, cluster, tmp_path):
    process, state = submit(cluster, ["-c", "shapes_gfl", "-o", *options(shapes, tmp_path, "epoch=no")])
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 2, output + node(state, 0)
    assert not (state / "scontrol").exists()
    (tmp_path / "bin" / "srun").write_text("#!/bin/bash\nexit 7\n", encoding="utf-8")
    for restarts, queued in ((1, True), (20, False)):
        process, state = submit(cluster, ["-c", "shapes_gfl"], restarts=restarts)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 7
        assert (state / "scontrol").exists() is queued, output
        assert ("started 20 times" in output) is not queued


def test_a_node_whose_others_never_come_gives_up(cluster):
    """Each alone: node 0 opens the meeting place, node 1 does not find it."""
    for rank in (0, 1):
        environment = {**os.environ, "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "MEET_SECONDS": "5",
                       "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        done = subprocess.run(["bash", str(ROOT / "deploy/slurm/node.sh"), "localhost", str(20000 + free_job()), "2",
                               str(rank), "-c", "shapes_gfl"], cwd=cluster, env=environment, capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode not in (0, 2), done.stdout + done.stderr
        assert ("has not met all 2 nodes" if rank == 0 else "does not find localhost") in done.stderr
    assert not Path(cluster, "output").exists()
