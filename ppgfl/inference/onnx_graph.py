"""The detector as an ONNX graph, written layer by layer: the same file from every Paddle.

Inputs  image        [N, 3, H, W]  prepared as the metadata says; H and W are multiples of 32
        scale_factor [N, 2]        input size / original size, height first
Outputs boxes        [N, A, 4]     x1 y1 x2 y2 in pixels of the original image, one per cell of all levels
        scores       [N, A, C]     in 0..1
or, with NMS inside,
        bbox         [M, 6]        class, score, x1, y1, x2, y2; the images one after the other, best score first
        bbox_num     [N]           detections of each image
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from paddle import Tensor, nn

from ..errors import ExportError
from ..model.decode import MultiClassNMS
from ..model.fpn import FPN
from ..model.gfl import GFL
from ..model.head import GFLHead
from ..model.layers import ConvNorm, fold_norm
from ..model.resnet import BasicBlock, ResNet

OPSET = 13  # every ONNX Runtime since 1.7 (2021)
PRODUCER = "ppgfl"


def write(path: Path, model: GFL, *, image_shape: Sequence[int | None], settings: Mapping[str, Any],
          with_nms: bool = False) -> None:
    """Write the model to `path`.

    Args:
        model: a `GFL` in evaluation mode.
        image_shape: [N, 3, H, W] with None for what is free.
        settings: the content of infer_cfg.yml, for the metadata `class_names`, `preprocess` and `nms` (JSON).
        with_nms: end in bbox and bbox_num.

    Raises: ExportError for a layer that this writer does not know (deformable convolutions).
    """
    graph = Writer()
    cls_maps, reg_maps = _head(graph, model.head, _neck(graph, model.neck, _backbone(graph, model.backbone, "image")))
    boxes, scores = _decode(graph, model, cls_maps, reg_maps)  # [N, A, 4], [N, C, A]
    nms = {"score_threshold": model.decoder.threshold(), "nms_top_k": model.decoder.nms.nms_top_k,
           "keep_top_k": model.decoder.nms.keep_top_k, "nms_threshold": model.decoder.nms.nms_threshold}
    batch, _, height, width = (n or letter for n, letter in zip(image_shape, "NCHW"))
    if with_nms:
        _check_nms(model.decoder.nms)
        bbox, bbox_num = _suppress(graph, boxes, scores, nms)
        outputs = [graph.output(bbox, "bbox", TensorProto.FLOAT, ["M", 6]),
                   graph.output(bbox_num, "bbox_num", TensorProto.INT32, [batch])]
    else:
        scores = graph.add("Transpose", scores, perm=[0, 2, 1])
        outputs = [graph.output(boxes, "boxes", TensorProto.FLOAT, [batch, "A", 4]),
                   graph.output(scores, "scores", TensorProto.FLOAT, [batch, "A", model.decoder.num_classes])]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, height, width]),
              helper.make_tensor_value_info("scale_factor", TensorProto.FLOAT, [batch, 2])]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "gfl", inputs, outputs, graph.weights), producer_name=PRODUCER,
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(proto, {
        "class_names": json.dumps(settings["label_list"]),
        "preprocess": json.dumps(settings["Preprocess"]), "nms": json.dumps(nms)})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


class Writer:
    """Nodes and weights so far. A value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: str | np.ndarray | np.generic, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; an input is a name or an array. Returns the name of its output, or the list of them."""
        sources = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, sources, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: np.ndarray | np.generic) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str | None]) -> Any:
        """Give a value the name of an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        return helper.make_tensor_value_info(name, dtype, shape)


# --- layers


def _layer(graph: Writer, layer: nn.Layer, x: str) -> Any:
    """Any of the building blocks that backbone, neck and head are made of."""
    if isinstance(layer, nn.Sequential):
        for child in layer.children():
            x = _layer(graph, child, x)
        return x
    if isinstance(layer, nn.Identity):
        return x
    if isinstance(layer, nn.Conv2D):
        return _conv(graph, layer, x, layer.weight, layer.bias)
    if isinstance(layer, ConvNorm) and not layer.deformable:
        return _conv_norm(graph, layer, x)
    if isinstance(layer, nn.AvgPool2D):
        return graph.add("AveragePool", x, kernel_shape=[layer.ksize] * 2, strides=[layer.stride] * 2,
                         ceil_mode=int(layer.ceil_mode))
    raise ExportError(f"--onnx: the model has a {type(layer).__name__} that is not written as ONNX (deformable "
                      "convolutions are known to Paddle Inference only); leave --onnx out")


def _conv(graph: Writer, conv: nn.Layer, x: str, weight: Tensor, bias: Tensor | None) -> Any:
    if not isinstance(conv, nn.Conv2D):
        return _layer(graph, conv, x)
    inputs = [x, weight.numpy()] + ([] if bias is None else [bias.numpy()])
    top, left = _pair(conv._padding)
    return graph.add("Conv", *inputs, kernel_shape=list(conv._kernel_size), strides=_pair(conv._stride),
                     pads=[top, left, top, left], dilations=_pair(conv._dilation), group=conv._groups)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _conv_norm(graph: Writer, layer: ConvNorm, x: str) -> Any:
    if isinstance(layer.norm, nn.GroupNorm):
        x = _group_norm(graph, layer.norm, _layer(graph, layer.conv, x))
    elif isinstance(layer.norm, nn.Identity):  # folded already
        x = _layer(graph, layer.conv, x)
    else:
        x = _conv(graph, layer.conv, x, *fold_norm(layer.conv, layer.norm))
    return graph.add("Relu", x) if layer.relu else x


