"""Files of torch.save that try to run code, to take memory, or to hide something among the objects of a training.

Each is one CheckpointError, nothing of it runs, and a name that may do harm stands in the message.
"""
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch_files as made

from ppgfl import CheckpointError
from ppgfl.weights.torch_file import read

ARRAY = np.arange(6, dtype=np.float32)
WRITERS = [made.write_zip, made.write_legacy]
TOUCH = made.plain("touch ran")
CALLABLES = [
    "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "__builtin__.eval",
    "builtins.open", "builtins.__import__", "importlib.import_module", "pickle.loads", "marshal.loads",
    "types.FunctionType",
    "runpy.run_path", "operator.attrgetter", "functools.partial", "pty.spawn", "shutil.rmtree", "numpy.load",
    "torch.load", "torch.hub.load", "torch.jit.load", "torch.storage._load_from_bytes", "torch.serialization.load",
    "torch._utils._rebuild_qtensor", "torch.fx.graph_module.reduce_graph_module", "torch.utils.cpp_extension.load",
    "mmengine.fileio.io.load", "mmengine.Config.fromfile", "mmengine.config.Config._file2dict",
    "mmcv.runner.load_checkpoint",
    "mmengine.registry.build_functions.build_from_cfg", "torch._C._jit_set_profiling_mode", "torch.Tensor.__reduce__",
    "paddle.load", "webbrowser.open", "evil.Model", "collections.OrderedDict.__init__", "torch._inductor.Codecache"]


def calls():
    """Each callable, where the weights are and where nobody looks, by each instruction that calls."""
    for number, name in enumerate(CALLABLES):
        module, _, last = name.rpartition(".")
        if ".Config." in name or ".Tensor." in name or ".OrderedDict." in name:  # spelled module, class.method
            module, _, owner = module.rpartition(".")
            last = f"{owner}.{last}"
        spelled = f"{module}\n{last}\n".encode()
        made_by = [b"c" + spelled + b"(" + TOUCH + b"tR", b"c" + spelled + b"(" + TOUCH + b"t\x81",
                   b"(" + TOUCH + b"i" + spelled][number % 3]
        tensor = made.tensor("0", ARRAY)
        yield name, made.content({"x": tensor, "y": made_by}), name
        yield name, made.content({"x": tensor}, message_hub=b"]" + made.mapping({"a": made_by}) + b"a"), name


def tricks():
    def attribute(*words):
        return made.call("builtins.getattr", *words)

    history = b"cmmengine.logging\nHistoryBuffer\n"
    yield "getattr of a function", made.content({}, a=attribute(b"cos\nsystem\n", made.plain("x"))), "os.system"
    yield "getattr of a text", made.content({}, a=attribute(made.plain("x"), made.plain("format"))), "getattr"
    yield "getattr of a private", made.content({}, a=attribute(history, made.plain("__globals__"))), "getattr"
    yield ("a call of what getattr gave",
           made.content({}, a=attribute(history, made.plain("mean")) + b"(" + TOUCH + b"tR"), "HistoryBuffer.mean")
    yield "a storage that is a function", made.content({"x": made.tensor("0", ARRAY).replace(
        b"ctorch\nFloatStorage\n", b"cos\nsystem\n")}), "os.system"
    yield ("a rebuild of a function", made.content({"x": made.call(
        "torch._tensor._rebuild_from_type_v2", b"cos\nsystem\n", b"N", b")", b"N")}), "os.system")
    yield ("a rebuild by dict", made.content({"x": made.call(
        "torch._tensor._rebuild_from_type_v2", b"ccollections\nOrderedDict\n", b"N", b")", b"N")}), "unknown kind")
    for what, options in (("a negative offset", dict(offset=-1)), ("a negative stride", dict(strides=(-1,))),
                          ("two strides", dict(strides=(1, 1))),
                          ("a shape of 2^60", dict(shape=(1 << 60,), strides=(1,)))):
        yield what, made.content({"x": made.tensor("0", ARRAY, **options)}), "impossible shape"
    yield "a view beyond its end", made.content({"x": made.tensor("0", ARRAY, offset=1)}), "beyond the end"
    yield ("10^10 numbers of one", made.content({"x": made.tensor(
        "0", ARRAY, shape=(100_000, 100_000), strides=(0, 0))}), "claim more than")
    yield "more numbers than bytes", made.content({"x": made.tensor("0", ARRAY, kind="DoubleStorage")}), "damaged"
    yield "numbers that are not read", made.content({"x": made.tensor("0", ARRAY, kind="QInt8Storage")}), "QInt8Storage"
    yield "another key", made.content({"x": made.tensor("9", ARRAY)}), "damaged"
    yield "a way out", made.content({"x": made.tensor("../../etc/passwd", ARRAY)}), "damaged"
    yield "an extension", made.content({"x": b"\x82\x01"}), "an instruction"
    yield "no dict", made.plain([1]), "holds a list"
    yield "a whole model", b"cmmdet.models.detectors.gfl\nGFL\n)\x81", "a whole mmdet.models.detectors.gfl.GFL"
    yield "nested lists", b"]" * 300_000 + b"a" * 299_999, "damaged|holds a list"


