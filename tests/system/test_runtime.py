"""The processor and the memory."""
import sys
from types import SimpleNamespace

import pytest

from ppgfl.system import runtime

CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
model name\t: A fast one
flags\t\t: fpu avx2

processor\t: 1
vendor_id\t: {vendor}
model name\t: Another
"""


@pytest.mark.parametrize(("vendor", "amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_is_read_once_and_the_first_counts(monkeypatch, vendor, amd):
    reads = []
    text = CPUINFO.format(vendor=vendor)
    monkeypatch.setattr(runtime.Path, "read_text", lambda self, **_: reads.append(self) or text)
    runtime.processor.cache_clear()
    try:
        assert runtime.processor_name() == "A fast one"
        assert runtime.processor()["flags"].split() == ["fpu", "avx2"]
        assert runtime.is_amd() is amd
        assert len(reads) == 1
    finally:
        runtime.processor.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize(("variables", "limits"), [
    ({}, [(-1, 128 << 20), (-3, 32 << 20)]), ({"MALLOC_TRIM_THRESHOLD_": "65536"}, []),
    ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, [])])
def test_freed_memory_is_kept_unless_the_user_has_set_a_limit(variables, limits, monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = []
    library = SimpleNamespace(mallopt=lambda *limit: asked.append(limit))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    runtime.keep_freed_memory()
    assert asked == limits


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    opened = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: opened.append(name) or SimpleNamespace())
    runtime.keep_freed_memory()  # raises nothing
    assert opened == [None]
