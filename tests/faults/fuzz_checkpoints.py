"""Coverage-guided search for a file that makes `safe_pickle.load` do anything but return plain values or refuse.

    pip install atheris
    python tests/faults/fuzz_checkpoints.py -runs=100000 CORPUS_FOLDER

libFuzzer (through atheris, https://github.com/google/atheris) changes real checkpoints and keeps what reaches new lines
of `safe_pickle.py` and of Python's own unpickler. A finding ends the process with a traceback, and the file that
led to it is written to ./crash-*.
"""
import codecs
import pickle
import sys
from pathlib import Path

import atheris
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
for module in ("pickle", "_pickle", "ppgfl.weights.safe_pickle"):
    sys.modules.pop(module, None)
with atheris.instrument_imports(include=["pickle", "ppgfl.weights.safe_pickle"]):
    from ppgfl.weights import safe_pickle
from ppgfl.errors import CheckpointError  # noqa: E402

# What a harmless file never needs; Python tells of each (https://docs.python.org/3/library/audit_events.html).
FORBIDDEN = ("import", "exec", "compile", "open", "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "marshal.",
             "pickle.find_class", "code.", "function.", "object.__setattr__", "object.__delattr__")
PLAIN = (str, int, float, bool, bytes, type(None), np.ndarray)
watching = False


class InMemory:
    """What `load` needs of a path."""

    def __init__(self, data):
        self.data = data

    def read_bytes(self):
        return self.data


def forbid(event, arguments):
    if watching and event.startswith(FORBIDDEN):
        raise SystemExit(f"a file led to {event} {arguments}")


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, PLAIN) and plain(item) for key, item in value.items())
    return all(map(plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, PLAIN)


def one(data):
    global watching  # noqa: PLW0603
    watching = True
    try:
        found = safe_pickle.load(InMemory(data))
    except CheckpointError:
        return
    finally:
        watching = False
    assert plain(found), found


def seeds(folder):
    """Real files of every protocol, for the fuzzer to change."""
    state = {"a": np.arange(4, dtype=np.float32).reshape(2, 2), "b": np.float64(1), "StructuredToParameterName@@":
             {"a": "x"}, "nested": [(1, 2.0), {"c": np.zeros(1, np.int64)}]}
    for protocol in range(6):
        (folder / f"protocol{protocol}").write_bytes(pickle.dumps(state, protocol=protocol))


def dictionary(path):
    """Instructions, and the names that a file may use, spelled as pickle's old and new protocols do."""
    words = [bytes([code]) for code in safe_pickle.Unpickler.dispatch]
    for name in safe_pickle.ALLOWED:
        module, _, last = name.rpartition(".")
        words += [f"c{module}\n{last}\n".encode(),
                  b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, last)) + b"\x93"]
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words))
    return path


if __name__ == "__main__":
    for codec in ("raw-unicode-escape", "latin1", "ascii", "utf-8"):
        codecs.lookup(codec)  # Python imports these when a pickle first needs them
    corpus = Path(sys.argv[-1])
    seeds(corpus)
    sys.argv.insert(1, f"-dict={dictionary(corpus.with_suffix('.dictionary'))}")
    sys.addaudithook(forbid)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
