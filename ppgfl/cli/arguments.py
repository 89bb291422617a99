"""The arguments of each command, in functions named like those of `commands`."""
from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..inference.slicing import Slicing

SAVED_KINDS = ("json", "csv", "coco", "yolo", "labelme", "voc", "jsonl", "parquet")


def _config(parser: ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("-c", "--config", required=required, metavar="FILE",
                        help="config file, the name of a shipped one (gfl_r50_fpn_1x_coco), or the folder of a run, "
                             "whose best weights are taken")
    parser.add_argument("--slim_config", metavar="FILE",
                        help="the config of a teacher and of how to learn from it; no effect where nothing is trained")
    _overrides(parser)


def _overrides(parser: ArgumentParser) -> None:
    parser.add_argument("-o", "--opt", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="overrides of the config, as in -o weights=W.pdparams TestReader.batch_size=4")


def train(parser: ArgumentParser) -> None:
    _config(parser, required=False)
    own = parser.add_argument_group("data of your own, without a config")
    own.add_argument("--data", metavar="PATH",
                     help="a folder with COCO, YOLO, VOC or labelme annotations, a data.yaml, a COCO .json, or a "
                          "config, whose data sets are taken")
    own.add_argument("--model", default="r18vd", metavar="NAME",
                     help="r18vd, r34vd, r50, r101vd or gflv2_r50: from small and fast to large and good (r18vd)")
    own.add_argument("--weights", metavar="PATH",
                     help="where the training starts: a .pdparams, or backbone: the backbone of ImageNet (the released "
                          "detector of that name)")
    own.add_argument("--size", type=int, default=640, metavar="N", help="pixels of the long side of an image (640)")
    own.add_argument("--epochs", type=int, default=50, metavar="N", help="rounds through the images (50)")
    own.add_argument("--batch", type=int, default=8, metavar="N", help="images of a step and device (8)")
    own.add_argument("--name", default="run", help="of the folder below output (run)")
    parser.add_argument("--eval", action="store_true", help="evaluate after each snapshot_epoch, keep the best model")
    parser.add_argument("-r", "--resume", nargs="?", const="", metavar="PATH",
                        help="go on from this checkpoint; without PATH from the newest of this run")
    parser.add_argument("--amp", nargs="?", const="O1", choices=("O1", "O2"), help="mixed precision on a GPU")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches per optimizer step (1)")
    parser.add_argument("--use_vdl", nargs="?", const=True, default=False, type=_boolean, metavar="BOOL",
                        help="write a VisualDL log")
    parser.add_argument("--vdl_log_dir", metavar="DIR", help="where to (default: the run's folder/vdl)")
    parser.add_argument("--loggers", type=_names, metavar="NAME,NAME",
                        help="dashboards: visualdl, mlflow, tensorboard, wandb")
    parser.add_argument("--use_wandb", nargs="?", const=True, default=False, type=_boolean, metavar="BOOL",
                        help="as --loggers wandb")
    parser.add_argument("--to_static", action="store_true", help="compile the model into a static graph")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation (0)")
    parser.add_argument("--patience", type=int, default=0, metavar="N",
                        help="stop after N epochs without a better evaluation (0: never)")
    parser.add_argument("--best_metric", help="AP, AP50, AP75, APs, APm, APl, AR1, ... (AP; with metric: VOC mAP)")


def evaluate(parser: ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--output_eval", default=".", metavar="DIR", help="where bbox.json is written (default: here)")
    _exported(parser)
    _ways_to_look(parser)
    parser.add_argument("--amp", nargs="?", const="O1", choices=("O1", "O2"), help="mixed precision on a GPU")
    parser.add_argument("--json_eval", action="store_true", help="evaluate the bbox.json that is in DIR already")
    parser.add_argument("--classwise", action="store_true", help="also print the AP of each class")
    _uncertainty(parser)
    parser.add_argument("--calibrate", action="store_true",
                        help="fit scores and sigmas to these images, and write that beside the weights, for infer "
                             "--calibrated and exports")
    parser.add_argument("--no_report", action="store_true", help="do not write DIR/report/report.html")
    parser.add_argument("--save_prediction_only", action="store_true", help="write bbox.json and stop")


def infer(parser: ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--infer_img", metavar="FILE",
                        help="an image, its address (https://), a pattern ('day*/*.jpg'), - for one at standard input; "
                             "or a video")
    parser.add_argument("--video_file", metavar="FILE", help="a video, or the address of a stream (rtsp://, http://)")
    parser.add_argument("--camera_id", type=int, default=-1, metavar="N", help="a camera: 0 is the first")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th frame of a video (1)")
    parser.add_argument("--infer_dir", metavar="DIR", help="a folder of images, searched recursively")
    parser.add_argument("--infer_list", metavar="FILE",
                        help="a text file with one image per line, relative to --infer_dir or to the current folder")
    parser.add_argument("--output_dir", default="output", metavar="DIR", help="where pictures go (default: output)")
    parser.add_argument("--draw_threshold", type=float, default=0.5, metavar="S",
                        help="smallest score that is drawn (0.5)")
    parser.add_argument("--save_results", nargs="?", const="json", type=_saved_kind,
                        metavar="|".join(SAVED_KINDS),
                        help="also write results.json, results.csv or COCO's bbox.json; a folder of labels for "
                             "labelling tools; or, in memory that does not grow with the number of images, JSON lines "
                             "in shards or results.parquet")
    parser.add_argument("--resume", action="store_true", help="with jsonl: leave out what an earlier run has done")
    parser.add_argument("--no_pictures", action="store_true", help="draw none")
    parser.add_argument("--save_threshold", type=float, default=0.0, metavar="S",
                        help="smallest score that is saved (0)")
    _exported(parser)
    _uncertainty(parser)
    parser.add_argument("--draw_sigma", action="store_true", help="draw a soft band of one sigma around each side, too")
    parser.add_argument("--calibrated", action="store_true",
                        help="scores and sigmas as the calibration of the weights makes them (eval --calibrate)")
    parser.add_argument("--show_distributions", action="store_true",
                        help="beside each picture another, NAME_distributions.png: of its best boxes the distributions "
                             "whose means the sides are")
    _ways_to_look(parser)


def _exported(parser: ArgumentParser) -> None:
    parser.add_argument("--exported", metavar="PATH",
                        help="look with an exported folder or a model.onnx and its runner, instead of weights")
    parser.add_argument("--run_mode", metavar="MODE",
                        help="how the runner of --exported computes: paddle (float32), fp16, bf16, int8 (its "
                             "model_int8.onnx), trt_fp32, trt_fp16")


def _uncertainty(parser: ArgumentParser) -> None:
    parser.add_argument("--sigma", action="store_true",
                        help="also find how uncertain each side of a box is: its standard deviation in pixels")


def _ways_to_look(parser: ArgumentParser) -> None:
    parser.add_argument("--tta", metavar="LIST",
                        help="test-time augmentation, as in flip,0.8,1.25: look at images mirrored, too, and in sizes "
                             "that are the reader's times a factor, and put all that is found through one NMS")
    parser.add_argument("--slice_infer", action="store_true", help="look at images slice by slice, for small objects")
    parser.add_argument("--slice_full", action="store_true",
                        help="as --slice_infer, and look at the whole image besides, for objects larger than a slice")
    parser.add_argument("--slice_size", nargs="+", type=int, default=[640, 640], metavar="N",
                        help="height width (640 640)")
    parser.add_argument("--overlap_ratio", nargs="+", type=float, default=[0.25, 0.25], metavar="R",
                        help="share of a slice that the next one repeats, down and across (0.25 0.25)")
    parser.add_argument("--combine_method", default="nms", choices=("nms", "nmm", "concat"),
                        help="of findings that overlap: nms keeps the best, nmm merges them, concat keeps all (nms)")
    parser.add_argument("--match_threshold", type=float, default=0.6, metavar="T",
                        help="findings that overlap at least so much are one object (0.6)")
    parser.add_argument("--match_metric", default="ios", choices=("iou", "ios"),
                        help="overlap: intersection over union (iou), or over the smaller box (ios)")


def export(parser: ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--output_dir", default="output_inference", metavar="DIR",
                        help="the export goes to a folder of the config's name below it (output_inference)")
    parser.add_argument("--format", choices=("json", "pdmodel", "both"),
                        help="file format (default: all that this Paddle can write)")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx: decoded boxes and scores")
    parser.add_argument("--with_nms", action="store_true", help="write model.onnx with the NMS inside")
    parser.add_argument("--int8", metavar="DIR",
                        help="also write model_int8.onnx, quantised with the photographs of this folder")
    parser.add_argument("--triton", metavar="DIR",
                        help="also write a model repository for Triton Inference Server there (implies --with_nms)")
    parser.add_argument("--verify_images", nargs="+", metavar="FILE",
                        help="compare on these images instead of drawn ones")
    parser.add_argument("--no_verify", action="store_true", help="do not compare the exported graphs with the model")


def model_zoo(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="of models (ppgfl models lists them); or who trained them: PaddleDetection, MMDetection, "
                             "GFocal, GFocalV2; or all (PaddleDetection)")
    parser.add_argument("--dataset_dir", metavar="DIR", help="COCO 2017: annotations/ and val2017/")
    parser.add_argument("--output_dir", default="output/model_zoo", metavar="DIR", help="(output/model_zoo)")
    parser.add_argument("--mirror", metavar="ADDRESS", help="where the same files are, instead of there")
    parser.add_argument("--fps_images", type=int, default=20, metavar="N", help="images that speed is measured on (20)")
    _overrides(parser)


def data(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="look through the data sets of a config")
    check.add_argument("config", help="config file, or the name of a shipped one")
    _overrides(check)
    check.add_argument("--output_dir", default="output/data_check", metavar="DIR", help="(output/data_check)")
    check.add_argument("--no_decode", action="store_true", help="do not decode the images: seconds instead of minutes")
    convert = actions.add_parser("convert", help="make COCO annotation files")
    convert.add_argument("--from", dest="kind", required=True, choices=("voc", "yolo", "labelme"))
    convert.add_argument("source", metavar="SOURCE", help="the data set's folder, or the data.yaml of a YOLO set")
    convert.add_argument("output", metavar="OUTPUT",
                         help="the .json file to write; or a folder, for instances_train.json and instances_val.json")
    convert.add_argument("--classes", metavar="FILE", help="one class name per line, in the order of the categories")
    convert.add_argument("--split", action="append", default=[], metavar="SHARE|FILE",
                         help="with a folder: the share of the images for training, as 0.8; or text files that list "
                              "images: --split train.txt --split val.txt (default: as the data set says)")


def convert(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE",
                        help="a .pth, a .safetensors or a .pdparams; the last also as an address or a released model")
    parser.add_argument("output", metavar="OUTPUT", help="the .pdparams or .safetensors to write")


def demo(parser: ArgumentParser) -> None:
    parser.add_argument("--distill", action="store_true",
                        help="instead: train a teacher, and a small student with and without it; about 20 minutes")


def benchmark(parser: ArgumentParser) -> None:
    parser.add_argument("--model_dir", required=True, metavar="DIR",
                        help="an exported folder; with a model.onnx in it, ONNX Runtime and OpenVINO take part")
    parser.add_argument("--against", metavar="DIR", help="another one, as PaddleDetection's export of the same model")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar="N", help="height width (800 1088)")
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--threads", type=int, metavar="N", help="(the physical cores)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="of all subjects, taking turns (10)")


