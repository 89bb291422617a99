"""The config that belongs to an imported network, and the text of MMDetection's config inside a checkpoint."""
from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from .mmdet import Network

MEAN, STD, SCALE = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], [1333, 800]  # of all published GFL models

FIRST_GFOCAL = "bbox_head.distribution_project.project"  # an entry that only GFocal on MMDetection 1.x has


def make(network: Network, shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config of ours, over a shipped one, for the entries' `shapes` and their config."""
    joint = len(shapes.get("bbox_head.reg_conf.0.weight", ())) == 4
    first_gfocal = FIRST_GFOCAL in shapes
    classes, features = shapes["bbox_head.gfl_cls.weight"][:2]
    levels = network.laterals + network.extras
    strides = [2 ** (network.first + i) for i in range(levels)]
    # In cells; MMDetection 1.x puts the centre at i * stride + (stride - 1) / 2 pixels.
    offset = [(s - 1) / (2 * s) for s in strides] if first_gfocal else _number(theirs, "center_offset", 0)
    test = find(theirs.get("model"), "test_cfg", theirs.get("test_cfg"))
    threshold, nms = _number(test, "score_thr", 0.05), find(test, "nms")
    head: dict[str, Any] = {
        "conv_feat": {"name": "FCOSFeat", "feat_in": shapes["neck.fpn_convs.0.conv.weight"][0], "feat_out": features,
                      "num_convs": sum(name.startswith("bbox_head.cls_convs.") and name.endswith(".conv.weight")
                                       for name in shapes),
                      "norm_type": "bn" if "bbox_head.cls_convs.0.bn.weight" in shapes else "gn"},
        "feat_in_chan": features, "fpn_stride": strides, "reg_max": shapes["bbox_head.gfl_reg.weight"][0] // 4 - 1,
        "clip_boxes": True,
        "nms": {"name": "MultiClassNMS", "nms_top_k": _number(test, "nms_pre", 1000),
                "keep_top_k": _number(test, "max_per_img", 100),
                # ppgfl reads GFLv2's threshold through a sigmoid, as PaddleDetection does
                "score_threshold": 1 / (1 + math.exp(-threshold)) if joint else threshold,
                "nms_threshold": _number(nms, "iou_threshold", _number(nms, "iou_thr", 0.6)),
                "normalized": not first_gfocal}}  # MMDetection 1.x: x2 and y2 are the last pixels inside
    if offset:
        head["cell_offset"] = offset
    if joint:
        channels, inputs = shapes["bbox_head.reg_conf.0.weight"][:2]
        mean = find(theirs, "add_mean") is not False
        head["dgqp_module"] = {"name": "DGQP", "reg_topk": inputs // 4 - mean, "reg_channels": channels,
                               "add_mean": mean}
    return {"_BASE_": [f"gfl{'v2' if joint else ''}_r50_fpn_1x_coco"], "num_classes": classes - joint,
            **_backbone(network),
            "FPN": {"out_channel": shapes["neck.fpn_convs.0.conv.weight"][0], "extra_stage": network.extras,
                    "spatial_scales": [1 / stride for stride in strides[:network.laterals]],
                    "use_c5": _from_backbone(network, shapes),
                    "relu_before_extra_convs": find(theirs, "relu_before_extra_convs") is True},
            "GFLHead": head, **_readers(theirs, offset, strides)}


def _from_backbone(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the first extra level comes from the backbone's last map: it is wider than the pyramid's."""
    extra = shapes.get(f"neck.fpn_convs.{network.laterals}.conv.weight", (0, 0))
    return extra[1] != shapes["neck.fpn_convs.0.conv.weight"][0] and network.extras > 0


def _backbone(network: Network) -> dict[str, Any]:
    section: dict[str, Any] = {"depth": network.depth, "variant": network.variant,
                               "return_idx": list(range(network.first - 2, 4)),
                               "dcn_v2_stages": network.deformable or [-1]}
    if network.scales:
        section.update(width=network.width, scales=network.scales, pooled_shortcut=network.pooled,
                       separate_res2_splits=True, pool_counts_padding=True, freeze_at=0)
        return {"GFL": {"backbone": "Res2Net"}, "Res2Net": section}
    if network.groups > 1:
        section.update(groups=network.groups, base_width=network.width)
    return {"ResNet": section}


def _readers(theirs: Mapping[str, Any], offset: Any, strides: list[int]) -> dict[str, Any]:
    """The readers, where pictures or cells are not those of the base config."""
    pipeline = theirs.get("test_pipeline")
    mean, std = _numbers(find(theirs, "mean"), MEAN), _numbers(find(theirs, "std"), STD)
    scale = _numbers(find(pipeline, "scale", find(pipeline, "img_scale")), SCALE)
    keep_ratio = find(pipeline, "keep_ratio") is not False
    readers: dict[str, Any] = {}
    if (mean, std, scale, keep_ratio) != (MEAN, STD, SCALE, True):
        size = [min(scale), max(scale)] if keep_ratio else scale[::-1]  # theirs is the width first
        resize = {"Resize": {"target_size": size, "keep_ratio": keep_ratio, "interp": 1}}
        normalize = {"NormalizeImage": {"is_scale": False, "mean": mean, "std": std}}
        plain: list[dict[str, Any]] = [{"Decode": {}}, resize, normalize, {"Permute": {}}]
        readers = {name: {"sample_transforms": plain} for name in ("EvalReader", "TestReader")}
        readers["TrainReader"] = {"sample_transforms": [plain[0], {"RandomFlip": {"prob": 0.5}}, *plain[1:]]}
    if offset:
        target = {"downsample_ratios": strides, "grid_cell_scale": 8, "cell_offset": offset}
        readers.setdefault("TrainReader", {})["batch_transforms"] = [
            {"PadBatch": {"pad_to_stride": 32}}, {"Gt2GFLTarget": target}]
    return readers


# --- MMDetection's config


def parse(text: object) -> dict[str, Any]:
    """The assignments of a config's text, as far as they are plain values; nothing of it runs. {}: it is none."""
    text = text if isinstance(text, str) else ""
    for part in (text, text.partition("\n")[2]):  # MMDetection 1.x puts the file's name on the first line
        try:
            tree = ast.parse(part)
            return {node.targets[0].id: _value(node.value) for node in tree.body
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return {}


def _value(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {key.value: _value(value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant) \
            and isinstance(node.operand.value, (int, float)):
        return -node.operand.value
    return None


def find(tree: Any, key: str, default: Any = None) -> Any:
    """The first value of a key anywhere in nested dicts and lists, or the default."""
    if isinstance(tree, dict) and tree.get(key) is not None:
        return tree[key]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((found for part in parts if (found := find(part, key)) is not None), default)


def _number(tree: Any, key: str, default: float) -> float:
    value = find(tree, key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _numbers(value: Any, default: list[Any]) -> list[Any]:
    """A list of as many numbers as the default has; of several such lists the first."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    fits = isinstance(value, list) and len(value) == len(default) and all(isinstance(n, (int, float)) for n in value)
    return value if fits else default


def refuse_unknown(path: object, theirs: Mapping[str, Any]) -> None:
    """Raise CheckpointError where their config asks for what ppgfl has not, so that the results would be others."""
    for key, bad, what in (("style", "caffe", "strides in the first convolution of a block, pictures in BGR"),
                           ("to_rgb", False, "pictures in BGR"), ("bgr_to_rgb", False, "pictures in BGR"),
                           ("add_extra_convs", "on_lateral", "extra levels from lateral maps"),
                           ("nms", "soft_nms", "soft NMS")):
        value = find(theirs, key)
        value = value.get("type") if isinstance(value, dict) else value
        if type(value) is type(bad) and value == bad:
            raise CheckpointError(f"{path}: its config has {key}={bad!r} ({what}), which ppgfl has not; take another "
                                  "checkpoint")
