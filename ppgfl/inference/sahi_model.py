"""A detector that SAHI calls: its slicing, merging and evaluation over the models of ppgfl.

    from sahi.predict import get_sliced_prediction
    model = SahiModel(model=ppgfl.Detector("gfl_r50_fpn_1x_coco"), confidence_threshold=0.3)
    result = get_sliced_prediction("photo.jpg", model, slice_height=640, slice_width=640)
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from .detections import Detections
from .detector import Detector
from .formats import inside

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
except ImportError as error:
    raise ConfigError(f"SahiModel: {error}; pip install \"ppgfl[sahi]\"") from error


class SahiModel(DetectionModel):
    """SAHI's `DetectionModel` of a `Detector`, which is given as `model`, or opened from `config_path` and `model_path`
    (its weights), or from `model_path` alone (an exported model). The detector must not slice by itself.

    SAHI takes only boxes inside of what was looked at, so they are cut at the borders of their slice, and those of
    which nothing is left are dropped. `device`, `image_size` and `mask_threshold` have no effect.
    """

    def load_model(self) -> None:
        source = self.config_path or self.model_path
        if not source:
            raise ConfigError("SahiModel: give model=ppgfl.Detector(...), or config_path and model_path")
        self.set_model(Detector(source, weights=self.model_path if self.config_path else None))

    def set_model(self, model: Any, **_: Any) -> None:
        """Take a `Detector`. SAHI's categories are its class indices."""
        self.model = model
        self.category_mapping = {str(index): name for index, name in enumerate(model.class_names)}

    def set_device(self, device: str | None = None) -> None:
        """The detector is where it is."""
        self.device = device

    def perform_inference(self, image: np.ndarray) -> None:
        """Look at one image [H, W, 3] uint8 RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Look at several images."""
        self._original_predictions = self.model([np.ascontiguousarray(image[..., ::-1]) for image in images])

    @property
    def num_categories(self) -> int:
        return len(self.category_mapping)

    @property
    def category_names(self) -> list[str]:
        return list(self.category_mapping.values())

    @property
    def has_mask(self) -> bool:
        return False

    def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None) -> None:
        """Of each image its detections that score at least `confidence_threshold`; SAHI moves them by the shift."""
        found = self._original_predictions
        shifts, shapes = (_of_each(values, len(found)) for values in (shift_amount_list, full_shape_list))
        self._object_prediction_list_per_image = [
            list(_predictions(one.above(self.confidence_threshold), shift or [0, 0], shape))
            for one, shift, shape in zip(found, shifts, shapes)]


def _of_each(values: Any, count: int) -> Sequence[Any]:
    """A pair for each image of what SAHI gives: nothing, one pair, or a list of them."""
    if not values:
        return [None] * count
    return values if isinstance(values[0], (list, tuple)) else [values] * count


def _predictions(found: Detections, shift: Sequence[float], shape: Sequence[float] | None) -> Any:
    height, width = found.image.shape[:2]  # type: ignore[union-attr]  # given as an array
    for i, box in inside(found, (height, width)):
        yield ObjectPrediction(bbox=list(box), category_id=int(found.labels[i]), category_name=found.names[i],
                               score=float(found.scores[i]), shift_amount=list(shift), full_shape=shape)
