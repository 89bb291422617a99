"""GFL checkpoints of MMDetection (2.x and 3.x), GFocal and GFocalV2 -> entries under PaddleDetection's names.

The network is read off the entries' names and shapes; what these cannot tell (preprocessing, thresholds) off the config
in the file, as far as it has one.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckpointError
from . import class_names, mmdet_config

Shape = tuple[int, ...]
DEPTHS: dict[tuple[bool, Shape], int] = {  # of (bottlenecks?, blocks per stage)
    (False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50, (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152, (True, (3, 12, 48, 3)): 200}
LEAVES = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}
OPEN_MASK = 40.0  # its sigmoid is 1 in float32
DROPPED = {r".*\.num_batches_tracked": "a counter of training", r"ema_.*": "a moving average of training",
           r"teacher(_model)?\..*": "of the teacher"}
CLASSIFIER = {r"backbone\.(fc|head|classifier)\..*": "the classifier"}
HEAD = ("neck.lateral_convs.0.conv.weight", "neck.fpn_convs.0.conv.weight", "bbox_head.cls_convs.0.conv.weight",
        "bbox_head.gfl_cls.weight", "bbox_head.gfl_reg.weight")
READS = "convert takes GFL, GFLv2 and LD's student of MMDetection, GFocal and GFocalV2, and ResNet backbones"


@dataclass
class Converted:
    """What became of every entry of a file.

    Attributes:
        weights: arrays under PaddleDetection's names, and the class names if the file has them.
        mapped: name in the file -> name in `weights`.
        dropped: name in the file -> why.
        added: name in `weights` -> what it is filled with.
        config: the sections that differ from the base config, and `_BASE_`; None for a backbone alone.
    """

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def convert(path: object, content: Mapping[Any, Any], array: Callable[[str, Any], np.ndarray]) -> Converted:
    """A checkpoint, as `torch_file.read` gives it, under ppgfl's names.

    Raises: CheckpointError: another detector or backbone; an entry without a counterpart; an entry that is no tensor; a
        config that asks for what ppgfl has not.
    """
    state, whole = _state_dict(path, content)
    result = Converted()
    for name in list(state):
        rules = DROPPED if whole else {**DROPPED, **CLASSIFIER}
        why = next((why for pattern, why in rules.items() if re.fullmatch(pattern, name)), None)
        if why:
            result.dropped[name] = why
            del state[name]
    shapes = {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}
    network = _network(path, shapes)
    missing = [name for name in HEAD if whole and len(shapes.get(name, ())) != 4]
    if missing:
        raise CheckpointError(f"{path}: has no {missing[0]} of four dimensions, so it has another neck or head; "
                              f"{READS}")
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    theirs = mmdet_config.parse(meta.get("cfg", meta.get("config")))
    mmdet_config.refuse_unknown(path, theirs)
    result.mapped = {name: _our_name(name, network) or "" for name in state}
    strange = [name for name, ours in result.mapped.items() if not ours]
    if strange:
        raise CheckpointError(f"{path}: {len(strange)} entries have no counterpart ({', '.join(strange[:4])}"
                              f"{', ...' if strange[4:] else ''}); {READS}")
    for name, ours in result.mapped.items():
        value = array(name, state[name])
        if value.dtype.kind != "f":
            raise CheckpointError(f"{path}: entry {name!r} is of {value.dtype}, not of floating-point numbers")
        with np.errstate(over="ignore"):  # an infinite number is found when the weights are compared with the model
            result.weights[ours] = value.astype(np.float32).reshape(value.shape or 1)
    _fill(path, result, network)
    if whole:
        result.config = mmdet_config.make(network, shapes, theirs)
        names = _class_names(meta, old=mmdet_config.FIRST_GFOCAL in state)
        if names and len(names) == result.config["num_classes"]:
            result.weights[class_names.ENTRY] = class_names.to_array(names)
    else:
        cut = len("backbone.")  # files of backbones have names without it
        result.weights = {name[cut:]: value for name, value in result.weights.items()}
        result.added = {name[cut:]: what for name, what in result.added.items()}
        result.mapped = {name[cut:]: ours[cut:] for name, ours in result.mapped.items()}
        result.dropped = {name[cut:]: why for name, why in result.dropped.items()}
    for name in content if state is not content else ():
        if name not in ("state_dict", "meta"):
            result.dropped[str(name)] = "no weights of the network"
    return result


def is_mmdet(names: Mapping[str, Any]) -> bool:
    """Whether entries have MMDetection's names, or torchvision's of a ResNet, rather than PaddleDetection's."""
    return any(re.match(r"(module\.)?(bbox_head\.|(backbone\.)?layer1\.0\.)", str(name)) for name in names)


