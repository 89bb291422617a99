"""Files that try to run code, to take memory, or to confuse the reader of checkpoints: each is one CheckpointError."""
import gzip
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from ppgfl import CheckpointError
from ppgfl.weights.checkpoint import read

CALLABLES = [
    ("os", "system"), ("posix", "system"), ("os", "popen"), ("os", "execv"), ("subprocess", "Popen"),
    ("subprocess", "check_output"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "open"),
    ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "compile"), ("importlib", "import_module"),
    ("pickle", "loads"), ("marshal", "loads"), ("types", "FunctionType"), ("types", "CodeType"), ("runpy", "run_path"),
    ("operator", "attrgetter"), ("operator", "methodcaller"), ("functools", "partial"), ("pty", "spawn"),
    ("shutil", "rmtree"), ("webbrowser", "open"), ("socket", "socket"), ("ctypes", "CDLL"), ("timeit", "timeit"),
    ("code", "interact"), ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "memmap"), ("numpy", "save"),
    ("numpy.testing._private.utils", "runstring"), ("numpy.core.multiarray", "fromfile"),
    ("numpy.core.multiarray", "_reconstruct.__globals__"), ("numpy", "ndarray.tofile"), ("paddle", "load"),
    ("paddle.utils", "run_check"), ("cv2", "imread"), ("yaml", "unsafe_load"), ("ppgfl.weights.safe_pickle", "load"),
    ("collections", "OrderedDict.__reduce__"), ("builtins", "bytearray"), ("builtins", "object"), ("builtins", "type"),
]
TOUCH = "touch ran"


