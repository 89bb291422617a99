"""Read the files of `torch.save`, its zip format and the older one, without torch, and run nothing that is in them.

Tensors are views of storages: raw bytes, which are read when a tensor is asked for. Besides, a checkpoint of
MMDetection holds objects of its libraries (a history of the losses, schedules). Nothing of these is made: a class of
`LIBRARIES` or `HARMLESS` becomes a stand-in that forgets whatever it is given. All other names are refused.
"""
from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import CheckpointError
from .safe_pickle import ALLOWED, TORCH_NUMBER, ZIP, Name, Refused, Unpickler

DTYPES = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2",
          "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
          "BoolStorage": "b1", "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16"}
LIBRARIES = {"torch", "torchvision", "mmengine", "mmcv", "mmdet", "mmcls", "mmpretrain", "addict"}
HARMLESS = {
    "collections.Counter", "collections.deque", "datetime.datetime", "datetime.timedelta", "argparse.Namespace",
    "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "torch.device", "copyreg._reconstructor",
    "copy_reg._reconstructor",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("set", "frozenset", "slice", "complex", "range", "list", "dict", "int", "float", "str", "object")),
    *(f"torch.{name}" for name in ("float16", "float32", "float64", "bfloat16", "uint8", "int8", "int16", "int32",
                                   "int64", "bool"))}
MOST = 4  # times the file's size is what all its tensors may take: more is no file of weights


def read(path: Path) -> tuple[dict[Any, Any], Callable[[str, Any], np.ndarray]]:
    """What `torch.save` was given: a dict of dicts, lists, plain values, `Tensor` and `Stranger`; and the function that
    makes an array of the entry of a name: float32 of bfloat16, else of its own dtype.

    Raises:
        CheckpointError: the file is absent, damaged, of another format, or names anything that may run code.
    """
    try:
        data = path.read_bytes()
        content = (_read_zip(path, data) if data.startswith(ZIP) else
                   _read_legacy(data) if TORCH_NUMBER in data[:32] else _no_torch(path, data))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Refused as error:
        raise CheckpointError(
            f"{path}: refused, since it holds {error}; a checkpoint needs nothing like it. Do not open it with "
            "torch.load: it may run code. If it is yours, save its state_dict alone") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: refused, since its containers are nested too deeply or in a loop") from error
    except Exception as error:  # a damaged file may raise anything
        raise _damaged(path, error) from error
    if isinstance(content, Stranger):
        raise CheckpointError(f"{path}: holds a whole {content.name}, which cannot be read without running its code; "
                              "save its state_dict() in PyTorch")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
    left = MOST * len(data)

    def array(name: str, tensor: Any) -> np.ndarray:
        nonlocal left
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is no tensor of numbers that are read here")
        try:
            left -= tensor.bytes
            if left >= 0:
                return tensor.array()
        except Exception as error:
            raise _damaged(f"{path}: entry {name!r}", error) from error
        raise CheckpointError(f"{path}: refused, since its tensors claim more than {MOST} times the file's size")

    return content, array


def _damaged(where: object, error: Exception) -> CheckpointError:
    return CheckpointError(f"{where}: damaged, or not of torch.save ({type(error).__name__}: {error}); download or "
                           "copy the file again")


def _no_torch(path: Path, data: bytes) -> NoReturn:
    if data.startswith(b"version https://git"):
        raise CheckpointError(f"{path}: is a pointer of git-lfs, not the weights; fetch them with `git lfs pull`")
    what = "is empty" if not data else "is no file of torch.save (neither its zip format nor the older one)"
    raise CheckpointError(f"{path}: {what}; download or copy it again")


# --- what a file is made of


