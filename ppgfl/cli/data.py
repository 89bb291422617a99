"""`ppgfl data`: look through data sets, convert annotations."""
from __future__ import annotations

import functools
from argparse import Namespace
from pathlib import Path

from ..errors import DataError


def data(args: Namespace) -> int:
    """Look through the data sets of a config, or convert annotations to COCO.

    ppgfl data check my_config.yml -o TrainDataset.dataset_dir=/data/mine
    ppgfl data convert --from voc /data/VOC2007 annotations.json
    ppgfl data convert --from yolo /data/mine /data/mine/annotations

    check: counts, images without a box, bad boxes, files that are missing or cannot be decoded, classes that differ
    between training and validation, and a picture of classes and box sizes. Its exit code is 1 when something is wrong.
    convert: all images into one .json file, or those for training and for validation into a folder. Its exit code is 1
    when a file has no image or no box.
    """
    if args.action == "convert":
        return 0 if _convert(args) else 1
    from .. import build
    from ..classes import number_of_classes
    from ..config import load_config
    from ..data.check import check
    from ..training.setup import rehearse

    cfg = load_config(args.config, args.opt)
    build.check(cfg)
    cfg["num_classes"] = number_of_classes(cfg)
    rehearsal = functools.partial(rehearse, cfg) if isinstance(cfg.get("TrainDataset"), dict) else None
    return 0 if check(cfg, output_dir=args.output_dir, decode=not args.no_decode, rehearse=rehearsal) else 1


def _convert(args: Namespace) -> bool:
    """Whether each file that was asked for has images and boxes."""
    from ..data.convert import convert, convert_splits

    if Path(args.output).suffix.lower() != ".json":
        contents, _ = convert_splits(args.kind, args.source, args.output, classes=args.classes, split=args.split)
    elif args.split:
        raise DataError(f"--split makes several files; give a folder as OUTPUT instead of {args.output}")
    else:
        contents = {"": convert(args.kind, args.source, args.output, classes=args.classes)[0]}
    return all(content["images"] and content["annotations"] for content in contents.values())
