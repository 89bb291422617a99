"""Command lines: arguments -> one call each. `tools/*.py` are these, under the names users know."""
import argparse
import sys
from pathlib import Path

from . import runtime
from .errors import DataError, UserError
from .log import logger, set_up


def main(command, arguments=None):
    """Run "eval" or "infer" with a list of arguments. Returns the exit code: 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog=f"{command}.py", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=COMMANDS[command].__doc__)
    parser.add_argument("-c", "--config", required=True, metavar="FILE",
                        help="config file, or the name of a shipped one (gfl_r50_fpn_1x_coco)")
    parser.add_argument("-o", "--opt", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="overrides of the config, as in -o weights=W.pdparams TestReader.batch_size=4")
    ADD_ARGUMENTS[command](parser)
    args = parser.parse_args(arguments)
    set_up()
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

    evaluate(_load(args), output_dir=args.output_eval, json_eval=args.json_eval, classwise=args.classwise,
             save_prediction_only=args.save_prediction_only)


def _evaluate_arguments(parser):
    parser.add_argument("--output_eval", default=".", metavar="DIR", help="where bbox.json is written (default: here)")
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


COMMANDS = {"eval": evaluate, "infer": infer}
ADD_ARGUMENTS = {"eval": _evaluate_arguments, "infer": _infer_arguments}