def _group_norm(graph: Writer, norm: nn.GroupNorm, x: str) -> Any:
    groups = norm._num_groups
    per_group = graph.add("Reshape", x, np.array([0, groups, -1]))
    normal = graph.add("InstanceNormalization", per_group, np.ones(groups, np.float32), np.zeros(groups, np.float32),
                       epsilon=norm._epsilon)
    x = graph.add("Reshape", normal, graph.add("Shape", x))
    scale, shift = (p.numpy().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return graph.add("Add", graph.add("Mul", x, scale), shift)


# --- backbone, neck, head


def _backbone(graph: Writer, backbone: ResNet, x: str) -> list[str]:
    x = graph.add("MaxPool", _layer(graph, backbone.conv1, x), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    maps = []
    for i, stage in enumerate(backbone.stages):
        for block in stage.children():
            x = _block(graph, block, x)
        if i in backbone.return_idx:
            maps.append(x)
    return maps


def _block(graph: Writer, block: nn.Layer, x: str) -> Any:
    y = _layer(graph, block.branch2b, _layer(graph, block.branch2a, x))
    if not isinstance(block, BasicBlock):
        y = _layer(graph, block.branch2c, y)
    return graph.add("Relu", graph.add("Add", y, _layer(graph, block.short, x)))


def _neck(graph: Writer, neck: FPN, backbone_maps: list[str]) -> list[str]:
    laterals = [_layer(graph, conv, x) for conv, x in zip(neck.lateral_convs, backbone_maps)]
    for i in range(len(laterals) - 1, 0, -1):
        larger = graph.add("Resize", laterals[i], "", np.array([1, 1, 2, 2], np.float32), mode="nearest",
                           coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        laterals[i - 1] = graph.add("Add", laterals[i - 1], larger)
    levels = [_layer(graph, conv, x) for conv, x in zip(neck.fpn_convs, laterals)]
    if neck.extra_stage and not neck.has_extra_convs:
        levels.append(graph.add("MaxPool", levels[-1], kernel_shape=[1, 1], strides=[2, 2]))
    source = backbone_maps[-1] if neck.use_c5 else levels[-1]
    for i, conv in enumerate(neck.extra_convs):
        relu = i > 0 and neck.relu_before_extra_convs
        levels.append(_layer(graph, conv, graph.add("Relu", source) if relu else source))
        source = levels[-1]
    return levels


def _head(graph: Writer, head: GFLHead, levels: list[str]) -> tuple[list[str], list[str]]:
    """-> per level the class maps, and the box maps [N, 4 R, H, W]."""
    cls_maps, reg_maps = [], []
    for level, scale in zip(levels, head.scales_regs):
        cls = reg = level
        for cls_layer, reg_layer in zip(head.conv_feat.cls_tower, head.conv_feat.reg_tower):
            cls, reg = _layer(graph, cls_layer, cls), _layer(graph, reg_layer, reg)
        cls = _layer(graph, head.gfl_head_cls, cls)
        reg = graph.add("Mul", _layer(graph, head.gfl_head_reg, reg), scale.scale_reg.numpy())
        if head.dgqp_module is not None:
            cls = graph.add("Mul", graph.add("Sigmoid", cls), _quality(graph, head, reg))
        cls_maps.append(cls)
        reg_maps.append(reg)
    return cls_maps, reg_maps


def _quality(graph: Writer, head: GFLHead, reg: str) -> Any:
    """DGQP: [N, 4 R, H, W] -> [N, 1, H, W]."""
    dgqp: Any = head.dgqp_module
    bins = head.distribution_project.reg_max + 1
    per_side = graph.add("Softmax", graph.add("Reshape", reg, np.array([0, 4, bins, -1])), axis=2)
    best, _ = graph.add("TopK", per_side, np.array([dgqp.reg_topk]), axis=2, outputs=2)
    if dgqp.add_mean:
        best = graph.add("Concat", best, graph.add("ReduceMean", best, axes=[2]), axis=2)
    size = graph.add("Slice", graph.add("Shape", reg), np.array([2]), np.array([4]))
    statistics = 4 * (dgqp.reg_topk + dgqp.add_mean)
    shape = graph.add("Concat", np.array([0, statistics]), size, axis=0)
    hidden = graph.add("Relu", _layer(graph, dgqp.reg_conv1, graph.add("Reshape", best, shape)))
    return graph.add("Sigmoid", _layer(graph, dgqp.reg_conv2, hidden))


# --- decoding


def _decode(graph: Writer, model: GFL, cls_maps: list[str], reg_maps: list[str]) -> tuple[str, str]:
    """-> boxes [N, A, 4] in pixels of the original image, scores [N, C, A]."""
    decoder, levels = model.decoder, []
    project = model.head.distribution_project.project.numpy().reshape(1, -1)
    for reg, stride in zip(reg_maps, decoder.strides):
        per_side = graph.add("Softmax", graph.add("Reshape", reg, np.array([0, 4, project.size, -1])), axis=2)
        distances = graph.add("Reshape", graph.add("MatMul", project, per_side), np.array([0, 4, -1]))
        distances = graph.add("Transpose", distances, perm=[0, 2, 1])
        signed = graph.add("Mul", distances, np.array([-1, -1, 1, 1], np.float32))
        boxes = graph.add("Add", _centers(graph, reg, decoder.cell_offset), signed)
        levels.append(graph.add("Mul", boxes, np.float32(stride)))
    scale = graph.add("Gather", "scale_factor", np.array([1, 0, 1, 0]), axis=1)  # (y, x) -> x y x y
    boxes = graph.add("Div", graph.add("Concat", *levels, axis=1), graph.add("Unsqueeze", scale, np.array([1])))
    flat = [graph.add("Reshape", cls, np.array([0, 0, -1])) for cls in cls_maps]
    scores = graph.add("Concat", *flat, axis=2)
    if decoder.joint_scores and not decoder.upstream_scores:
        return boxes, graph.add("Slice", scores, np.array([0]), np.array([decoder.num_classes]), np.array([1]))
    return boxes, graph.add("Sigmoid", scores)


def _centers(graph: Writer, reg: str, offset: float) -> Any:
    """[H W, 4] x y x y in cells of the level."""
    shape = graph.add("Shape", reg)
    size = graph.add("Slice", shape, np.array([2]), np.array([4]))
    rows = graph.add("Unsqueeze", _range(graph, shape, 2, offset), np.array([1]))
    y, x = (graph.add("Reshape", graph.add("Expand", line, size), np.array([-1, 1]))
            for line in (rows, _range(graph, shape, 3, offset)))
    return graph.add("Concat", x, y, x, y, axis=1)


def _range(graph: Writer, shape: str, axis: int, offset: float) -> Any:
    length = graph.add("Cast", graph.add("Gather", shape, np.array(axis)), to=TensorProto.FLOAT)
    numbers = graph.add("Range", np.float32(0), length, np.float32(1))
    return graph.add("Add", numbers, np.float32(offset)) if offset else numbers


# --- NMS


def _check_nms(nms: MultiClassNMS) -> None:
    if not nms.normalized or nms.nms_eta < 1:
        raise ExportError(f"--with_nms: ONNX has no NMS with normalized: {nms.normalized}, nms_eta: {nms.nms_eta}; "
                          "it needs true and 1.0")


def _suppress(graph: Writer, boxes: str, scores: str, nms: Mapping[str, Any]) -> tuple[str, str]:
    """boxes [N, A, 4], scores [N, C, A] -> bbox [M, 6], bbox_num [N]: the best nms_top_k cells of a class enter,
    the best keep_top_k detections of an image stay."""
    shape = graph.add("Shape", scores)
    cells = graph.add("Slice", shape, np.array([2]), np.array([3]))
    entered, limit = scores, cells
    if nms["nms_top_k"] >= 0:
        limit = graph.add("Min", cells, np.array([nms["nms_top_k"]]))
        best, _ = graph.add("TopK", scores, limit, axis=2, outputs=2)
        least = graph.add("Gather", best, np.array([-1]), axis=2)
        entered = graph.add("Where", graph.add("GreaterOrEqual", scores, least), scores, np.float32(-1))
    kept = graph.add("NonMaxSuppression", boxes, entered, limit, np.array([nms["nms_threshold"]], np.float32),
                     np.array([nms["score_threshold"]], np.float32))
    blank = graph.add("ConstantOfShape", shape, value=helper.make_tensor("blank", TensorProto.FLOAT, [1], [-1]))
    scores = graph.add("ScatterND", blank, kept, graph.add("GatherND", scores, kept))

    flat = graph.add("Reshape", scores, np.array([0, -1]))
    count = graph.add("Slice", graph.add("Shape", flat), np.array([1]), np.array([2]))
    if nms["keep_top_k"] >= 0:
        count = graph.add("Min", count, np.array([nms["keep_top_k"]]))
    values, index = graph.add("TopK", flat, count, axis=1, outputs=2)
    found = graph.add("Greater", values, np.float32(-0.5))
    last = np.array([2])
    label = graph.add("Unsqueeze", graph.add("Cast", graph.add("Div", index, cells), to=TensorProto.FLOAT), last)
    cell = graph.add("Unsqueeze", graph.add("Mod", index, cells), last)
    corners = graph.add("GatherND", boxes, cell, batch_dims=1)
    rows = graph.add("Concat", label, graph.add("Unsqueeze", values, last), corners, axis=2)
    bbox = graph.add("Compress", graph.add("Reshape", rows, np.array([-1, 6])),
                     graph.add("Reshape", found, np.array([-1])), axis=0)
    bbox_num = graph.add("ReduceSum", graph.add("Cast", found, to=TensorProto.INT32), np.array([1]), keepdims=0)
    return bbox, bbox_num