def text(value):
    """SHORT_BINUNICODE."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def calls():
    """Every callable through every instruction that imports or calls, bare and deep inside of containers."""
    for module, name in CALLABLES:
        spelled = f"{module}\n{name}\n".encode()
        argument = text(TOUCH)
        yield f"REDUCE {module}.{name}", b"\x80\x02c" + spelled + argument + b"\x85R."
        yield f"STACK_GLOBAL {module}.{name}", b"\x80\x04" + text(module) + text(name) + b"\x93" + argument + b"\x85R."
        yield f"INST {module}.{name}", b"(" + argument + b"i" + spelled + b"."
        yield f"OBJ {module}.{name}", b"(c" + spelled + argument + b"o."
        yield f"NEWOBJ {module}.{name}", b"\x80\x02c" + spelled + argument + b"\x85\x81."
        yield f"BUILD {module}.{name}", b"\x80\x02c" + spelled + b"}" + argument + argument + b"sb."
        yield (f"in a dict of lists {module}.{name}",
               b"\x80\x04}" + text("w") + b"]]c" + spelled + argument + b"\x85Raas.")
        yield f"as a key {module}.{name}", b"\x80\x04}c" + spelled + argument + b"\x85RK\x01s."


def array(shape=b"K\x02\x85", dtype=b"f4", data=b"\0" * 8, kind=b"numpy\nndarray\n", fields=b"NNN", order=b"<"):
    """A numpy array as numpy pickles it, with each part as the file claims it to be."""
    made = b"cnumpy.core.multiarray\n_reconstruct\nc" + kind + b"K\x00\x85C\x01b\x87R(K\x01" + shape
    made += b"cnumpy\ndtype\n" + text(dtype.decode()) + b"\x89\x88\x87R(K\x03" + text(order.decode()) + fields
    made += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    return b"\x80\x04}" + text("w") + made + b"B" + struct.pack("<I", len(data)) + data + b"tbs."


def claims():
    """Arrays that are not what they say."""
    yield "object dtype", array(dtype=b"O8")
    yield "void dtype", array(dtype=b"V8")
    yield "string dtype", array(dtype=b"U2")
    yield "datetime dtype", array(dtype=b"M8")
    yield "128-bit float", array(dtype=b"f16")
    yield "a shape of 2^62", array(shape=b"\x8a\x08" + b"\0" * 7 + b"\x40\x85")
    yield "a shape of four billion bytes", array(shape=b"J\xff\xff\xff\x7f\x85")
    yield "a negative shape", array(shape=b"J\xfe\xff\xff\xff\x85")
    yield "a shape that is a list", array(shape=b"]K\x02a")
    yield "a shape that is text", array(shape=text("2"))
    yield "a shape of floats", array(shape=b"G@\0\0\0\0\0\0\0\x85")
    yield "half of the data", array(data=b"\0" * 4)
    yield "too much data", array(data=b"\0" * 12)
    yield "no data", array(data=b"")
    yield "a matrix", array(kind=b"numpy\nmatrix\n")
    yield "a memmap", array(kind=b"numpy\nmemmap\n")
    yield "a record array", array(kind=b"numpy\nrecarray\n")
    yield "fields", array(fields=b"N" + text("a") + b"\x85" + b"}" + text("a") + b"Ks")
    yield "a sub-array", array(fields=b"K\x02\x86NN")
    yield "an unknown byte order", array(order=b"!")


def damaged():
    """No pickle, half a pickle, and what costs memory or depth."""
    good = pickle.dumps({"w": np.arange(1000.0, dtype=np.float32)}, protocol=4)
    yield "empty", b""
    yield "one byte", b"\x80"
    yield "text", b"<!DOCTYPE html><html>404</html>"
    yield "zeros", b"\0" * 100_000
    yield "gzip", gzip.compress(good)
    yield "zip", b"PK\x03\x04" + good
    yield "npz header", b"\x93NUMPY\x01\0" + good
    yield "safetensors header", struct.pack("<Q", 8) + b"{}      "
    yield "cut in the middle", good[:len(good) // 2]
    yield "without its end", good[:-1]
    yield "10 MB of nested lists", b"\x80\x02" + b"]" * 5_000_000 + b"a" * 4_999_999 + b"."
    yield "10 MB of nested dicts", b"\x80\x02" + b"}K\x01" * 2_500_000 + b"N" + b"s" * 2_500_000 + b"."
    yield "10 MB of nested tuples", b"\x80\x02)" + b"\x85" * 10_000_000 + b"."
    yield "a text of 2^31 bytes", b"\x80\x02X\xff\xff\xff\x7fabc."
    yield "bytes of 2^63", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc."
    yield "a frame of 2^63", b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fabc."
    yield "a number of a million digits", b"I" + b"9" * 1_000_000 + b"\n."
    yield "an unknown protocol", b"\x80\x63}."
    yield "an empty stack", b"\x80\x02."
    yield "a get of nothing", b"\x80\x02g99\n."
    yield "extension registry", b"\x80\x02\x82\x01."
    yield "persistent", b"Pos\n."
    yield "a set", pickle.dumps({"w": {1}}, protocol=4)
    yield "a list", pickle.dumps([1, 2, 3], protocol=4)
    yield "a number", pickle.dumps(1, protocol=4)
    yield "a dict of texts", pickle.dumps({"w": "no array"}, protocol=4)


ALL = [*calls(), *claims(), *damaged()]


@pytest.mark.parametrize("kind", [calls, claims, damaged])
def test_each_is_refused_in_one_line_and_runs_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name, data in kind():
        path = tmp_path / "w.pdparams"
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            pytest.fail(f"{name} was read: {str(read(path))[:100]}")
        assert "\n" not in str(error.value), name
        assert len(str(error.value)) < 1000, name
        assert os.listdir(tmp_path) == ["w.pdparams"], name
    assert len(ALL) > 400


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_takes_more_memory_than_a_few_times_its_size(tmp_path):
    for number, (_, data) in enumerate([*claims(), *damaged()]):
        (tmp_path / f"{number}.pdparams").write_bytes(data)
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from ppgfl import errors
from ppgfl.weights import safe_pickle
def memory(which):
    return int(Path("/proc/self/status").read_text().split(which)[1].split()[0]) // 1024
before = memory("VmRSS:")
for path in Path(sys.argv[1]).iterdir():
    try:
        safe_pickle.load(path)
    except errors.CheckpointError:
        pass
print(memory("VmHWM:") - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    print(f"{done.stdout.strip()} MiB for files of up to 10 MB")
    assert 0 < int(done.stdout) < 2500


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.pdparams").mkdir()
    (tmp_path / "loop.pdparams").symlink_to(tmp_path / "loop.pdparams")
    for name in ("folder.pdparams", "loop.pdparams", "absent.pdparams"):
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("seed", range(3))
def test_mutations_of_a_real_file_are_read_or_refused(tmp_path, seed, cases=1500):
    """Bytes changed, cut, doubled and swapped; PPGFL_FUZZ sets the number of files."""
    rng = np.random.default_rng(seed)
    state = {"a.weight": rng.normal(size=(3, 4)).astype("float32"), "b": np.arange(5), "c": np.float64(1.5)}
    good = pickle.dumps(state, protocol=(2, 4, 5)[seed])
    path = tmp_path / "w.pdparams"
    for _ in range(int(os.environ.get("PPGFL_FUZZ", cases))):
        data = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            i, j = sorted(rng.integers(0, len(data), 2))
            change = rng.integers(0, 4)
            if change == 0:
                data[i] = rng.integers(0, 256)
            elif change == 1:
                del data[i:min(j, i + 4)]
            elif change == 2:
                data[i:i] = data[i:j]
            else:
                data[i], data[j] = data[j], data[i]
        path.write_bytes(bytes(data))
        try:
            found = read(path)
        except CheckpointError:
            continue
        assert all(isinstance(value, np.ndarray) for value in found.values())


def test_a_guided_search_finds_nothing(tmp_path):
    """`fuzz_checkpoints.py` for two seconds, or a hundred files for each of PPGFL_FUZZ."""
    pytest.importorskip("atheris", reason="pip install atheris; `make faults` does")
    (tmp_path / "corpus").mkdir()
    runs = 100 * int(os.environ.get("PPGFL_FUZZ", "600"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "faults" / "fuzz_checkpoints.py"), f"-runs={runs}", "-max_len=2000",
         tmp_path / "corpus"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    last = next(line for line in done.stderr.splitlines() if "DONE" in line)
    print(f"{runs} files: {last}")
    lines, at_first = (int(line.split("cov: ")[1].split()[0]) for line in (
        last, next(line for line in done.stderr.splitlines() if "INITED" in line)))
    assert lines > at_first + 20  # the search went beyond the files it began with
