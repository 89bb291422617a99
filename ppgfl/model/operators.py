"""Operators that Paddle 3 no longer adds to a program of the old kind (`.pdmodel`) by itself, and what keeps mixed
precision away from an exact part. Everywhere else they are the plain function."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.common_ops_import import LayerHelper
from paddle.framework import in_dynamic_or_pir_mode


def float32(x: Tensor) -> Tensor:
    """A tensor in float32."""
    return x if x.dtype == paddle.float32 else x.astype("float32")


def without_amp() -> AbstractContextManager[Any]:
    """Inside, operators compute in the type of their arguments, whatever mixed precision is on outside. An exported
    graph knows none."""
    return paddle.amp.auto_cast(enable=False) if paddle.in_dynamic_mode() else nullcontext()


def sigmoid(x: Tensor) -> Tensor:
    """F.sigmoid."""
    if in_dynamic_or_pir_mode():
        return F.sigmoid(x)
    return _append("sigmoid", {"X": x}, {"Out": x.dtype})


def sqrt(x: Tensor) -> Tensor:
    """paddle.sqrt."""
    if in_dynamic_or_pir_mode():
        return paddle.sqrt(x)
    return _append("sqrt", {"X": x}, {"Out": x.dtype})


def exp(x: Tensor) -> Tensor:
    """paddle.exp."""
    if in_dynamic_or_pir_mode():
        return paddle.exp(x)
    return _append("exp", {"X": x}, {"Out": x.dtype})


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """paddle.matmul."""
    if in_dynamic_or_pir_mode():
        return paddle.matmul(x, y)
    return _append("matmul_v2", {"X": x, "Y": y}, {"Out": x.dtype}, {"trans_x": False, "trans_y": False})


def maximum(x: Tensor, y: Tensor) -> Tensor:
    """paddle.maximum."""
    if in_dynamic_or_pir_mode():
        return paddle.maximum(x, y)
    return _append("elementwise_max", {"X": x, "Y": y}, {"Out": x.dtype}, {"axis": -1})


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """paddle.minimum."""
    if in_dynamic_or_pir_mode():
        return paddle.minimum(x, y)
    return _append("elementwise_min", {"X": x, "Y": y}, {"Out": x.dtype}, {"axis": -1})


def multiclass_nms(boxes: Tensor, scores: Tensor, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """boxes [N, A, 4], scores [N, C, A] -> bbox [M, 6], bbox_num [N] int32.

    settings: score_threshold, nms_top_k, keep_top_k, nms_threshold, normalized, nms_eta, background_label, in this
        order.
    """
    return multiclass_nms_with_index(boxes, scores, settings)[:2]


def multiclass_nms_with_index(boxes: Tensor, scores: Tensor,
                              settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """As `multiclass_nms`, and index [M, 1] int32: the place of each detection among the N A boxes."""
    if in_dynamic_or_pir_mode():
        bbox, index, bbox_num = paddle._C_ops.multiclass_nms3(boxes, scores, None, *settings.values())
    else:
        bbox, index, bbox_num = _append("multiclass_nms3", {"BBoxes": boxes, "Scores": scores},
                                        {"Out": boxes.dtype, "Index": "int32", "NmsRoisNum": "int32"}, settings)
    return bbox, bbox_num, index


def _append(kind: str, inputs: Mapping[str, Tensor], output_dtypes: Mapping[str, Any],
            attributes: Mapping[str, Any] | None = None) -> Any:
    """Add an operator to the program that is being traced. Returns its output, or the list of them."""
    helper = LayerHelper(kind)
    outputs = {name: helper.create_variable_for_type_inference(dtype) for name, dtype in output_dtypes.items()}
    helper.append_op(type=kind, inputs=inputs, outputs=outputs, attrs=attributes)
    values = list(outputs.values())
    return values if len(values) > 1 else values[0]
