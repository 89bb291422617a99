"""Files as `torch.save` writes them, made without torch: its zip format and the older one."""
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

KINDS = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "u2": "BFloat16Storage", "i8": "LongStorage",
         "b1": "BoolStorage"}
MAGIC = 0x1950a86a20f9469cfc6c


def plain(value):
    """The instructions that make a plain value, to be put into a larger pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def call(name, *arguments):
    """name(*arguments), each argument given as instructions."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n(".encode() + b"".join(arguments) + b"tR"


def tensor(key, array, *, offset=0, shape=None, strides=None, kind=None):
    """A view of the storage `key`, which holds all of an array; numbers count elements."""
    kind = kind or KINDS[array.dtype.str[1:]]
    shape = array.shape if shape is None else shape
    strides = [int(np.prod(shape[i + 1:])) for i in range(len(shape))] if strides is None else strides
    storage = (b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key) + plain("cpu") + plain(array.size)
               + b"tQ")
    return call("torch._utils._rebuild_tensor_v2", storage, plain(offset), plain(tuple(shape)), plain(tuple(strides)),
                plain(False), call("collections.OrderedDict"))


def mapping(entries):
    """A dict of texts to values, which are given as instructions."""
    return b"}(" + b"".join(plain(name) + value for name, value in entries.items()) + b"u"


def content(state, **others):
    """A checkpoint of MMDetection: `state` and `others` are instructions."""
    return mapping({**others, "state_dict": mapping(state)})


def write_zip(path, made, storages, *, order="little", name="archive", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{name}/data.pkl", b"\x80\x02" + made + b".")
        archive.writestr(f"{name}/byteorder", order)
        for key, array in storages.items():
            array = np.ravel(array)
            array = array.astype(array.dtype.newbyteorder(">" if order == "big" else "<"))
            archive.writestr(f"{name}/data/{key}", array.tobytes())
        archive.writestr(f"{name}/version", "3\n")
    return path


def write_legacy(path, made, storages, *, protocol=2):
    made = made.replace(b"tQ", b"NtQ")  # a view of the storage, or None
    parts = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}]
    data = b"".join(pickle.dumps(part, protocol=protocol) for part in parts) + b"\x80\x02" + made + b"."
    data += pickle.dumps(list(storages), protocol=protocol)
    Path(path).write_bytes(data + b"".join(struct.pack("<q", array.size) + array.tobytes()
                                           for array in storages.values()))
    return path


def save(path, state, *, legacy=False, **others):
    """A checkpoint of MMDetection with arrays, and plain values beside them."""
    storages = {str(i): np.ascontiguousarray(array) for i, array in enumerate(state.values())}
    made = content({name: tensor(key, storages[key], shape=state[name].shape) for key, name in zip(storages, state)},
                   **{name: plain(value) for name, value in others.items()})
    return (write_legacy if legacy else write_zip)(path, made, storages)


class State(dict):
    """Entries as MMDetection names them, drawn from a seed."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def conv(self, name, c_out, c_in, size, *, bias=False):
        self[f"{name}.weight"] = (self.rng.normal(size=(c_out, c_in, size, size)) / size).astype(np.float32)
        if bias:
            self[f"{name}.bias"] = self.rng.normal(size=c_out).astype(np.float32)

    def norm(self, name, channels, *, batch=True):
        for leaf in ("weight", "bias", *(("running_mean", "running_var") if batch else ())):
            self[f"{name}.{leaf}"] = self.rng.uniform(0.5, 1.5, channels).astype(np.float32)
        if batch:
            self[f"{name}.num_batches_tracked"] = np.array(7)


def resnet(blocks, widths, *, bottleneck, groups=1, split=None, offsets=None, prefix="backbone."):
    """A backbone. `split`: channels of Res2Net's splits in res2; `offsets`: {stage: channels of its conv_offset}."""
    state, c_in = State(), widths[0]
    if split:
        for i, (a, b) in enumerate(((3, 4), (4, 4), (4, widths[0]))):
            state.conv(f"{prefix}stem.{3 * i}", b, a, 3)
            state.norm(f"{prefix}stem.{3 * i + 1}", b)
    else:
        state.conv(f"{prefix}conv1", widths[0], 3, 7)
        state.norm(f"{prefix}bn1", widths[0])
    for stage, (count, width) in enumerate(zip(blocks, widths)):
        c_out = 4 * width if bottleneck else width
        inner = width * (groups > 1) * 2 or width
        for index in range(count):
            block = f"{prefix}layer{stage + 1}.{index}"
            middle = 4 * split * 2**stage if split else inner
            plan = [(1, middle, c_in, 1), (3, c_out, middle, 1)] if split else [
                (1, inner, c_in, 1), (2, inner, inner // groups, 3), (3, c_out, inner, 1)] if bottleneck else [
                (1, width, c_in, 3), (2, width, width, 3)]
            for number, out, into, size in plan:
                state.conv(f"{block}.conv{number}", out, into, size)
                state.norm(f"{block}.bn{number}", out)
            for i in range(3 if split else 0):
                state.conv(f"{block}.convs.{i}", split * 2**stage, split * 2**stage, 3)
                state.norm(f"{block}.bns.{i}", split * 2**stage)
            for part in ("convs.0", "convs.1", "convs.2") if split else ("conv2",):
                if stage in (offsets or {}):
                    state.conv(f"{block}.{part}.conv_offset", offsets[stage], split * 2**stage if split else inner, 3,
                               bias=True)
            if index == 0 and (bottleneck or stage):
                state.conv(f"{block}.downsample.{1 if split else 0}", c_out, c_in, 1)
                state.norm(f"{block}.downsample.{2 if split else 1}", c_out)
            c_in = c_out
    return state


def gfl(state, widths, *, channels=32, classes=3, reg_max=16, joint=False):
    """FPN and head on the maps of a backbone, whose last three have so many channels."""
    for i, width in enumerate(widths):
        state.conv(f"neck.lateral_convs.{i}.conv", channels, width, 1, bias=True)
    for i in range(5):
        state.conv(f"neck.fpn_convs.{i}.conv", channels, channels, 3, bias=True)
        state[f"bbox_head.scales.{i}.scale"] = np.array(1 + i / 10, np.float32)
    for kind in ("cls", "reg"):
        for i in range(4):
            state.conv(f"bbox_head.{kind}_convs.{i}.conv", channels, channels, 3)
            state.norm(f"bbox_head.{kind}_convs.{i}.gn", channels, batch=False)
    state.conv("bbox_head.gfl_cls", classes + joint, channels, 3, bias=True)
    state.conv("bbox_head.gfl_reg", 4 * (reg_max + 1), channels, 3, bias=True)
    if joint:
        state.conv("bbox_head.reg_conf.0", 64, 20, 1, bias=True)
        state.conv("bbox_head.reg_conf.2", 1, 64, 1, bias=True)
    state["bbox_head.integral.project"] = np.arange(reg_max + 1, dtype=np.float32)
    return state