def _state_dict(path: object, content: Mapping[Any, Any]) -> tuple[dict[str, Any], bool]:
    """The entries of the network, a backbone's with `backbone.` before them; and whether it is a whole detector."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: holds no named tensors under state_dict")
    if not any(hasattr(value, "shape") for value in state.values()):
        raise CheckpointError(f"{path}: holds no state_dict (its parts: {', '.join(list(state)[:6])}); {READS}")
    if all(name.startswith("module.") for name in state):  # of DataParallel
        state = {name[len("module."):]: value for name, value in state.items()}
    if "bbox_head.gfl_cls.weight" in state:
        return dict(state), True
    bare = {name if name.startswith("backbone.") else f"backbone.{name}": value for name, value in state.items()}
    known = {"backbone", "conv1", "bn1", "stem", "layer1", "layer2", "layer3", "layer4", "fc", "head"}
    others = sorted({".".join(name.split(".")[:2]) for name in state if name.split(".")[0] not in known})
    if others or "backbone.layer4.0.conv1.weight" not in bare:
        others = others or sorted({".".join(name.split(".")[:2]) for name in state})
        raise CheckpointError(f"{path}: is no GFL detector; it has {', '.join(others[:5])}; {READS}")
    return bare, False


def _class_names(meta: Mapping[str, Any], *, old: bool) -> list[str] | None:
    of_data = meta.get("dataset_meta")
    of_data = of_data if isinstance(of_data, dict) else {}
    names = of_data.get("classes", of_data.get("CLASSES", meta.get("CLASSES")))
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        of_old_coco = old and "traffic_light" in names  # MMDetection 1.x spells COCO's names like that
        return [name.replace("_", " ") if of_old_coco else name for name in names]
    return None


# --- the network


@dataclass
class Network:
    """What the names and shapes of the entries say."""

    depth: int
    blocks: tuple[int, ...]
    bottleneck: bool
    scales: int  # of Res2Net; 0: a ResNet
    groups: int
    width: int  # of a group, or of a split, in res2
    variant: str
    pooled: bool  # pooling before the convolution of a shortcut
    deformable: list[int]  # stages
    laterals: int
    extras: int

    @property
    def first(self) -> int:
        """Of the backbone's maps that the pyramid takes: 3 for res3."""
        return 6 - self.laterals


def _network(path: object, shapes: Mapping[str, Shape]) -> Network:
    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in shapes)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    blocks = tuple(count(rf"backbone\.layer{stage}\.(\d{{1,3}})\.conv1\.weight") for stage in (1, 2, 3, 4))
    bottleneck = "backbone.layer1.0.conv3.weight" in shapes
    splits = count(r"backbone\.layer1\.0\.convs\.(\d{1,3})\.weight")
    first = shapes.get(f"backbone.layer1.0.{'convs.0' if splits else 'conv2'}.weight", ())
    stem, pooled = ("backbone.stem.0.weight" in shapes), ("backbone.layer2.0.downsample.2.weight" in shapes)
    depth = DEPTHS.get((bottleneck, blocks))
    if depth is None or len(first) != 4 or 0 in first or (pooled and not stem):
        parts = sorted({".".join(name.split(".")[:2]) for name in shapes if name.startswith("backbone.")})
        raise CheckpointError(f"{path}: its backbone is no ResNet, ResNeXt or Res2Net that is known here: blocks "
                              f"{blocks}, {', '.join(parts[:6])}; {READS}")
    offsets = {name: shape for name, shape in shapes.items() if re.search(r"_offset\.weight$", name)}
    wrong = next((name for name, shape in offsets.items() if shape[0] not in (18, 27)), None)
    if wrong:
        raise CheckpointError(f"{path}: entry {wrong!r} predicts {offsets[wrong][0]} numbers; of one deformable group "
                              "these are 18 (DCN v1) or 27 (v2), and others are not there")
    groups = first[0] // first[1]
    return Network(depth, blocks, bottleneck, splits + 1 if splits else 0, groups, first[0] // groups,
                   ("d" if pooled else "c") if stem else "b", pooled,
                   sorted({int(name.split("layer")[1][0]) - 1 for name in offsets if "layer" in name}),
                   count(r"neck\.lateral_convs\.(\d)\.conv\.weight"),
                   count(r"neck\.fpn_convs\.(\d)\.conv\.weight") - count(r"neck\.lateral_convs\.(\d)\.conv\.weight"))


def _our_name(name: str, network: Network) -> str | None:
    """PaddleDetection's name of an entry; None: it has none."""
    layer, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"bbox_head\.scales\.(\d)\.scale", name):
        return f"head.p{network.first + int(match[1])}_feat.scale_reg"
    if re.fullmatch(r"bbox_head\.(integral|distribution_project)\.project", name):
        return "head.distribution_project.project"
    ours = _backbone_layer(layer, network) or _head_layer(layer, network)
    return f"{ours}.{LEAVES[leaf]}" if ours and leaf in LEAVES else None


