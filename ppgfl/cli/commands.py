"""Command lines: arguments -> one call each. `tools/*.py` are these, under the names users know."""
import argparse
import logging
import sys
from pathlib import Path

from .. import __version__
from ..errors import DataError
from ..system import dist, runtime
from ..system.log import set_up
from .exit_code import exit_code


def main(command, arguments=None, prog=None):
    """Run a command with a list of arguments.

    Returns: the exit code: 0; 1 when the command's own answer is no; 2 after one line on stderr.
    """
    run, add_arguments = COMMANDS[command]
    parser = argparse.ArgumentParser(prog=prog or f"{command}.py", description=run.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    set_up(logging.INFO if dist.is_main() else logging.WARNING)
    # `doctor` says itself what is wrong with Paddle.
    return exit_code(run, args, with_paddle=command != "doctor")


def entry(arguments=None):
    """The command `ppgfl`: its first argument names the command, the others are those of `tools/COMMAND.py`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(f"ppgfl {__version__}")
        return 0
    command = WORDS.get(arguments[0]) if arguments else None
    if command is None:
        listed = "\n".join(f"  {word:<9} {COMMANDS[name][0].__doc__.splitlines()[0]}" for word, name in WORDS.items())
        print(f"usage: ppgfl COMMAND ...\n\n{listed}\n\nppgfl COMMAND --help lists its arguments, "
              "ppgfl --version says which version this is.")
        return 0 if arguments[:1] in ([], ["--help"], ["-h"]) else 2
    return main(command, arguments[1:], prog=f"ppgfl {arguments[0]}")


def _config_arguments(parser):
    parser.add_argument("-c", "--config", required=True, metavar="FILE",
                        help="config file, or the name of a shipped one (gfl_r50_fpn_1x_coco)")
    parser.add_argument("--slim_config", metavar="FILE",
                        help="a teacher and how to learn from it; without meaning where nothing is trained")
    _override_arguments(parser)


def _override_arguments(parser):
    parser.add_argument("-o", "--opt", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="overrides of the config, as in -o weights=W.pdparams TestReader.batch_size=4")


def _load(args):
    from ..config.load import load_config

    cfg = load_config(args.config, args.opt, slim_config=args.slim_config)
    runtime.select_device(cfg.get("use_gpu", False))
    return cfg


def evaluate(args):
    """Evaluate a detector on the EvalDataset of a config and print the COCO numbers.

    python tools/eval.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
    """
    from ..evaluation.evaluate import evaluate

    runner = {"run_mode": args.run_mode} if args.run_mode else None
    evaluate(_load(args), exported=args.exported, runner=runner, slicing=_slicing(args), output_dir=args.output_eval,
             json_eval=args.json_eval, classwise=args.classwise, save_prediction_only=args.save_prediction_only,
             report_dir=None if args.no_report else Path(args.output_eval) / "report")


def _evaluate_arguments(parser):
    _config_arguments(parser)
    parser.add_argument("--output_eval", default=".", metavar="DIR", help="where bbox.json is written (default: here)")
    parser.add_argument("--exported", metavar="PATH",
                        help="evaluate an exported folder or a model.onnx with its runner, instead of weights")
    parser.add_argument("--run_mode", help="of --exported, as bf16 (see deploy/python/infer.py)")
    _slicing_arguments(parser)
    parser.add_argument("--json_eval", action="store_true", help="evaluate the bbox.json that is in DIR already")
    parser.add_argument("--classwise", action="store_true", help="also print the AP of each class")
    parser.add_argument("--no_report", action="store_true", help="leave DIR/report/report.html out")
    parser.add_argument("--save_prediction_only", action="store_true", help="write bbox.json and stop")


def infer(args):
    """Detect on photographs: drawn pictures, and the numbers if asked for.

    python tools/infer.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
                          --infer_dir photos --save_results json
    """
    from ..inference.infer import infer

    infer(_load(args), _images(args), output_dir=args.output_dir, draw_threshold=args.draw_threshold,
          save_results=args.save_results, save_threshold=args.save_threshold, slicing=_slicing(args),
          pictures=not args.no_pictures, resume=args.resume)


def _infer_arguments(parser):
    _config_arguments(parser)
    parser.add_argument("--infer_img", metavar="FILE", help="one image")
    parser.add_argument("--infer_dir", metavar="DIR", help="a folder of images, searched recursively")
    parser.add_argument("--infer_list", metavar="FILE",
                        help="a text file with one image per line, relative to --infer_dir or to the current folder")
    parser.add_argument("--output_dir", default="output", metavar="DIR", help="where pictures go (default: output)")
    parser.add_argument("--draw_threshold", type=float, default=0.5, metavar="S", help="least score drawn (0.5)")
    parser.add_argument("--save_results", nargs="?", const="json", type=_saved_kind, metavar="json|csv|coco|jsonl",
                        help="also write results.json, results.csv, COCO's bbox.json, or JSON lines in shards, which "
                             "need no memory however many images there are")
    parser.add_argument("--resume", action="store_true", help="with jsonl: leave out what an earlier run has done")
    parser.add_argument("--no_pictures", action="store_true", help="draw none")
    parser.add_argument("--save_threshold", type=float, default=0.0, metavar="S", help="least score saved (0)")
    _slicing_arguments(parser)


def _slicing_arguments(parser):
    parser.add_argument("--slice_infer", action="store_true", help="look at images slice by slice, for small objects")
    parser.add_argument("--slice_size", nargs="+", type=int, default=[640, 640], metavar="N",
                        help="height width (640 640)")
    parser.add_argument("--overlap_ratio", nargs="+", type=float, default=[0.25, 0.25], metavar="R",
                        help="share that neighbours have in common, down and across (0.25 0.25)")
    parser.add_argument("--combine_method", default="nms", choices=("nms", "nmm", "concat"),
                        help="of what overlaps: keep the best, merge, keep all (nms)")
    parser.add_argument("--match_threshold", type=float, default=0.6, metavar="T",
                        help="from which overlap on they are one object (0.6)")
    parser.add_argument("--match_metric", default="ios", choices=("iou", "ios"),
                        help="intersection over union, or over the smaller box (ios)")


def _slicing(args):
    from ..inference.slicing import Slicing

    names = ("slice_size", "overlap_ratio", "combine_method", "match_threshold", "match_metric")
    return Slicing(**{name: getattr(args, name) for name in names}) if args.slice_infer else None


def _images(args):
    if args.infer_list:
        path = Path(args.infer_list)
        if not path.is_file():
            raise DataError(f"--infer_list {path.absolute()}: no such file")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        images = [str(Path(args.infer_dir or "", line)) for line in lines if line]
        if not images:
            raise DataError(f"--infer_list {path.absolute()}: the list is empty")
        return images
    if not args.infer_img and not args.infer_dir:
        raise DataError("no images: give --infer_img, --infer_dir or --infer_list")
    return args.infer_img or args.infer_dir


def train(args):
    """Train a detector.

    python tools/train.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml --eval
    python -m paddle.distributed.launch --gpus 0,1,2,3 tools/train.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml --eval
    """
    from ..training.train import train

    train(_load(args), run_name=Path(args.config).stem, evaluate=args.eval, resume=args.resume,
          amp=args.amp, accumulate=args.accumulate, use_vdl=args.use_vdl, vdl_log_dir=args.vdl_log_dir,
          to_static=args.to_static, seed=args.seed, patience=args.patience, best_metric=args.best_metric,
          scale_lr=not any(option.startswith("LearningRate.base_lr=") for option in args.opt),
          command=" ".join(sys.argv))


def _train_arguments(parser):
    _config_arguments(parser)
    parser.add_argument("--eval", action="store_true", help="evaluate after each snapshot_epoch, keep the best model")
    parser.add_argument("-r", "--resume", nargs="?", const="", metavar="PATH",
                        help="go on from this checkpoint; without PATH from the newest of this run")
    parser.add_argument("--amp", nargs="?", const="O1", choices=("O1", "O2"), help="mixed precision on a GPU")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches per optimizer step (1)")
    parser.add_argument("--use_vdl", nargs="?", const=True, default=False, type=_boolean, metavar="BOOL",
                        help="write a VisualDL log")
    parser.add_argument("--vdl_log_dir", metavar="DIR", help="where to (default: the run's folder/vdl)")
    parser.add_argument("--to_static", action="store_true", help="compile the model into a static graph")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation (0)")
    parser.add_argument("--patience", type=int, default=0, metavar="N",
                        help="stop after N epochs without a better evaluation (0: never)")
    parser.add_argument("--best_metric", default="AP", help="AP, AP50, AP75, APs, APm, APl, AR1, ... (AP)")


def export(args):
    """Export a detector for Paddle Inference and ONNX runtimes, and prove that the export predicts the same.

    python tools/export_model.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
    """
    from ..inference.export import export

    cfg = _load(args)
    verify = () if args.no_verify else args.verify_images
    export(cfg, output_dir=Path(args.output_dir) / Path(args.config).stem, format=args.format, onnx=args.onnx,
           with_nms=args.with_nms, int8=args.int8, verify=verify)


def _export_arguments(parser):
    _config_arguments(parser)
    parser.add_argument("--output_dir", default="output_inference", metavar="DIR",
                        help="the export goes to a folder of the config's name below it (output_inference)")
    parser.add_argument("--format", choices=("json", "pdmodel", "both"),
                        help="file format (default: all that this Paddle can write)")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx: decoded boxes and scores")
    parser.add_argument("--with_nms", action="store_true", help="write model.onnx with the NMS inside")
    parser.add_argument("--int8", metavar="DIR",
                        help="also write model_int8.onnx, quantised with the photographs of this folder")
    parser.add_argument("--verify_images", nargs="+", metavar="FILE", help="check on these instead of drawn images")
    parser.add_argument("--no_verify", action="store_true", help="leave the check at the end out")


def _boolean(text):
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def model_zoo(args):
    """Reproduce the table of the model zoo: fetch the released weights, evaluate, measure, compare.

    python tools/model_zoo.py --dataset_dir /data/coco
    python tools/model_zoo.py gfl_r18vd_1x_coco gfl_r34vd_1x_coco --dataset_dir /data/coco

    COCO itself is not downloaded. Finished rows are kept, so a stopped run goes on. The exit code is 1 when a model
    misses its released AP by more than 0.1.
    """
    from ..evaluation.zoo_table import failed, reproduce

    overrides = ([f"EvalDataset.dataset_dir={args.dataset_dir}"] if args.dataset_dir else []) + args.opt
    rows = reproduce(args.names, overrides=overrides, output_dir=args.output_dir, mirror=args.mirror,
                     fps_images=args.fps_images)
    return 1 if failed(rows) else 0


def _model_zoo_arguments(parser):
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the models (default: all five)")
    parser.add_argument("--dataset_dir", metavar="DIR", help="COCO 2017: annotations/ and val2017/")
    parser.add_argument("--output_dir", default="output/model_zoo", metavar="DIR", help="(output/model_zoo)")
    parser.add_argument("--mirror", metavar="ADDRESS", help="where the same weights are, instead of PaddleDetection's")
    parser.add_argument("--fps_images", type=int, default=20, metavar="N", help="images that speed is measured on (20)")
    _override_arguments(parser)


def doctor(args):
    """Look at this machine: versions, device, threads, fast paths, folders, and a self-test of seconds.

    ppgfl doctor
    """
    from .doctor import examine

    return 0 if examine() else 1


def benchmark(args):
    """Measure the speed of an exported model on this machine's CPU, in every way that it can run here.

    ppgfl benchmark --model_dir output_inference/gfl_r18vd_1x_coco
    """
    from .benchmark import benchmark

    benchmark(args.model_dir, against=args.against, size=args.size, batch_size=args.batch_size, threads=args.threads,
              rounds=args.rounds)


def _benchmark_arguments(parser):
    parser.add_argument("--model_dir", required=True, metavar="DIR",
                        help="an exported folder; with a model.onnx in it, ONNX Runtime and OpenVINO take part")
    parser.add_argument("--against", metavar="DIR", help="another one, as PaddleDetection's export of the same model")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar="N", help="height width (800 1088)")
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--threads", type=int, metavar="N", help="(the physical cores)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="of all subjects, taking turns (10)")


def demo(args):
    """Train from start to end without any input: draw a data set, train on it, evaluate, detect. About four minutes.

    ppgfl demo
    ppgfl demo --distill
    """
    from .demo import run, run_distillation

    return (run_distillation if args.distill else run)(main)


def _demo_arguments(parser):
    parser.add_argument("--distill", action="store_true",
                        help="instead: train a teacher, and a small student with and without it; about 20 minutes")


def data(args):
    """Look through the data sets of a config, or convert annotations to COCO.

    ppgfl data check my_config.yml -o TrainDataset.dataset_dir=/data/mine
    ppgfl data convert --from voc /data/VOC2007 annotations.json

    check: counts, images without a box, bad boxes, files that are missing or cannot be decoded, classes that differ
    between training and validation, and a picture of classes and box sizes. Its exit code is 1 when something is wrong.
    """
    if args.action == "convert":
        from ..data.convert import convert

        convert(args.kind, args.source, args.output, classes=args.classes)
        return 0
    from ..build import CLASSES
    from ..config.check import check_config
    from ..config.load import load_config
    from ..data.check import check

    cfg = load_config(args.config, args.opt)
    check_config(cfg, CLASSES)
    return 0 if check(cfg, output_dir=args.output_dir, decode=not args.no_decode) else 1


def _data_arguments(parser):
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="look through the data sets of a config")
    check.add_argument("config", help="config file, or the name of a shipped one")
    _override_arguments(check)
    check.add_argument("--output_dir", default="output/data_check", metavar="DIR", help="(output/data_check)")
    check.add_argument("--no_decode", action="store_true", help="do not decode the images: seconds instead of minutes")
    convert = actions.add_parser("convert", help="make a COCO annotation file")
    convert.add_argument("--from", dest="kind", required=True, choices=("voc", "yolo", "labelme"))
    convert.add_argument("source", help="the data set's folder; it is the image_dir of what is made")
    convert.add_argument("output", help="the JSON file to write")
    convert.add_argument("--classes", metavar="FILE", help="one class name per line, in the order of the categories")


def _saved_kind(text):
    """PaddleDetection's `--save_results=True` writes COCO's bbox.json."""
    kinds = {**{kind: kind for kind in ("json", "csv", "coco", "jsonl")}, "true": "coco", "false": None}
    if text.lower() not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {', '.join(kinds)}")
    return kinds[text.lower()]


def _no_arguments(parser):
    pass


COMMANDS = {"train": (train, _train_arguments), "eval": (evaluate, _evaluate_arguments),
            "infer": (infer, _infer_arguments), "export_model": (export, _export_arguments),
            "model_zoo": (model_zoo, _model_zoo_arguments), "data": (data, _data_arguments),
            "demo": (demo, _demo_arguments), "doctor": (doctor, _no_arguments),
            "benchmark": (benchmark, _benchmark_arguments)}
WORDS = {{"export_model": "export", "model_zoo": "zoo"}.get(name, name): name for name in COMMANDS}
