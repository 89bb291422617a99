"""Command lines: arguments -> one call each. `tools/*.py` are these, under the names users know."""
from __future__ import annotations

import logging
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ConfigError, DataError
from ..system import dist, framework
from ..system.log import set_up
from . import arguments
from .data import data
from .exit_code import exit_code

if TYPE_CHECKING:
    from ..data.dataset import DetectionDataSet


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
    # `doctor` says itself what is wrong with Paddle; its GPU check needs one. Lists, and `infer` often, need none.
    with_paddle = command not in ("doctor", "models", "configs", "infer") or getattr(args, "gpu", False)
    return exit_code(run, args, with_paddle=with_paddle)


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
        framework.select_device(setting(cfg, "use_gpu"))
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
    from ..evaluation.evaluate import evaluate, evaluate_results
    from ..inference.detector import open_detector
    from ..precision import precision_of

    cfg, slicing, detector = _load(args), arguments.slicing_of(args), None
    if not (args.json_eval or args.exported):
        _need_weights(cfg, args.config)
    elif args.amp:
        raise ConfigError("--amp: with --exported the runner computes (--run_mode trt_fp16), with --json_eval nothing "
                          "does; leave it out")
    elif args.json_eval and args.tta is not None:
        raise ConfigError("--tta: with --json_eval no image is looked at; leave it out")
    elif args.json_eval and args.sigma:
        raise ConfigError("--sigma: with --json_eval no image is looked at; leave it out")
    if args.calibrate and (args.exported or args.json_eval or slicing or args.tta is not None or
                           args.save_prediction_only):
        raise ConfigError("--calibrate: it is fitted to what weights find in images that are looked at once, and how "
                          "right that is; leave --exported, --json_eval, --slice_infer, --tta and "
                          "--save_prediction_only out")
    report_dir = None if args.no_report else Path(args.output_eval) / "report"
    if args.json_eval:
        evaluate_results(cfg, output_dir=args.output_eval, classwise=args.classwise, report_dir=report_dir,
                         command=_command_line())
        return
    if args.exported or slicing or args.tta is not None:
        build.check(cfg)
        detector = open_detector(cfg, exported=args.exported, runner=arguments.runner_of(args), slicing=slicing,
                                 reader="EvalReader", tta=args.tta, sigma=args.sigma,
                                 precision=None if args.exported else precision_of(cfg, args.amp))
    evaluate(cfg, detector=detector, amp=None if detector else args.amp, output_dir=args.output_eval,
             classwise=args.classwise, save_prediction_only=args.save_prediction_only, report_dir=report_dir,
             command=_command_line(), sigma=args.sigma, calibrate=args.calibrate)


