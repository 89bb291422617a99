"""Command lines: arguments -> one call each. `tools/*.py` are these, under the names users know."""
from __future__ import annotations

import functools
import logging
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ConfigError, DataError
from ..system import dist, runtime
from ..system.log import set_up
from . import arguments
from .exit_code import exit_code

if TYPE_CHECKING:
    from ..inference.slicing import Slicing


def main(command: str, words: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run a command with the words that follow its name; None: those of this process.

    Returns: the exit code: 0; 1 when the command's own answer is no; 2 after one line on stderr.
    """
    run, add_arguments = COMMANDS[command]
    prog = prog or f"{command}.py"
    about = run.__doc__ or ""
    if prog.startswith("ppgfl "):
        about = about.replace(f"python tools/{command}.py", prog)
    parser = ArgumentParser(prog=prog, description=about, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(words)
    set_up(logging.INFO if dist.is_main() else logging.WARNING)
    # `doctor` says itself what is wrong with Paddle; its GPU check needs one.
    return exit_code(run, args, with_paddle=command != "doctor" or args.gpu)


def entry(words: Sequence[str] | None = None) -> int:
    """The command `ppgfl`: its first word names the command, the others are the arguments of `tools/COMMAND.py`."""
    words = sys.argv[1:] if words is None else words
    if list(words[:1]) == ["--version"]:
        print(f"ppgfl {__version__}")
        return 0
    command = WORDS.get(words[0]) if words else None
    if command is None:
        listed = "\n".join(f"  {word:<9} {_summary(COMMANDS[name][0])}" for word, name in WORDS.items())
        print(f"usage: ppgfl COMMAND ...\n\n{listed}\n\nppgfl COMMAND --help lists its arguments, "
              "ppgfl --version says which version this is.")
        return 0 if list(words[:1]) in ([], ["--help"], ["-h"]) else 2
    return main(command, words[1:], prog=f"ppgfl {words[0]}")


def _summary(run: Callable[[Namespace], Any]) -> str:
    return (run.__doc__ or "").splitlines()[0]


def _load(args: Namespace, device: bool = True) -> dict[str, Any]:
    from ..config import load_config
    from ..config.keys import setting

    cfg = load_config(args.config, args.opt, slim_config=args.slim_config)
    if device:
        runtime.select_device(setting(cfg, "use_gpu"))
    return cfg


def _need_weights(cfg: dict[str, Any], config: str) -> None:
    """Raise a ConfigError with the run's own weights where the config names none, or some that are not there."""
    from ..config.keys import setting
    from ..config.load import best_weights, config_name
    from ..errors import CheckpointError
    from ..weights.checkpoint import find

    weights = setting(cfg, "weights")
    own = best_weights(Path(setting(cfg, "save_dir"), config_name(config)))
    if not weights:
        mend = (f"the run of this config has some: -o weights={own}" if own else
                "set -o weights=PATH (a file, an address or the name of a released model)")
        raise ConfigError(f"weights: none are given; {mend}")
    if own:  # else whoever loads the weights says what is wrong with them
        try:
            find(weights)
        except CheckpointError as error:
            raise ConfigError(f"weights: {weights} is not there; the run of this config has some: "
                              f"-o weights={own}") from error


def evaluate(args: Namespace) -> None:
    """Evaluate a detector on the EvalDataset of a config and print the numbers of COCO, or of VOC.

    python tools/eval.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
    """
    from .. import build
    from ..errors import ConfigError
    from ..evaluation.evaluate import evaluate, evaluate_results
    from ..inference.detector import open_detector
    from ..precision import precision_of

    cfg, slicing, detector = _load(args), _slicing(args), None
    if not (args.json_eval or args.exported):
        _need_weights(cfg, args.config)
    elif args.amp:
        raise ConfigError("--amp: with --exported the runner computes (--run_mode trt_fp16), with --json_eval nothing "
                          "does; leave it out")
    report_dir = None if args.no_report else Path(args.output_eval) / "report"
    if args.json_eval:
        evaluate_results(cfg, output_dir=args.output_eval, classwise=args.classwise, report_dir=report_dir,
                         command=_command_line())
        return
    if args.exported or slicing:
        build.check(cfg)
        runner = {"run_mode": args.run_mode} if args.run_mode else None
        detector = open_detector(cfg, exported=args.exported, runner=runner, slicing=slicing, reader="EvalReader",
                                 precision=None if args.exported else precision_of(cfg, args.amp))
    evaluate(cfg, detector=detector, amp=None if detector else args.amp, output_dir=args.output_eval,
             classwise=args.classwise, save_prediction_only=args.save_prediction_only, report_dir=report_dir,
             command=_command_line())


def _command_line() -> str:
    """As it could be typed again, without the folder of the program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def infer(args: Namespace) -> None:
    """Detect on photographs: drawn pictures, and the numbers if asked for.

    python tools/infer.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
                          --infer_dir photos --save_results json
    """
    from ..inference.infer import infer

    cfg = _load(args)
    _need_weights(cfg, args.config)
    infer(cfg, _images(args), output_dir=args.output_dir, draw_threshold=args.draw_threshold,
          save_results=args.save_results, save_threshold=args.save_threshold, slicing=_slicing(args),
          pictures=not args.no_pictures, resume=args.resume)


def _slicing(args: Namespace) -> Slicing | None:
    from ..inference.slicing import Slicing

    names = ("slice_size", "overlap_ratio", "combine_method", "match_threshold", "match_metric")
    return Slicing(**{name: getattr(args, name) for name in names}) if args.slice_infer else None


def _images(args: Namespace) -> str | list[str]:
    if args.infer_list:
        from ..data.image import read_list

        return read_list(args.infer_list, args.infer_dir or "")
    if not args.infer_img and not args.infer_dir:
        raise DataError("no images: give --infer_img, --infer_dir or --infer_list")
    return args.infer_img or args.infer_dir


def train(args: Namespace) -> None:
    """Train a detector, by a config, or on data of your own by one command.

    python tools/train.py --data my_photos --model r18vd --epochs 50
    python tools/train.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml --eval
    python -m paddle.distributed.launch --gpus 0,1,2,3 tools/train.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml --eval
    """
    from ..config.load import config_name
    from ..training.train import train

    if bool(args.config) == bool(args.data):
        raise ConfigError("give either -c, a config, or --data, a data set of your own")
    own = _own_data(args) if args.data else None
    train(own or _load(args), run_name=args.name if own else config_name(args.config), evaluate=args.eval or bool(own),
          resume=args.resume, amp=args.amp, accumulate=args.accumulate, use_vdl=args.use_vdl,
          vdl_log_dir=args.vdl_log_dir, to_static=args.to_static, seed=args.seed, patience=args.patience,
          best_metric=args.best_metric, command=" ".join(sys.argv),
          scale_lr=not any(option.startswith("LearningRate.base_lr=") for option in args.opt))
    if own and dist.is_main():
        _say_next(Path(own["save_dir"], args.name))


def _own_data(args: Namespace) -> dict[str, Any]:
    """The config of `train --data`, after its plan was shown."""
    from .. import build
    from ..config.keys import setting
    from ..config.load import apply_overrides
    from ..training.recipe import Wish, make_config, show_plan
    from ..training.run_folder import RunFolder

    wish = Wish(args.data, args.model, args.size, args.epochs, args.batch, args.name, args.weights)
    folder = Path("output", wish.name)
    RunFolder(folder, resume=args.resume)  # refuses one with another run in it
    cfg = make_config(wish, folder)
    apply_overrides(cfg, args.opt, Path("config.yml").absolute())
    build.check(cfg)
    runtime.select_device(setting(cfg, "use_gpu"))
    if dist.is_main():
        show_plan(cfg, wish)
    return cfg


def _say_next(folder: Path) -> None:
    print(f"\nThe report is {folder}/report/report.html, the best weights are {folder}/best_model.pdparams. Next:\n"
          f"  ppgfl eval -c {folder}\n  ppgfl infer -c {folder} --infer_dir PHOTOS\n  ppgfl export -c {folder}")


def export(args: Namespace) -> None:
    """Export a detector for Paddle Inference and ONNX runtimes, and prove that the export predicts the same.

    python tools/export_model.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
    """
    from ..config.load import config_name
    from ..inference.export import export

    cfg = _load(args, device=False)  # an export is made on the CPU, wherever it will run
    _need_weights(cfg, args.config)
    verify = () if args.no_verify else args.verify_images
    export(cfg, output_dir=Path(args.output_dir) / config_name(args.config), format=args.format, onnx=args.onnx,
           with_nms=args.with_nms, int8=args.int8, verify=verify)


def model_zoo(args: Namespace) -> int:
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


def doctor(args: Namespace) -> int:
    """Look at this machine: versions, device, threads, fast paths, folders, and a self-test of seconds.

    ppgfl doctor
    ppgfl doctor --gpu

    --gpu proves the whole GPU path instead: values, training, exports, speed. Its exit code is 1 when anything is not
    as it should be; gpu_report.md says what. tools/gpu_check.py is the same.
    """
    if args.gpu:
        from .gpu import check

        return 0 if check.run(args.parts, dry=args.dry, output_dir=args.output_dir or ".") else 1
    for flag, given in (("--parts", args.parts), ("--output_dir", args.output_dir), ("--dry", args.dry)):
        if given:
            raise ConfigError(f"{flag}: it belongs to the GPU check; add --gpu")
    from .doctor import examine

    return 0 if examine() else 1


def benchmark(args: Namespace) -> None:
    """Measure the speed of an exported model on this machine's CPU, in every way that it can run here.

    ppgfl benchmark --model_dir output_inference/gfl_r18vd_1x_coco
    """
    from .benchmark import benchmark

    benchmark(args.model_dir, against=args.against, size=args.size, batch_size=args.batch_size, threads=args.threads,
              rounds=args.rounds)


def demo(args: Namespace) -> int:
    """Train from start to end without any input: draw a data set, train on it, evaluate, detect. About four minutes.

    ppgfl demo
    ppgfl demo --distill
    """
    from .demo import run, run_distillation

    return (run_distillation if args.distill else run)(main)


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


Command = tuple[Callable[[Namespace], Any], Callable[[ArgumentParser], None]]
COMMANDS: dict[str, Command] = {
    "train": (train, arguments.train), "eval": (evaluate, arguments.evaluate), "infer": (infer, arguments.infer),
    "export_model": (export, arguments.export), "model_zoo": (model_zoo, arguments.model_zoo),
    "data": (data, arguments.data), "demo": (demo, arguments.demo), "doctor": (doctor, arguments.doctor),
    "benchmark": (benchmark, arguments.benchmark)}
WORDS = {{"export_model": "export", "model_zoo": "zoo"}.get(name, name): name for name in COMMANDS}
