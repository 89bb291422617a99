"""Read the pickles that `paddle.save` writes, and run nothing that is in them.

`paddle.load` unpickles whatever a file names, so a downloaded .pdparams can run code. Here a file may name only what
numpy arrays and plain containers are made of, and each of those names leads to a stand-in below: numpy never sees
a file's own claims about types and shapes before they are checked, and nothing of this process can be changed.
"""
from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import CheckpointError

ZIP, TORCH_NUMBER = b"PK\x03\x04", b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's two formats
DTYPES = {"f2", "f4", "f8", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "b1"}


def load(path: Path) -> Any:
    """The object in a file of `paddle.save`: dicts, lists, numbers, strings and numpy arrays.

    Raises:
        CheckpointError: the file is absent, damaged, no pickle, or names anything else, before any of it runs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise CheckpointError(f"{path}: the file is empty; download or copy it again")
    if other_format(data):
        raise CheckpointError(f"{path}: looks like a file of {other_format(data)}, not a .pdparams; "
                              f"`ppgfl convert {path} NAME.pdparams` makes one of it")
    try:
        return _to_arrays(Unpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except Refused as error:
        raise CheckpointError(
            f"{path}: refused, since it holds {error}; weights are numpy arrays in plain containers and nothing "
            "else. Do not open it with paddle.load: it may run code") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: refused, since its containers are nested too deeply or in a loop") from error
    except Exception as error:  # pickle's own list: a damaged file may raise anything
        raise CheckpointError(
            f"{path}: damaged, or no .pdparams file at all ({len(data):,} bytes; {type(error).__name__}: {error}); "
            "download or copy it again") from error


def other_format(data: bytes) -> str | None:
    """Whose format a file has, judged by its first bytes: "PyTorch", "safetensors", or None: no other that is known."""
    if data.startswith(ZIP) or TORCH_NUMBER in data[:32]:
        return "PyTorch"
    return "safetensors" if data[5:9] == b"\0\0\0{" else None  # a length, then JSON


class Refused(Exception):
    """The file holds something that weights never need."""


class _Dtype:
    """Stand-in for a numpy.dtype: which one is meant."""

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        if code not in DTYPES:
            raise Refused(f"an array of dtype {code!r}")
        self.code = code
        self.order: Any = "<"

    def set_state(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, itemsize, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Refused("a structured dtype")
        if state[1] not in ("<", ">", "|", "="):
            raise Refused("a dtype of unknown byte order")
        self.order = state[1]

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Stand-in for a numpy.ndarray, which it becomes at the end."""

    value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise Refused("an array of objects")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise Refused(f"an array of shape {shape!r}")
    flat = np.frombuffer(data, dtype=dtype.numpy())  # a shape that does not fit the bytes is a ValueError
    return flat.reshape(shape, order=order).astype(dtype.code, order="C")


def _with_value(value: np.ndarray) -> _Array:
    array = _Array()
    array.value = value
    return array


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    if kind != _NDARRAY:
        raise Refused("a subclass of numpy.ndarray")
    return _Array()


def _scalar(dtype: Any, data: Any) -> _Array:
    return _with_value(_array(data.encode("latin1") if isinstance(data, str) else data, dtype, ()))


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    return _with_value(_array(data, dtype, shape, order))


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"a call of codecs.encode with {encoding!r}")
    return text.encode("latin1")  # how pickle protocol 2 spells bytes


def _bytes(*arguments: Any) -> bytes:
    if arguments and not isinstance(arguments[0], bytes):
        raise Refused("a call of bytes")
    return bytes(*arguments)


_NDARRAY = "numpy.ndarray"  # only ever an argument of _reconstruct
_ARRAY_MAKERS: dict[str, Callable[..., Any]] = {
    "_reconstruct": _reconstruct, "scalar": _scalar, "_frombuffer": _frombuffer}
ALLOWED: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _Dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "builtins.tuple": tuple,  # paddle pickles a tensor inside a container as tuple((name, array))
    "__builtin__.tuple": tuple,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    **{f"numpy.{core}.{module}.{name}": function for core in ("core", "_core")
       for module in ("multiarray", "numeric") for name, function in _ARRAY_MAKERS.items()},
}


_PythonUnpickler: Any = pickle._Unpickler


class Unpickler(_PythonUnpickler):
    """Python's own unpickler, in Python so that every step that could call or change something is ours.

    (The one in C also lets a file of ten bytes claim gigabytes for its memo.)
    """

    dispatch = dict(_PythonUnpickler.dispatch)
    allowed = ALLOWED

    def find_class(self, module: str, name: str) -> Any:
        """A name in the file becomes a string; `call` looks up what it may call."""
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise Refused(f"a reference to {full}")
        return Name(full)

    def call(self, name: Any, arguments: Any) -> Any:
        function = self.allowed[name] if isinstance(name, Name) else None
        if function is None or not isinstance(arguments, tuple):
            raise Refused("a call of something that is no array")
        return function(*arguments)

    def set_state(self, value: Any, state: Any) -> None:
        if not isinstance(value, (_Array, _Dtype)):
            raise Refused("the state of something that is no array")
        value.set_state(state)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    dispatch[pickle.BUILD[0]] = load_build

    def refuse(self) -> NoReturn:
        raise Refused("an instruction that weights never need")

    def load_inst(self) -> NoReturn:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        raise Refused(f"a call of {module}.{name}")

    dispatch[pickle.INST[0]] = load_inst

    for opcode in (pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.PERSID, pickle.BINPERSID,
                   pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER,
                   pickle.READONLY_BUFFER):
        dispatch[opcode[0]] = refuse


class Name(str):
    """A global that the file refers to. A class of its own, since a plain string of the file must not be callable."""


def _to_arrays(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Replace the stand-ins by arrays, through dicts, lists and tuples; refuse anything else.

    `seen` converts an object that is referred to many times once: its size in memory stays that of the file.
    """
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, _Array):
        if value.value is None:
            raise Refused("an array without data")
        result: Any = value.value
    elif isinstance(value, dict):
        result = {_plain(key): _to_arrays(item, seen) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_to_arrays(item, seen) for item in value)
    else:
        result = _plain(value)
    seen[id(value)] = value, result  # `value` stays alive, so that its id stays its own
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Name):
        raise Refused(f"a reference to {value}")
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return value
    raise Refused(f"a {type(value).__name__}")
