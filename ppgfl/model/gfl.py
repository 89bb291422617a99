"""The detector on one page."""
from paddle import nn


class GFL(nn.Layer):
    """backbone -> neck -> head, then the loss in training or the decoder in evaluation.

    Args:
        backbone, neck, head: the three layers; `head` returns raw maps (see `head.GFLHead`).
        decoder: (maps, integral, scale_factor) -> {"bbox", "bbox_num"} (see `decode.Decoder`).
        criterion: (features, integral, batch) -> {"loss", ...}, or None for a model that is never trained.
    """

    def __init__(self, backbone, neck, head, *, decoder, criterion=None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.decoder = decoder
        self.criterion = criterion

    def features(self, image):
        """image [N, 3, H, W] -> the neck's levels, a list of [N, K, H_l, W_l], and the head's maps (cls, reg)."""
        levels = self.neck(self.backbone(image))
        return levels, self.head(levels)

    def forward(self, batch):
        """batch: see `ppgfl.data`.

        Returns:
            In training {"loss", "loss_qfl", ...} (see `losses.GFLCriterion`); in evaluation {"bbox": [M, 6] class,
            score, x1, y1, x2, y2 in pixels of the original image, "bbox_num": [N] detections per image}.
        """
        features = self.features(batch["image"])
        integral = self.head.distribution_project
        if self.training:
            return self.criterion(features, integral, batch)
        return self.decoder(features[1], integral, batch["scale_factor"])
