"""Command lines: arguments -> one call each. `tools/*.py` are these, under the names users know."""
import argparse
import logging
import sys
from pathlib import Path

from . import dist, runtime
from .errors import DataError, UserError
from .log import logger, set_up


def main(command, arguments=None):
    """Run a command with a list of arguments. Returns the exit code: 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog=f"{command}.py", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=COMMANDS[command].__doc__)
    parser.add_argument("-c", "--config", required=True, metavar="FILE",
                        help="config file, or the name of a shipped one (gfl_r50_fpn_1x_coco)")
    parser.add_argument("-o", "--opt", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="overrides of the config, as in -o weights=W.pdparams TestReader.batch_size=4")
    ADD_ARGUMENTS[command](parser)
    args = parser.parse_args(arguments)
    set_up(logging.INFO if dist.is_main() else logging.WARNING)
    try:
        runtime.import_paddle()
        COMMANDS[command](args)
    except UserError as error:
        report = getattr(error, "report", None)
        if report is not None:
            logger.info("%s: entries that do not match\n%s", report.path, report.table())
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr)
        return 130
    return 0


def _load(args):
    from .config import load_config

    cfg = load_config(args.config, args.opt)
    runtime.select_device(cfg.get("use_gpu", False))
    return cfg


def evaluate(args):
    """Evaluate a detector on the EvalDataset of a config and print the COCO numbers.

    python tools/eval.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
    """
    from .evaluate import evaluate

    runner = {"run_mode": args.run_mode} if args.run_mode else None
    evaluate(_load(args), exported=args.exported, runner=runner, output_dir=args.output_eval,
             json_eval=args.json_eval, classwise=args.classwise, save_prediction_only=args.save_prediction_only)


def _evaluate_arguments(parser):
    parser.add_argument("--output_eval", default=".", metavar="DIR", help="where bbox.json is written (default: here)")
    parser.add_argument("--exported", metavar="PATH",
                        help="evaluate an exported folder or a model.onnx with its runner, instead of weights")
    parser.add_argument("--run_mode", help="of --exported, as bf16 (see deploy/python/infer.py)")
    parser.add_argument("--json_eval", action="store_true", help="evaluate the bbox.json that is in DIR already")
    parser.add_argument("--classwise", action="store_true", help="also print the AP of each class")
    parser.add_argument("--save_prediction_only", action="store_true", help="write bbox.json and stop")


def infer(args):
    """Detect on photographs: drawn pictures, and the numbers if asked for.

    python tools/infer.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
                          --infer_dir photos --save_results json
    """
    from .predict import infer

    infer(_load(args), _images(args), output_dir=args.output_dir, draw_threshold=args.draw_threshold,
          save_results=args.save_results, save_threshold=args.save_threshold)


def _infer_arguments(parser):
    parser.add_argument("--infer_img", metavar="FILE", help="one image")
    parser.add_argument("--infer_dir", metavar="DIR", help="a folder of images, searched recursively")
    parser.add_argument("--infer_list", metavar="FILE",
                        help="a text file with one image per line, relative to --infer_dir or to the current folder")
    parser.add_argument("--output_dir", default="output", metavar="DIR", help="where pictures go (default: output)")
    parser.add_argument("--draw_threshold", type=float, default=0.5, metavar="S", help="least score drawn (0.5)")
    parser.add_argument("--save_results", nargs="?", const="json", choices=("json", "csv", "coco"),
                        help="also write results.json, results.csv or COCO's bbox.json to the output folder")
    parser.add_argument("--save_threshold", type=float, default=0.0, metavar="S", help="least score saved (0)")


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
    from .train import train

    train(_load(args), run_name=Path(args.config).stem, evaluate=args.eval, resume=args.resume,
          amp=args.amp, accumulate=args.accumulate, use_vdl=args.use_vdl, vdl_log_dir=args.vdl_log_dir,
          to_static=args.to_static, seed=args.seed, patience=args.patience, best_metric=args.best_metric,
          scale_lr=not any(option.startswith("LearningRate.base_lr=") for option in args.opt),
          command=" ".join(sys.argv))


def _train_arguments(parser):
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
    from .export import export

    cfg = _load(args)
    verify = () if args.no_verify else args.verify_images
    export(cfg, output_dir=Path(args.output_dir) / Path(args.config).stem, format=args.format, onnx=args.onnx,
           with_nms=args.with_nms, verify=verify)


def _export_arguments(parser):
    parser.add_argument("--output_dir", default="output_inference", metavar="DIR",
                        help="the export goes to a folder of the config's name below it (output_inference)")
    parser.add_argument("--format", choices=("json", "pdmodel", "both"),
                        help="file format (default: all that this Paddle can write)")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx: decoded boxes and scores")
    parser.add_argument("--with_nms", action="store_true", help="write model.onnx with the NMS inside")
    parser.add_argument("--verify_images", nargs="+", metavar="FILE", help="check on these instead of drawn images")
    parser.add_argument("--no_verify", action="store_true", help="leave the check at the end out")


def _boolean(text):
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


COMMANDS = {"eval": evaluate, "infer": infer, "train": train, "export_model": export}
ADD_ARGUMENTS = {"eval": _evaluate_arguments, "infer": _infer_arguments, "train": _train_arguments,
                 "export_model": _export_arguments}
