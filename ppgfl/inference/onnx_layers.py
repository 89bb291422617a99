"""The layers that backbone, neck and head are made of, as nodes of an ONNX graph."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper
from paddle import Tensor, nn
from paddle.vision.ops import DeformConv2D

from ..errors import ExportError
from ..model.layers import ConvNorm, DeformConv, SqueezeExcitation, fold_norm
from ..model.res2net import Res2Block, Stage
from ..model.resnet import BasicBlock, Bottleneck


class Writer:
    """Nodes and weights so far, for a graph of this opset. A value is known by its name."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.filters: dict[bytes, str] = {}  # digest of a convolution's weight -> its name

    def add(self, kind: str, *inputs: str | np.ndarray | np.generic, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; an input is a name or an array. Returns the name of its output, or the list of them."""
        sources = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, sources, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: np.ndarray | np.generic) -> str:
        """The name of an array. The filters of a convolution that levels share are written once, half of a file; not
        its bias, which a quantiser scales for each by its input."""
        array, name = np.ascontiguousarray(array), f"constant_{len(self.weights)}"
        if array.ndim == 4:
            name = self.filters.setdefault(hashlib.sha256(array.tobytes() + str(array.shape).encode()).digest(), name)
            if name != f"constant_{len(self.weights)}":
                return name
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str | None]) -> Any:
        """Give a value the name of an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        return helper.make_tensor_value_info(name, dtype, shape)

    # What opset 18 writes otherwise

    def mean(self, value: str, axis: int) -> Any:
        """The mean along an axis, which stays."""
        if self.opset < 18:
            return self.add("ReduceMean", value, axes=[axis])
        return self.add("ReduceMean", value, np.array([axis]))

    def split(self, value: str, parts: int) -> Any:
        """Equal parts of the channels."""
        attributes = {} if self.opset < 18 else {"num_outputs": parts}
        return self.add("Split", value, axis=1, outputs=parts, **attributes)


def write_layer(graph: Writer, layer: nn.Layer, x: str) -> Any:
    """Append any of the building blocks. Returns the name of its output. Raises ExportError for another layer."""
    if isinstance(layer, (nn.Sequential, Stage)):
        for child in layer.children():
            x = write_layer(graph, child, x)
        return x
    for kind, write_kind in LAYERS.items():
        if isinstance(layer, kind):
            return write_kind(graph, layer, x)
    raise _unknown(layer)


def _unknown(layer: nn.Layer) -> ExportError:
    return ExportError(f"--onnx: the model has a {type(layer).__name__} that is not written as ONNX; leave --onnx out")


def _identity(graph: Writer, layer: nn.Identity, x: str) -> Any:
    return x


def _pool(graph: Writer, layer: nn.AvgPool2D, x: str) -> Any:
    return graph.add("AveragePool", x, kernel_shape=[layer.ksize] * 2, strides=[layer.stride] * 2,
                     pads=[layer.padding] * 4, ceil_mode=int(layer.ceil_mode),
                     count_include_pad=int(not layer.exclusive))


def _plain_conv(graph: Writer, conv: nn.Conv2D, x: str) -> Any:
    return _conv(graph, conv, x, conv.weight, conv.bias)


def _conv(graph: Writer, conv: nn.Conv2D | DeformConv2D, x: str, weight: Tensor, bias: Tensor | None,
          conv_offset: nn.Conv2D | None = None) -> Any:
    """A convolution with these weights in place of its own; a deformable one has a `conv_offset`."""
    top, left = _pair(conv._padding)
    settings = dict(kernel_shape=list(conv._kernel_size), strides=_pair(conv._stride), pads=[top, left, top, left],
                    dilations=_pair(conv._dilation), group=conv._groups)
    if conv_offset is None:
        return graph.add("Conv", x, weight.numpy(), *([] if bias is None else [bias.numpy()]), **settings)
    points = conv_offset.weight.shape[0] // 3
    predicted = _plain_conv(graph, conv_offset, x)  # y and x of each point, as ONNX has them, then the masks
    offset, mask = graph.add("Split", predicted, np.array([2 * points, points]), axis=1, outputs=2)
    return graph.add("DeformConv", x, weight.numpy(), offset, "" if bias is None else bias.numpy(),
                     graph.add("Sigmoid", mask), offset_group=conv._deformable_groups, **settings)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _conv_norm(graph: Writer, layer: ConvNorm, x: str) -> Any:
    conv, norm = layer.conv, layer.norm
    conv_offset = layer.conv_offset if layer.deformable else None
    if isinstance(conv, DeformConv):  # in a tower
        conv, conv_offset = conv.conv_dcn, conv.conv_offset
    if not isinstance(conv, (nn.Conv2D, DeformConv2D)):
        raise _unknown(conv)
    if isinstance(norm, nn.GroupNorm):
        x = _group_norm(graph, norm, _conv(graph, conv, x, conv.weight, conv.bias, conv_offset))
    elif isinstance(norm, nn.Identity):  # folded already
        x = _conv(graph, conv, x, conv.weight, conv.bias, conv_offset)
    else:
        x = _conv(graph, conv, x, *fold_norm(conv, norm), conv_offset)
    return graph.add("Relu", x) if layer.relu else x


def _group_norm(graph: Writer, norm: nn.GroupNorm, x: str) -> Any:
    groups = norm._num_groups
    per_group = graph.add("Reshape", x, np.array([0, groups, -1]))
    normal = graph.add("InstanceNormalization", per_group, np.ones(groups, np.float32), np.zeros(groups, np.float32),
                       epsilon=norm._epsilon)
    x = graph.add("Reshape", normal, graph.add("Shape", x))
    scale, shift = (p.numpy().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return graph.add("Add", graph.add("Mul", x, scale), shift)


def _block(graph: Writer, block: BasicBlock | Bottleneck, x: str) -> Any:
    y = write_layer(graph, block.branch2b, write_layer(graph, block.branch2a, x))
    if isinstance(block, Bottleneck):
        y = write_layer(graph, block.branch2c, y)
    return graph.add("Relu", graph.add("Add", write_layer(graph, block.se, y), write_layer(graph, block.short, x)))


def _res2_block(graph: Writer, block: Res2Block, x: str) -> Any:
    splits = graph.split(write_layer(graph, block.branch2a, x), block.scales)
    results: list[str] = []
    for split, conv in zip(splits, block.branch2b):
        source = graph.add("Add", split, results[-1]) if results and not block.separate else split
        results.append(write_layer(graph, conv, source))
    y = graph.add("Concat", *results, write_layer(graph, block.last, splits[-1]), axis=1)
    y = write_layer(graph, block.branch2c, y)
    return graph.add("Relu", graph.add("Add", y, write_layer(graph, block.branch1, x)))


def _squeeze_excitation(graph: Writer, layer: SqueezeExcitation, x: str) -> Any:
    means = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    hidden = graph.add("Relu", graph.add("Gemm", means, layer.squeeze.weight.numpy(), layer.squeeze.bias.numpy()))
    factors = graph.add("Sigmoid", graph.add("Gemm", hidden, layer.extract.weight.numpy(), layer.extract.bias.numpy()))
    return graph.add("Mul", graph.add("Unsqueeze", factors, np.array([2, 3])), x)


LAYERS: dict[type[nn.Layer], Callable[..., Any]] = {
    nn.Identity: _identity, nn.Conv2D: _plain_conv, nn.AvgPool2D: _pool, ConvNorm: _conv_norm, BasicBlock: _block,
    Bottleneck: _block, Res2Block: _res2_block, SqueezeExcitation: _squeeze_excitation}
