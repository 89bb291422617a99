"""The detector as an ONNX graph, written layer by layer: the same file from every Paddle.

Inputs  image        [N, 3, H, W]  prepared as the metadata says; H and W are multiples of 32
        scale_factor [N, 2]        input size / original size, height first
        im_shape     [N, 2]        input size without padding, height first: only with `clip_boxes`
Outputs boxes        [N, A, 4]     x1 y1 x2 y2 in pixels of the original image, one per cell of all levels
        scores       [N, A, C]     in 0..1
or, with NMS inside,
        bbox         [M, 6]        class, score, x1, y1, x2, y2; the images one after the other, best score first
        bbox_num     [N]           detections of each image
With `sigma` of the decoder, boxes are [N, A, 12] and bbox [M, 14]: see `decode.Decoder.spreads`.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..errors import ExportError
from ..model.decode import MultiClassNMS
from ..model.fpn import FPN
from ..model.gfl import GFL
from ..model.head import GFLHead
from ..model.res2net import Res2Net
from ..model.resnet import ResNet
from .graph import is_deformable
from .onnx_layers import Writer, write_layer

OPSET, IR_VERSION = 13, 8  # every ONNX Runtime since 1.7 (2021)
DEFORMABLE = 19, 9  # the first that have DeformConv: ONNX Runtime since 1.25 (2026)
PRODUCER = "ppgfl"


def write(path: Path, model: GFL, *, image_shape: Sequence[int | None], settings: Mapping[str, Any],
          with_nms: bool = False) -> None:
    """Write the model to `path`.

    Args:
        model: a `GFL` in evaluation mode.
        image_shape: [N, 3, H, W] with None for what is free.
        settings: the content of infer_cfg.yml, for the metadata `class_names`, `preprocess`, `nms` and, where the
            weights have one, `calibration` (JSON).
        with_nms: end in bbox and bbox_num.

    Raises: ExportError for a layer that this writer does not know.
    """
    opset, ir_version = DEFORMABLE if is_deformable(model) else (OPSET, IR_VERSION)
    graph = Writer(opset)
    cls_maps, reg_maps = _head(graph, model.head, _neck(graph, model.neck, _backbone(graph, model.backbone, "image")))
    boxes, scores = _decode(graph, model, cls_maps, reg_maps)  # [N, A, 4 or 12], [N, C, A]
    numbers = 12 if model.decoder.sigma else 4
    nms = {"score_threshold": model.decoder.threshold(), "nms_top_k": model.decoder.nms.nms_top_k,
           "keep_top_k": model.decoder.nms.keep_top_k, "nms_threshold": model.decoder.nms.nms_threshold}
    batch, _, height, width = (n or letter for n, letter in zip(image_shape, "NCHW"))
    if with_nms:
        _check_nms(model.decoder.nms)
        bbox, bbox_num = _suppress(graph, boxes, scores, nms, numbers)
        outputs = [graph.output(bbox, "bbox", TensorProto.FLOAT, ["M", 2 + numbers]),
                   graph.output(bbox_num, "bbox_num", TensorProto.INT32, [batch])]
    else:
        scores = graph.add("Transpose", scores, perm=[0, 2, 1])
        outputs = [graph.output(boxes, "boxes", TensorProto.FLOAT, [batch, "A", numbers]),
                   graph.output(scores, "scores", TensorProto.FLOAT, [batch, "A", model.decoder.num_classes])]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, height, width]),
              *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in model.decoder.inputs)]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "gfl", inputs, outputs, graph.weights), producer_name=PRODUCER,
        opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    helper.set_model_props(proto, {
        "class_names": json.dumps(settings["label_list"]),
        "preprocess": json.dumps(settings["Preprocess"]), "nms": json.dumps(nms),
        **({"calibration": json.dumps(settings["calibration"])} if "calibration" in settings else {})})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


# --- backbone, neck, head


def _backbone(graph: Writer, backbone: ResNet | Res2Net, x: str) -> list[str]:
    stem = backbone.res1 if isinstance(backbone, Res2Net) else backbone.conv1
    x = graph.add("MaxPool", write_layer(graph, stem, x), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    maps = []
    for i, stage in enumerate(backbone.stages):
        x = write_layer(graph, stage, x)
        if i in backbone.return_idx:
            maps.append(x)
    return maps


def _neck(graph: Writer, neck: FPN, backbone_maps: list[str]) -> list[str]:
    laterals = [write_layer(graph, conv, x) for conv, x in zip(neck.lateral_convs, backbone_maps)]
    for i in range(len(laterals) - 1, 0, -1):
        larger = graph.add("Resize", laterals[i], "", np.array([1, 1, 2, 2], np.float32), mode="nearest",
                           coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        laterals[i - 1] = graph.add("Add", laterals[i - 1], larger)
    levels = [write_layer(graph, conv, x) for conv, x in zip(neck.fpn_convs, laterals)]
    if neck.extra_stage and not neck.has_extra_convs:
        levels.append(graph.add("MaxPool", levels[-1], kernel_shape=[1, 1], strides=[2, 2]))
    source = backbone_maps[-1] if neck.use_c5 else levels[-1]
    for i, conv in enumerate(neck.extra_convs):
        relu = i > 0 and neck.relu_before_extra_convs
        levels.append(write_layer(graph, conv, graph.add("Relu", source) if relu else source))
        source = levels[-1]
    return levels


def _head(graph: Writer, head: GFLHead, levels: list[str]) -> tuple[list[str], list[str]]:
    """-> per level the class maps, and the box maps [N, 4 R, H, W]."""
    cls_maps, reg_maps = [], []
    for level, scale in zip(levels, head.scales_regs):
        cls = reg = level
        for cls_layer, reg_layer in zip(head.conv_feat.cls_tower, head.conv_feat.reg_tower):
            cls, reg = write_layer(graph, cls_layer, cls), write_layer(graph, reg_layer, reg)
        cls = write_layer(graph, head.gfl_head_cls, cls)
        box_feat = reg
        reg = graph.add("Mul", write_layer(graph, head.gfl_head_reg, box_feat), scale.scale_reg.numpy())
        if head.dgqp_module is not None:
            cls = graph.add("Mul", graph.add("Sigmoid", cls), _quality(graph, head, reg))
        if head.quality_branch is not None:
            joint = write_layer(graph, head.gfl_head_quality, box_feat)
            cls = graph.add("Mul", graph.add("Sigmoid", cls), graph.add("Sigmoid", joint))
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
        best = graph.add("Concat", best, graph.mean(best, 2), axis=2)
    size = graph.add("Slice", graph.add("Shape", reg), np.array([2]), np.array([4]))
    statistics = 4 * (dgqp.reg_topk + dgqp.add_mean)
    shape = graph.add("Concat", np.array([0, statistics]), size, axis=0)
    hidden = graph.add("Relu", write_layer(graph, dgqp.reg_conv1, graph.add("Reshape", best, shape)))
    return graph.add("Sigmoid", write_layer(graph, dgqp.reg_conv2, hidden))


# --- decoding


def _decode(graph: Writer, model: GFL, cls_maps: list[str], reg_maps: list[str]) -> tuple[str, str]:
    """-> boxes [N, A, 4] in pixels of the original image, with `sigma` [N, A, 12], and scores [N, C, A]."""
    decoder, levels, spreads = model.decoder, [], []
    project = model.head.distribution_project.project.numpy().reshape(1, -1)
    for reg, stride, offset in zip(reg_maps, decoder.strides, decoder.cell_offsets):
        if project.size == 1:
            distances = graph.add("Exp", graph.add("Reshape", reg, np.array([0, 4, -1])))
        else:
            per_side = graph.add("Softmax", graph.add("Reshape", reg, np.array([0, 4, project.size, -1])), axis=2)
            means = graph.add("MatMul", project, per_side)  # [N, 4, 1, H W]
            if decoder.sigma:
                spreads.append(_spread(graph, per_side, means, project, stride))
            distances = graph.add("Reshape", means, np.array([0, 4, -1]))
        distances = graph.add("Transpose", distances, perm=[0, 2, 1])
        signed = graph.add("Mul", distances, np.array([-1, -1, 1, 1], np.float32))
        boxes = graph.add("Add", _centers(graph, reg, offset), signed)
        levels.append(graph.add("Mul", boxes, np.float32(stride)))
    boxes = graph.add("Concat", *levels, axis=1)
    if decoder.clip_boxes:
        boxes = graph.add("Min", graph.add("Max", boxes, np.float32(0)), _xyxy(graph, "im_shape"))
    boxes = graph.add("Div", boxes, _xyxy(graph, "scale_factor"))
    if decoder.sigma:
        sigma, top2 = (graph.add("Concat", *each, axis=1) for each in zip(*spreads))
        boxes = graph.add("Concat", boxes, graph.add("Div", sigma, _xyxy(graph, "scale_factor")), top2, axis=2)
    flat = [graph.add("Reshape", cls, np.array([0, 0, -1])) for cls in cls_maps]
    scores = graph.add("Concat", *flat, axis=2)
    if decoder.joint_scores and not decoder.upstream_scores:
        return boxes, graph.add("Slice", scores, np.array([0]), np.array([decoder.num_classes]), np.array([1]))
    if decoder.separate_quality:
        return boxes, scores  # joined level by level, above
    return boxes, graph.add("Sigmoid", scores)


def _spread(graph: Writer, shares: str, means: str, project: np.ndarray, stride: int) -> tuple[str, str]:
    """`Integral.spread` of shares [N, 4, R, H W] -> sigma times the stride, and top2, each [N, H W, 4]."""
    off = graph.add("Sub", project.reshape(-1, 1), means)
    variance = graph.add("ReduceSum", graph.add("Mul", shares, graph.add("Mul", off, off)), np.array([2]), keepdims=0)
    best, _ = graph.add("TopK", shares, np.array([2]), axis=2, outputs=2)
    sigma = graph.add("Mul", graph.add("Sqrt", variance), np.float32(stride))
    top2 = graph.add("ReduceSum", best, np.array([2]), keepdims=0)
    return graph.add("Transpose", sigma, perm=[0, 2, 1]), graph.add("Transpose", top2, perm=[0, 2, 1])


def _xyxy(graph: Writer, name: str) -> Any:
    """An input [N, 2] (y, x) -> [N, 1, 4] x y x y."""
    return graph.add("Unsqueeze", graph.add("Gather", name, np.array([1, 0, 1, 0]), axis=1), np.array([1]))


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


def _suppress(graph: Writer, boxes: str, scores: str, nms: Mapping[str, Any], numbers: int) -> tuple[str, str]:
    """boxes [N, A, numbers], scores [N, C, A] -> bbox [M, 2 + numbers], bbox_num [N]: the best nms_top_k cells of a
    class enter, the best keep_top_k detections of an image stay."""
    four = boxes if numbers == 4 else graph.add("Slice", boxes, np.array([0]), np.array([4]), np.array([2]))
    shape = graph.add("Shape", scores)
    cells = graph.add("Slice", shape, np.array([2]), np.array([3]))
    entered, limit = scores, cells
    if nms["nms_top_k"] >= 0:
        limit = graph.add("Min", cells, np.array([nms["nms_top_k"]]))
        best, _ = graph.add("TopK", scores, limit, axis=2, outputs=2)
        least = graph.add("Gather", best, np.array([-1]), axis=2)
        entered = graph.add("Where", graph.add("GreaterOrEqual", scores, least), scores, np.float32(-1))
    kept = graph.add("NonMaxSuppression", four, entered, limit, np.array([nms["nms_threshold"]], np.float32),
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
    bbox = graph.add("Compress", graph.add("Reshape", rows, np.array([-1, 2 + numbers])),
                     graph.add("Reshape", found, np.array([-1])), axis=0)
    bbox_num = graph.add("ReduceSum", graph.add("Cast", found, to=TensorProto.INT32), np.array([1]), keepdims=0)
    return bbox, bbox_num