class Stranger:
    """Stand-in for an object, or the class, of a library; it forgets whatever it is given."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    append = add = extend


@dataclass(eq=False)
class Storage:
    """Numbers of one dtype, as bytes of the file."""

    kind: str  # "FloatStorage"
    count: int
    order: str  # "<" or ">"
    load: Callable[[], bytes]

    @property
    def itemsize(self) -> int:
        if self.kind not in DTYPES:
            raise ValueError(f"a {self.kind} is not read here")
        return int(DTYPES[self.kind][1:])

    @cached_property
    def numbers(self) -> np.ndarray:
        numbers = np.frombuffer(self.load(), f"{self.order}{DTYPES[self.kind]}")
        if len(numbers) != self.count:
            raise ValueError(f"{len(numbers)} numbers instead of {self.count}")
        return numbers


@dataclass(eq=False)
class Tensor:
    """A view of a storage; numbers count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize

    def array(self) -> np.ndarray:
        numbers = self.storage.numbers
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        if 0 not in self.shape and last >= len(numbers):
            raise ValueError("a tensor beyond the end of its storage")
        view = np.lib.stride_tricks.as_strided(numbers[self.offset:], self.shape,
                                               [stride * numbers.itemsize for stride in self.strides])
        array = np.array(view, dtype=view.dtype.newbyteorder("="), order="C")
        if self.storage.kind == "BFloat16Storage":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32
    if not isinstance(storage, Storage) or not whole or not all(
            isinstance(n, int) and 0 <= n < 1 << 48 for n in (offset, *shape, *strides)):
        raise Refused("a tensor of impossible shape")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor or parameter that has attributes besides."""
    if not isinstance(function, Name) or function not in _TENSORS or not isinstance(arguments, tuple):
        raise Refused("a tensor of unknown kind")
    return _TENSORS[function](*arguments)


def _attribute(owner: Any, name: Any) -> Stranger:
    """How old pickles spell the method of a class, as HistoryBuffer.mean."""
    if not isinstance(owner, Stranger) or not isinstance(name, str) or name.startswith("_"):
        raise Refused("a call of getattr")
    return Stranger(f"{owner.name}.{name}()")


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter, "torch._utils._rebuild_parameter_with_state": _parameter}


class _TorchUnpickler(Unpickler):
    dispatch = dict(Unpickler.dispatch)
    allowed = {**ALLOWED, **_TENSORS, "torch._tensor._rebuild_from_type_v2": _of_type, "torch.Size": tuple,
               "collections.defaultdict": lambda *_: {}, "builtins.getattr": _attribute,
               "__builtin__.getattr": _attribute}

    def __init__(self, file: Any, storage: Callable[..., Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        parts = [*module.split("."), *name.split(".")]
        is_class = parts[0] in LIBRARIES and name[:1].isupper() and not any(part.startswith("_") for part in parts)
        full = f"{module}.{name}"
        if full in self.allowed or not (is_class or full in HARMLESS):
            return super().find_class(module, name)
        return Stranger(full if "." not in name else f"{full}()")  # a method of a class, which is never called

    def call(self, name: Any, arguments: Any) -> Any:
        if not isinstance(name, Stranger):
            return super().call(name, arguments)
        if name.name.endswith("()"):
            raise Refused(f"a call of {name.name[:-2]}")
        return Stranger(name.name)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def set_state(self, value: Any, state: Any) -> None:
        if not isinstance(value, (Stranger, dict, Tensor)):  # torch keeps versions of modules beside a state_dict
            super().set_state(value, state)

    def load_binpersid(self) -> None:
        self.stack[-1] = self.persistent(*self.stack[-1]) if isinstance(self.stack[-1], tuple) else self.refuse()

    dispatch[pickle.BINPERSID[0]] = load_binpersid

    def persistent(self, word: Any, kind: Any, key: Any, *rest: Any) -> Any:
        """("storage", its class, a key, the device, the number of elements, a view of it or None); or ("module", a
        class, its source)."""
        if word == "module" and isinstance(kind, Stranger):
            return kind
        if word != "storage" or not isinstance(kind, Stranger) or not isinstance(key, str) or len(rest) < 2 \
                or type(rest[1]) is not int or rest[2:] not in ((), (None,)):
            raise Refused("a storage of unknown kind")
        return self.storage(kind.name.rpartition(".")[2], key, rest[1])


# --- the two formats


def _read_zip(path: Path, data: bytes) -> Any:
    archive = zipfile.ZipFile(io.BytesIO(data))
    files = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in files if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in files):
        what = "a program of TorchScript; save its state_dict()" if pickles else "a zip file, but none of torch.save"
        raise CheckpointError(f"{path}: is {what}")
    if sum(info.file_size for info in files.values()) > len(data) or any(
            info.compress_type != zipfile.ZIP_STORED for info in files.values()):
        raise Refused("compressed or overlapping parts")
    root = pickles[0][:-len("data.pkl")]
    order = ">" if f"{root}byteorder" in files and archive.read(f"{root}byteorder") == b"big" else "<"
    storages: dict[tuple[str, str], Storage] = {}

    def storage(kind: str, key: str, count: int) -> Storage:
        name = f"{root}data/{key}"
        if name not in files:
            raise ValueError(f"{name} is not in it")
        return storages.setdefault((kind, key), Storage(kind, count, order, lambda: archive.read(name)))

    return _TorchUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(data: bytes) -> Any:
    """Pickles one after the other: a number, the protocol, the system, the content, the keys; then the storages in the
    order of the keys, each behind its number of elements."""
    file = io.BytesIO(data)
    storages: dict[str, Storage] = {}
    places: dict[str, slice] = {}

    def storage(kind: str, key: str, count: int) -> Storage:
        return storages.setdefault(key, Storage(kind, count, "<", lambda: data[places[key]]))

    _, protocol, _, content, keys = (_TorchUnpickler(file, storage).load() for _ in range(5))
    if protocol != 1001 or not isinstance(keys, list):
        raise ValueError(f"protocol {protocol}")
    place = file.tell()
    for key in keys:
        begin = place + 8
        place = begin + struct.unpack_from("<Q", data, place)[0] * storages[key].itemsize
        if place > len(data):
            raise ValueError("it ends before its tensors do")
        places[key] = slice(begin, place)
    return content
