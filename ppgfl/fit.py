"""Do parts that were made fit together? Compared before the first step, where the keys to change have names."""
from __future__ import annotations

from .data.batch import PadBatch, Reader
from .data.targets import Gt2GFLTarget
from .errors import ConfigError
from .model.fpn import FPN
from .model.gfl import GFL
from .model.head import GFLHead
from .model.res2net import Res2Net
from .model.resnet import ResNet


def check_parts(backbone: ResNet | Res2Net, neck: FPN, head: GFLHead, name: str) -> None:
    """Raise a ConfigError unless strides and channels of a model agree; `name` is that of the head's section."""
    if any(coarse != 2 * fine for fine, coarse in zip(backbone.strides, backbone.strides[1:])):
        raise ConfigError(f"{type(backbone).__name__}.return_idx: its maps have strides {backbone.strides}; the neck "
                          "needs each to be twice that of the one before, as of [1, 2, 3]")
    for key, found, where, wanted in (
            ("feat_in", head.conv_feat.feat_in, "FPN.out_channel", neck.out_channel),
            ("feat_out", head.conv_feat.feat_out, f"{name}.feat_in_chan", head.feat_in_chan)):
        if found != wanted:
            raise ConfigError(f"{name}.conv_feat.{key}: {found}, but {where} is {wanted}; both must be the same")
    if head.fpn_stride != neck.strides:
        raise ConfigError(f"{name}.fpn_stride: {head.fpn_stride}, but the neck's levels have strides {neck.strides}; "
                          f"change it, FPN.extra_stage or {type(backbone).__name__}.return_idx")


def check_targets(reader: Reader, model: GFL) -> None:
    """Raise a ConfigError unless the targets of a training reader are those of the model's cells and classes."""
    target = next(each for each in reader.batch_transforms if isinstance(each, Gt2GFLTarget))
    criterion = model.criterion
    for key, found, wanted in (("downsample_ratios", target.strides, list(model.head.fpn_stride)),
                               ("cell_offset", _short(target.cell_offsets), _short(criterion.cell_offsets)),
                               ("num_classes", target.num_classes, model.head.num_classes)):
        if found != wanted:
            raise ConfigError(f"TrainReader.batch_transforms.Gt2GFLTarget.{key}: {found}, but the head has {wanted}; "
                              "both must be the same")
    coarsest = max(model.backbone.strides)
    for each in reader.batch_transforms:
        if isinstance(each, PadBatch) and each.stride % coarsest:
            raise ConfigError(f"TrainReader.batch_transforms.PadBatch.pad_to_stride: {each.stride}; the maps of the "
                              f"backbone fit together where it is a multiple of {coarsest}")


def _short(values: list[float]) -> float | list[float]:
    """One number where all levels have the same."""
    return values[0] if len(set(values)) == 1 else values