FILES = [*calls(), *tricks()]


@pytest.mark.parametrize("write", WRITERS)
def test_each_is_refused_by_name_and_runs_nothing(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    assert len(FILES) > 60
    for what, content, says in FILES:
        write(tmp_path / "a.pth", content, {"0": ARRAY} if b"Storage\n" in content else {})
        with pytest.raises(CheckpointError, match=says) as error:
            found, array = read(tmp_path / "a.pth")
            for name, value in found["state_dict"].items():
                array(name, value)
            pytest.fail(f"{what} was read")
        assert "\n" not in str(error.value), what
        assert len(str(error.value)) < 500, what
        assert os.listdir(tmp_path) == ["a.pth"], what


def test_archives_that_are_not_what_they_say(tmp_path):
    content = made.content({"x": made.tensor("0", ARRAY)})
    path = tmp_path / "a.pth"

    def says():
        with pytest.raises(CheckpointError) as error:
            read(path)
        return str(error.value)

    made.write_zip(path, content, {"0": np.zeros(100_000, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed or overlapping" in says()
    made.write_zip(path, content, {"0": ARRAY})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert "TorchScript" in says()
    np.savez(tmp_path / "b.npz", x=ARRAY)
    os.replace(tmp_path / "b.npz", path)
    assert "a zip file, but none of torch.save" in says()
    made.write_legacy(path, content, {"0": ARRAY})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<q", 6) + ARRAY.tobytes(), struct.pack("<q", 1 << 62) + ARRAY.tobytes()))
    assert "ends before its tensors do" in says()
    path.write_bytes(data.replace(pickle.dumps(1001, protocol=2), pickle.dumps(7, protocol=2), 1))
    assert "protocol 7" in says()


@pytest.mark.parametrize("write", WRITERS)
def test_mutations_are_read_or_refused(tmp_path, write, cases=400):
    """Bytes changed, cut and doubled; PPGFL_FUZZ sets the number of files."""
    rng = np.random.default_rng(1)
    good = write(tmp_path / "a.pth", made.content({"x": made.tensor("0", ARRAY), "y": made.tensor("0", ARRAY, offset=2,
                 shape=(2, 2), strides=(1, 2))}, meta=made.plain({"CLASSES": ("a",)})), {"0": ARRAY}).read_bytes()
    for _ in range(int(os.environ.get("PPGFL_FUZZ", cases))):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            i, j = sorted(rng.integers(0, len(data), 2))
            change = rng.integers(0, 3)
            if change == 0:
                data[i] = rng.integers(0, 256)
            elif change == 1:
                del data[i:min(j, i + 4)]
            else:
                data[i:i] = data[i:j]
        (tmp_path / "a.pth").write_bytes(bytes(data))
        try:
            found, array = read(tmp_path / "a.pth")
            state = found.get("state_dict")
            values = [array(name, value) for name, value in state.items()] if isinstance(state, dict) else []
        except CheckpointError:
            continue
        assert all(isinstance(value, np.ndarray) for value in values)
