"""Transforms of many samples, and the step from samples to a batch (see the package's contract)."""
import numpy as np

from ..errors import ConfigError

BATCH_KEYS = ("image", "im_shape", "scale_factor", "im_id", "labels", "label_weights", "bbox_targets", "pos_num",
              "vlr_regions")


class PadBatch:
    """Pad the images of a batch with zeros, right and bottom, to one size.

    Args:
        pad_to_stride: height and width become multiples of it; 0 or 1: only as large as the largest image.
    """

    def __init__(self, pad_to_stride=0):
        if not isinstance(pad_to_stride, int) or pad_to_stride < 0:
            raise ConfigError(f"PadBatch.pad_to_stride: {pad_to_stride!r}; it is a whole number, 32 for GFL")
        self.stride = max(1, pad_to_stride)

    def __call__(self, samples):
        """Samples with `image` [3, H, W]; changes and returns them."""
        height, width = np.max([sample["image"].shape[1:] for sample in samples], axis=0)
        height, width = (-(-size // self.stride) * self.stride for size in (height, width))
        padded = np.zeros((len(samples), 3, height, width), np.float32)
        for target, sample in zip(padded, samples):
            _, h, w = sample["image"].shape
            target[:, :h, :w] = sample["image"]
            sample["image"] = target
        return samples


def collate(samples):
    """Samples of equal image sizes -> a batch of numpy arrays."""
    return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in BATCH_KEYS if key in samples[0]}
