"""From the sections of a config about data to data sets, readers and loaders. None of it needs Paddle.

To add a transform or a data set, write the class and add it to its table.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config.check import check_mixing, check_order, transforms_in
from .config.keys import section, setting, skips_corrupt_images
from .config.load import is_own
from .config.values import as_written, read
from .data.annotations import fits_int64
from .data.augment.autoaugment import AutoAugment
from .data.augment.base import Mixer
from .data.augment.choose import BatchRandomResize, RandomSelect, RandomSelects
from .data.augment.colour import AugmentHSV, Lighting, RandomDistort
from .data.augment.crop import RandomCrop, RandomScaledCrop, RandomSizeCrop
from .data.augment.erase import GridMask, RandomErasing, RandomErasingCrop
from .data.augment.geometry import Pad, PadResize, RandomExpand, RandomShift, RandomShortSideResize
from .data.augment.mix import Cutmix, Mixup
from .data.augment.mosaic import Mosaic
from .data.batch import EachOf, PadBatch, Reader, Sample
from .data.dataset import COCODataSet, ImageFolder, VOCDataSet, YOLODataSet
from .data.device import for_device
from .data.loader import Batches, BatchMaker, Loader
from .data.own import OwnTransform, class_of
from .data.targets import Gt2GFLTarget
from .data.transforms import Decode, NormalizeImage, Permute, RandomFlip, RandomResize, Resize
from .errors import ConfigError
from .make import Config, Table, make, spec

MIXERS: dict[str, Any] = {"Mixup": Mixup, "Cutmix": Cutmix, "Mosaic": Mosaic}
SAMPLE_TRANSFORMS: dict[str, Any] = {cls.__name__: cls for cls in (
    Decode, Resize, RandomResize, RandomFlip, NormalizeImage, Permute, RandomDistort, AugmentHSV, Lighting, AutoAugment,
    GridMask, RandomErasing, RandomErasingCrop, RandomExpand, RandomCrop, RandomSizeCrop, RandomScaledCrop, RandomShift,
    RandomShortSideResize, Pad, PadResize, RandomSelect, RandomSelects)} | MIXERS
BATCH_TRANSFORMS: dict[str, Any] = {"PadBatch": PadBatch, "BatchRandomResize": BatchRandomResize,
                                    "Gt2GFLTarget": Gt2GFLTarget}
DATASETS: dict[str, Any] = {cls.__name__: cls for cls in (COCODataSet, VOCDataSet, YOLODataSet, ImageFolder)}
ALONE = ("Decode", *MIXERS)  # of sample_transforms, what makes no sense in batch_transforms
LISTS = {"RandomSelect": ("transforms1", "transforms2"), "RandomSelects": ("transforms_list",)}


def build_dataset(cfg: Config, name: str) -> Any:
    """The data set of a section: "TrainDataset", "EvalDataset" or "TestDataset"."""
    if not isinstance(cfg.get(name), dict):
        raise ConfigError(f"{name}: the config has no such section; add configs/datasets/coco_detection.yml to "
                          "its _BASE_")
    shared = ["num_classes"] if cfg[name].get("name") == "ImageFolder" else []
    return make(cfg, DATASETS, cfg[name], name, shared=shared, section=name)


def build_reader(cfg: Config, name: str) -> Reader:
    """The transforms of "TrainReader", "EvalReader" or "TestReader". Raises ConfigError."""
    if not isinstance(cfg.get(name), dict):
        raise ConfigError(f"{name}: the config has no such section; add a reader to its _BASE_")
    keys = section(cfg, name)
    of_each = {kind: cls for kind, cls in SAMPLE_TRANSFORMS.items() if kind not in ALONE}
    samples, batch = (
        [_transform(cfg, table, entry, f"{name}.{key}[{i}]") for i, entry in enumerate(keys[key] or [])]
        for key, table in (("sample_transforms", SAMPLE_TRANSFORMS),
                           ("batch_transforms", {**BATCH_TRANSFORMS, **of_each})))
    check_order(name, *([type(each).__name__ for each in some] for some in (samples, batch)))
    check_mixing(name, keys, [type(each).__name__ for each in samples], list(MIXERS))
    mixing = [(each, keys[f"{kind.lower()}_epoch"]) for kind in MIXERS for each in samples
              if isinstance(each, Mixer) and type(each).__name__ == kind]
    batch = [each if isinstance(each, tuple(BATCH_TRANSFORMS.values())) else EachOf(each) for each in batch]
    return Reader(samples, batch, mixing)


def build_loader(cfg: Config, name: str, records: Sequence[Sample], *, seed: int = 0, rank: int = 0,
                 world_size: int = 1) -> Loader:
    """The `Loader` of the records of a data set; batch size and order from the reader's section `name`.

    `place` of its batches is that among the records. It stands for an `im_id` that no tensor can hold, too.
    """
    reader, keys = for_device(build_reader(cfg, name)), section(cfg, name)
    batch_size, workers = keys["batch_size"], setting(cfg, "worker_num")
    batches = Batches(len(records), batch_size, shuffle=keys["shuffle"], drop_last=keys["drop_last"],
                      seed=seed, rank=rank, world_size=world_size)
    if records and not len(batches):
        raise ConfigError(f"{name}.batch_size: {batch_size} on {world_size} processes, but the data set has only "
                          f"{len(records)} images; set it lower")
    numbered = [{**record, "place": place, "im_id": record["im_id"] if fits_int64(record["im_id"]) else place}
                for place, record in enumerate(records)]
    maker = BatchMaker(numbered, reader, seed, skip=skips_corrupt_images(cfg), replace=name == "TrainReader")
    return Loader(maker, batches, workers)


def own_classes(cfg: Config) -> dict[str, Any]:
    """{name in the config: class} of the transforms that a user has written. Raises ConfigError."""
    return {kind: class_of(kind) for kind in transforms_in(cfg) if is_own(kind)}


def _transform(cfg: Config, table: Table, entry: Any, where: str) -> Any:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"{where}: {as_written(entry)}; it must be one transform, as in Decode: {{}}")
    (kind, args), = entry.items()
    args = read(f"{where}.{kind}", {} if args is None else args, dict)
    if isinstance(kind, str) and is_own(kind):
        return OwnTransform(kind, spec(cfg, {**args, "name": kind}, {kind: class_of(kind)}, where)[1])
    facts: dict[str, Any] = {}
    if kind in LISTS:
        inner = {name: cls for name, cls in table.items() if name not in ALONE}
        given = spec(cfg, {**args, "name": kind}, table, where)[1]
        facts = {key: _transforms(cfg, inner, given[key], f"{where}.{kind}.{key}") for key in LISTS[kind]
                 if key in given}
    shared = ["num_classes"] if kind == "Gt2GFLTarget" else []
    return make(cfg, table, {"name": kind, **args}, where, shared=shared, **facts)


def _transforms(cfg: Config, table: Table, entries: Any, where: str) -> list[Any]:
    """A list of transforms, or a list of such lists."""
    return [_transforms(cfg, table, entry, f"{where}[{i}]") if isinstance(entry, list)
            else _transform(cfg, table, entry, f"{where}[{i}]") for i, entry in enumerate(entries)]
