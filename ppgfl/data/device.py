"""A batch on its way to the device. A GPU gets pixels as they are, in bytes, and looks their normalised values up."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..system import framework
from .batch import Batch, PadBatch, Reader
from .targets import Gt2GFLTarget
from .transforms import Decode, NormalizeImage, Permute, RandomFlip, RandomResize, Resize

if TYPE_CHECKING:
    from paddle import Tensor

IN_BYTES = {Decode, Resize, RandomResize, RandomFlip, NormalizeImage, Permute}  # what leaves pixels in bytes before it

def for_device(reader: Reader, on_gpu: bool | None = None) -> Reader:
    """On a GPU the reader that leaves its NormalizeImage to `to_device`: a batch is a quarter as large then, and the
    host has half the work. Where that comes at another place than before the last Permute, where a transform before it
    may give other than bytes or a batch transform may want its values, and on a CPU, the reader as it is.

    Args:
        on_gpu: None: whether Paddle's device is one.
    """
    kinds = [type(transform) for transform in reader.sample_transforms]
    fits = (kinds[-2:] == [NormalizeImage, Permute] and kinds.count(NormalizeImage) == 1 and set(kinds) <= IN_BYTES
            and {type(transform) for transform in reader.batch_transforms} <= {PadBatch, Gt2GFLTarget})
    if not fits or not (framework.on_gpu() if on_gpu is None else on_gpu):
        return reader
    return replace(reader, left_out=reader.sample_transforms[-2])


def to_device(batch: Batch, reader: Reader) -> dict[str, Tensor]:
    """The tensors of a batch that the reader has made, with what it left out done; `place`, which only the host looks
    at, stays there."""
    import paddle

    tensors = {key: paddle.to_tensor(value, place="cpu") if key == "place" else paddle.to_tensor(value)
               for key, value in batch.items()}
    if isinstance(reader.left_out, NormalizeImage) and batch:
        tensors["image"] = normalized(tensors["image"], tensors.pop("unpadded", None), reader.left_out.table)
    return tensors


def normalized(image: Tensor, unpadded: Tensor | None, table: np.ndarray) -> Tensor:
    """NormalizeImage and PadBatch on the device, with the very values that they give on the host.

    Args:
        image: [N, 3, H, W] uint8.
        unpadded: [N, 2] int32, height and width without padding; None: there is none.
        table: [1, 256, 3] float32, what the pixels of each channel become.

    Returns: [N, 3, H, W] float32, 0 in the padding.
    """
    import paddle

    values = paddle.to_tensor(np.append(table[0].T.ravel(), np.float32(0)))  # [769]: channel after channel, the padding
    places = image.astype("int32") + paddle.to_tensor(np.arange(3, dtype=np.int32).reshape(3, 1, 1) * 256)
    if unpadded is not None:
        height, width = image.shape[2:]
        rows = paddle.arange(height, dtype="int32").reshape([1, 1, height, 1]) < unpadded[:, 0].reshape([-1, 1, 1, 1])
        columns = paddle.arange(width, dtype="int32").reshape([1, 1, 1, width]) < unpadded[:, 1].reshape([-1, 1, 1, 1])
        inside = paddle.logical_and(rows, columns).astype("int32")
        places = places * inside + (1 - inside) * 768
    return paddle.gather(values, places.flatten()).reshape(image.shape)
