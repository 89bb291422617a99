"""How long a process of several may take before it counts as hanging. The end of one that hangs is a drill
(tests/faults/test_several_processes.py)."""
import time

import pytest

from ppgfl.system import framework, watchdog


@pytest.mark.parametrize(("gpu", "first_step", "hangs"), [
    (True, True, {"second"}), (True, False, {"first", "second"}), (False, True, {"first", "second"})])
@pytest.mark.parametrize("part", ["first", "second"])
def test_the_first_step_on_a_gpu_may_take_longer(monkeypatch, gpu, first_step, hangs, part):
    """There it looks for fast kernels; on a CPU gloo gives up anyway. The limit is a second here, that of the first
    step a minute."""
    ended = []
    monkeypatch.setattr(watchdog, "world_size", lambda: 2)
    monkeypatch.setattr(framework, "on_gpu", lambda: gpu)
    monkeypatch.setattr(watchdog, "FIRST_STEP_TIMEOUT", 60.0)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0)
    monkeypatch.setattr(watchdog, "_print_on_launcher", lambda text: None)
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    with watchdog.watch_for_hangs(0.1, first_step=first_step) as next_is:
        next_is("reading a batch")
        next_is("in a step")
        if part == "second":
            next_is("reading a batch")
        time.sleep(1.5)
    assert bool(ended) == (part in hangs)