def _command_line() -> str:
    """As it could be typed again, without the folder of the program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def infer(args: Namespace) -> None:
    """Detect on photographs and videos: drawn pictures, and the numbers if asked for.

    python tools/infer.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
                          --infer_dir photos --save_results json
    """
    from ..inference.infer import infer
    from ..inference.infer_video import infer_videos, split_inputs
    from ..inference.video import local_copies

    cfg = _load(args)
    if not args.exported:
        _need_weights(cfg, args.config)
    common = {name: getattr(args, name) for name in ("output_dir", "draw_threshold", "save_results", "save_threshold",
                                                     "tta", "sigma", "draw_sigma", "calibrated", "exported")}
    common.update(runner=arguments.runner_of(args), slicing=arguments.slicing_of(args), pictures=not args.no_pictures)
    videos: list[Any] = [args.video_file] * bool(args.video_file) + [args.camera_id] * (args.camera_id >= 0)
    images, more = split_inputs(_images(args, optional=bool(videos)), args.output_dir)
    if videos + more:
        if args.resume or args.show_distributions:
            raise ConfigError("--resume and --show_distributions: of images alone; leave them out for a video")
        infer_videos(cfg, videos + more, every=args.every, **common)
    elif args.every != 1:
        raise ConfigError("--every: of the frames of videos, and there is none; leave it out")
    if images:
        with local_copies(images) as (files, copies):
            infer(cfg, files, resume=args.resume, show_distributions=args.show_distributions, copies=copies, **common)


def _images(args: Namespace, optional: bool) -> list[str]:
    if args.infer_list:
        from ..data.image import read_list

        return read_list(args.infer_list, args.infer_dir or "")
    place = args.infer_img or args.infer_dir
    if not (place or optional):
        raise DataError("no images: give --infer_img, --infer_dir, --infer_list, --video_file or --camera_id")
    return [place] if place else []


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
    cfg, opened = _own_data(args) if args.data else (_load(args), None)
    if args.loggers:
        cfg["loggers"] = args.loggers
    if args.use_wandb:
        cfg["use_wandb"] = True
    train(cfg, run_name=args.name if opened else config_name(args.config), evaluate=args.eval or bool(opened),
          resume=args.resume, amp=args.amp, accumulate=args.accumulate, use_vdl=args.use_vdl,
          vdl_log_dir=args.vdl_log_dir, to_static=args.to_static, seed=args.seed, patience=args.patience,
          best_metric=args.best_metric, command=" ".join(sys.argv),
          scale_lr=not any(option.startswith("LearningRate.base_lr=") for option in args.opt),
          data_sets=opened)
    if opened and dist.is_main():
        _say_next(Path(cfg["save_dir"], args.name))


def _own_data(args: Namespace) -> tuple[dict[str, Any], tuple[DetectionDataSet, DetectionDataSet]]:
    """The config of `train --data` and its data sets, after its plan was shown."""
    from ..config.keys import setting
    from ..training.recipe import Wish, find_weights, make_config, run_folder, show_plan
    from ..training.run_folder import RunFolder

    wish = Wish(args.data, args.model, args.size, args.epochs, args.batch, args.name, args.weights)
    folder = run_folder(wish, args.opt)
    kept = RunFolder(folder, resume=args.resume)  # refuses one with another run in it
    if args.resume is None:
        find_weights(wish, args.opt)
    with kept.locked():  # nor are the annotations of one that has just begun written over
        cfg, train_set, eval_set = make_config(wish, folder, args.opt)
    framework.select_device(setting(cfg, "use_gpu"))
    if dist.is_main() and args.resume is None:  # a run that goes on says itself from where, and how long
        show_plan(cfg, wish, train_set, eval_set)
    return cfg, (train_set, eval_set)


def _say_next(folder: Path) -> None:
    print(f"\nThe report is {folder}/report/report.html, the best weights are {folder}/best_model.pdparams. Next:\n"
          f"  ppgfl eval -c {folder}\n  ppgfl infer -c {folder} --infer_dir PHOTOS\n  ppgfl export -c {folder}")


def export(args: Namespace) -> None:
    """Export a detector for Paddle Inference and ONNX runtimes, and prove that the export predicts the same.

    python tools/export_model.py -c configs/gfl/gfl_r50_fpn_1x_coco.yml -o weights=gfl_r50_fpn_1x_coco.pdparams
    """
    from ..config.load import config_name
    from ..inference import triton
    from ..inference.export import export

    cfg = _load(args, device=False)  # an export is made on the CPU, wherever it will run
    _need_weights(cfg, args.config)
    verify, name = () if args.no_verify else args.verify_images, config_name(args.config)
    if args.triton:
        triton.check(args.triton, name)
    export(cfg, output_dir=Path(args.output_dir) / name, format=args.format, onnx=args.onnx,
           with_nms=args.with_nms or bool(args.triton), int8=args.int8, verify=verify)
    if args.triton:
        triton.write(args.triton, Path(args.output_dir) / name / "model.onnx", name)


def model_zoo(args: Namespace) -> int:
    """Reproduce the table of the model zoo: fetch the released weights, evaluate, measure, compare.

    python tools/model_zoo.py --dataset_dir /data/coco
    python tools/model_zoo.py gfl_r18vd_1x_coco mmdet_gfl_r101_ms2x --dataset_dir /data/coco
    python tools/model_zoo.py GFocalV2 --dataset_dir /data/coco

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


def convert(args: Namespace) -> None:
    """Make a .pdparams of a PyTorch checkpoint, with its config beside it; or change to .safetensors and back.

    ppgfl convert gfl_r50_fpn_1x_coco.pth gfl_r50.pdparams
    ppgfl convert gfl_r50.pdparams gfl_r50.safetensors

    It takes GFL models of MMDetection, GFocal and GFocalV2, and ResNet backbones. PyTorch is not needed; nothing runs.
    """
    from ..convert import convert

    convert(args.source, args.output)


def demo(args: Namespace) -> int:
    """Train from start to end without any input: draw a data set, train on it, evaluate, detect. Under five minutes.

    ppgfl demo
    ppgfl demo --distill
    """
    from .demo import run, run_distillation

    return (run_distillation if args.distill else run)(main)


def models(_args: Namespace) -> None:
    """List the released models: AP, size, operations, who trained them.

    ppgfl models
    """
    from .listing import models

    print(models())


def configs(_args: Namespace) -> None:
    """List the shipped configs, each with what it is and the AP to expect.

    ppgfl configs
    """
    from .listing import configs

    print(configs())


Command = tuple[Callable[[Namespace], Any], Callable[[ArgumentParser], None]]
COMMANDS: dict[str, Command] = {
    "train": (train, arguments.train), "eval": (evaluate, arguments.evaluate), "infer": (infer, arguments.infer),
    "export_model": (export, arguments.export), "model_zoo": (model_zoo, arguments.model_zoo),
    "data": (data, arguments.data), "convert": (convert, arguments.convert), "demo": (demo, arguments.demo),
    "doctor": (doctor, arguments.doctor), "benchmark": (benchmark, arguments.benchmark),
    "models": (models, arguments.none), "configs": (configs, arguments.none)}
WORDS = {{"export_model": "export", "model_zoo": "zoo"}.get(name, name): name for name in COMMANDS}
