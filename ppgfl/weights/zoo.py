"""The released models: names, configs, addresses, and the AP that PaddleDetection lists for them."""
from __future__ import annotations

from dataclasses import dataclass

ADDRESS = "https://paddledet.bj.bcebos.com/models"
BACKBONES = ("ResNet18_vd_pretrained", "ResNet34_vd_pretrained", "ResNet50_cos_pretrained", "ResNet101_vd_pretrained")


@dataclass(frozen=True)
class Model:
    """A row of the model zoo.

    Attributes:
        name: of its config and of its weights.
        title: as the table calls it.
        schedule: in epochs.
        ap: box AP on COCO val2017, in percent, as released.
    """

    name: str
    title: str
    schedule: str
    ap: float

    @property
    def weights(self) -> str:
        return f"{ADDRESS}/{self.name}.pdparams"

    @property
    def log(self) -> str:
        """Of its training."""
        return f"{ADDRESS}/train_log/train_{self.name}.log"


MODELS = {model.name: model for model in (
    Model("gfl_r50_fpn_1x_coco", "GFL ResNet-50", "1x", 41.0),
    Model("gfl_r101vd_fpn_mstrain_2x_coco", "GFL ResNet-101-vd", "2x", 46.8),
    Model("gfl_r34vd_1x_coco", "GFL ResNet-34-vd", "1x", 40.8),
    Model("gfl_r18vd_1x_coco", "GFL ResNet-18-vd", "1x", 36.6),
    Model("gflv2_r50_fpn_1x_coco", "GFLv2 ResNet-50", "1x", 41.2),
)}


def address(name: str) -> str | None:
    """Where the weights of a released model or of a pre-trained backbone are, or None for another name."""
    name = str(name)[:-len(".pdparams")] if str(name).endswith(".pdparams") else str(name)
    if name in MODELS:
        return MODELS[name].weights
    return f"{ADDRESS}/pretrained/{name}.pdparams" if name in BACKBONES else None