def doctor(parser: ArgumentParser) -> None:
    parser.add_argument("--gpu", action="store_true",
                        help="prove that all of ppgfl works on this machine's GPU: about 20 minutes, and a report")
    parser.add_argument("--parts", metavar="N,N", help="with --gpu: some of its parts, as 0,1,5 (all)")
    parser.add_argument("--output_dir", metavar="DIR",
                        help="with --gpu: where gpu_report.md and gpu_report.json are written (here)")
    parser.add_argument("--dry", action="store_true",
                        help="with --gpu: try the check itself on the CPU, which proves nothing about a GPU")


def none(_parser: ArgumentParser) -> None:
    """Of a command that takes none."""


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _saved_kind(text: str) -> str | None:
    """PaddleDetection's `--save_results=True` writes COCO's bbox.json."""
    kinds = {**{kind: kind for kind in SAVED_KINDS}, "true": "coco", "false": None}
    if text.lower() not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {', '.join(kinds)}")
    return kinds[text.lower()]


def slicing_of(args: Namespace) -> Slicing | None:
    """The settings of slices, if images are to be looked at so. Raises ConfigError."""
    from ..inference.slicing import Slicing

    if not (args.slice_infer or args.slice_full):
        return None
    names = ("slice_size", "overlap_ratio", "combine_method", "match_threshold", "match_metric")
    return Slicing(**{name: getattr(args, name) for name in names}, full=args.slice_full)


def runner_of(args: Namespace) -> dict[str, str] | None:
    """The settings of the runner of --exported. Raises ConfigError."""
    from ..errors import ConfigError

    if args.run_mode and not args.exported:
        raise ConfigError("--run_mode: it is the runner's of an exported model; give --exported")
    return {"run_mode": args.run_mode} if args.run_mode else None