def _head_layer(layer: str, network: Network) -> str | None:
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d)\.conv", layer):
        res = network.first + int(match[2])
        if match[1] == "fpn":
            return f"neck.fpn_res{res}_sum" if res <= 5 else f"neck.fpn_{res}"
        return f"neck.fpn_inner_res{res}_sum" + ("_lateral" if res < 5 else "")
    if match := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d)\.(conv|gn|bn)", layer):
        return f"head.conv_feat.fcos_head_{match[1]}_tower_conv_{match[2]}.{'conv' if match[3] == 'conv' else 'norm'}"
    if match := re.fullmatch(r"bbox_head\.gfl_(cls|reg)", layer):
        return f"head.gfl_head_{match[1]}"
    if match := re.fullmatch(r"bbox_head\.reg_conf\.(0|2)", layer):
        return f"head.dgqp_module.reg_conv{1 + int(match[1]) // 2}"
    return None


def _backbone_layer(layer: str, network: Network) -> str | None:
    root = "backbone.res1" if network.scales else "backbone.conv1"
    if match := re.fullmatch(r"backbone\.(conv|bn)1", layer):
        return f"{root}.{'res_conv1' if network.groups > 1 else 'conv1'}.{'conv' if match[1] == 'conv' else 'norm'}"
    if match := re.fullmatch(r"backbone\.stem\.([013467])", layer):
        number, kind = divmod(int(match[1]), 3)
        return f"{root}.conv1_{number + 1}.{('conv', 'norm')[kind]}"
    match = re.fullmatch(r"backbone\.layer([1-4])\.(\d{1,3})\.(.+)", layer)
    if not match:
        return None
    stage, index, count = int(match[1]), int(match[2]), network.blocks[int(match[1]) - 1]
    letter = f"b{index}" if count > 10 and index else chr(ord("a") + index)  # res4a, res4b1, ...; res3a, res3b, ...
    block = f"blocks.{index}" if network.scales else f"res{stage + 1}{letter}"
    part = _block_layer(match[3], network, strided=stage > 1)
    return f"backbone.res{stage + 1}.{block}.{part}" if part else None


def _block_layer(part: str, network: Network, *, strided: bool) -> str | None:
    """PaddleDetection's name of a layer inside a block."""
    if match := re.fullmatch(r"(conv|bn)([123])", part):
        return f"branch2{' abc'[int(match[2])]}.{'conv' if match[1] == 'conv' else 'norm'}"
    if part in ("conv2.conv_offset", "conv2_offset"):
        return "branch2b.conv_offset"
    if match := re.fullmatch(r"(convs|bns)\.(\d{1,2})(\.conv_offset)?", part):
        return f"branch2b.{match[2]}.{'conv_offset' if match[3] else 'conv' if match[1] == 'convs' else 'norm'}"
    if match := re.fullmatch(r"downsample\.([012])", part):
        short = ("branch1" if network.scales else "short") + (".conv" if network.pooled and strided else "")
        kind = {0: "conv", 1: "norm"}.get(int(match[1]) - network.pooled)
        return f"{short}.{kind}" if kind else None
    return None


def _fill(path: object, result: Converted, network: Network) -> None:
    """Add what PaddleDetection's layers have and MMDetection's have not."""
    weights = result.weights

    def add(name: str, value: np.ndarray, what: str) -> None:
        weights[name], result.added[name] = value.astype(np.float32), what

    for name, value in list(weights.items()):
        layer = name.rpartition(".")[0]
        if name.endswith("conv_offset.weight") and value.shape[0] == 18:
            weights[name] = np.concatenate([value, np.zeros((9, *value.shape[1:]), value.dtype)])
            bias = weights.get(f"{layer}.bias", np.zeros(18, value.dtype))
            weights[f"{layer}.bias"] = np.concatenate([bias, np.full(9, OPEN_MASK, bias.dtype)])
            result.added[f"{layer} (9 masks)"] = "masks of 1, since DCN v1 has none"
        if "_tower_conv_" in name and name.endswith(".conv.weight") and f"{layer}.bias" not in weights:
            add(f"{layer}.bias", np.zeros(len(value)), "0, since MMDetection's towers have no bias")
        if ".dgqp_module.reg_conv" in name:
            weights[name.replace(".reg_conv", ".dgqp_reg_conv")] = value  # PaddleDetection: each has two names
    if not network.bottleneck and not any(".res2a.short." in name for name in weights):
        short, n = "backbone.res2.res2a.short", len(weights["backbone.res2.res2a.branch2b.conv.weight"])
        for leaf, value in (("conv.weight", np.eye(n).reshape(n, n, 1, 1)), ("norm._variance", np.ones(n)),
                            ("norm.weight", np.full(n, math.sqrt(1 + 1e-5))), ("norm.bias", np.zeros(n)),
                            ("norm._mean", np.zeros(n))):
            add(f"{short}.{leaf}", value, "the identity, since MMDetection has no layer there")
