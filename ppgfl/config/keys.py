"""Keys of a config that belong to no class: what they mean, and what holds where a config lacks them. The keys of a
class are the arguments it takes, with their defaults.

`check.check_config` refuses what is not here; docs/configs.md is written from here.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any, Literal, Optional, Union

from ..errors import ConfigError, nearest
from ..kinds import (
    Automatic,
    CellOffset,
    Classes,
    Count,
    File,
    Length,
    NotNegative,
    Part,
    Positive,
    Range,
    ShareBelowOne,
    Transforms,
    Workers,
)
from .values import as_written, kinds_of, read

NO_EFFECT = "no effect; PaddleDetection's files have it"
OWN = ("_", "x-")  # what the top-level keys that are the user's own begin with


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        meaning: for docs/configs.md.
        default: its value where a config lacks it; this is its only home.
        kind: what it may be, as `kinds` and `values` have it.
    """

    meaning: str
    default: Any = None
    kind: Any = Any


_NO_DEVICE = Optional[Annotated[Literal[False], "ppgfl computes on CPUs and on NVIDIA's GPUs, use_gpu"]]

TOP_LEVEL = {
    "architecture": Key("GFL", "GFL", Annotated[Literal["GFL"], "ppgfl builds GFL only"]),
    "pretrain_weights": Key("what training starts from: a file, an address, the name of a released model or of a "
                            "backbone", None, Optional[File]),
    "weights": Key("what eval, infer and export load: a file (with or without `.pdparams`), an address, the name of a "
                   "released model", "", Optional[File]),
    "engine": Key("of eval and infer: dygraph; static, a graph kept in the cache, several times as fast on a CPU; "
                  "auto: static on a CPU for more than a few images", "auto", Literal["auto", "dygraph", "static"]),
    "num_classes": Key("C; null: as many as the annotation file of TrainDataset lists, or where that is absent as the "
                       "weights have", 80, Union[Classes, Automatic]),
    "match_classes": Key("how eval and infer match the classes of weights, which know their names, with those of an "
                         "annotation file: name; place, for classes that have been renamed or translated", "name",
                         Literal["name", "place"]),
    "metric": Key("what an evaluation measures: COCO's twelve numbers, or VOC's mAP at IoU 0.5; either of any data set",
                  "COCO", Literal["COCO", "VOC"]),
    "map_type": Key("how `metric: VOC` computes an AP: 11point, the mean of the best precision from each of 11 recalls "
                    "on; integral, the area under precision over recall", "11point", Literal["11point", "integral"]),
    "norm_type": Key("of the backbone: bn or sync_bn (statistics shared between processes)", None,
                     Optional[Literal["bn", "sync_bn"]]),
    "upstream_scores": Key("true: PaddleDetection's GFLv2 scores, which take a second sigmoid", False, bool),
    "epoch": Key("epochs of training", 12, Count),
    "snapshot_epoch": Key("a checkpoint, and with `--eval` an evaluation, every so many epochs", 1, Count),
    "save_dir": Key("runs go to `save_dir`/CONFIG_NAME", "output", File),
    "log_iter": Key("a log line every so many steps", 20, Count),
    "worker_num": Key("processes that load images; 0: none", 0, Workers),
    "use_gpu": Key("false: the CPU, even where there is a GPU; true: the CPU only where there is none, and a line says "
                   "so", False, bool),
    "use_ema": Key("keep a moving average of the weights: it is evaluated and saved", False, bool),
    "ema_decay": Key("share of the old average that is kept in a step", 0.9998, ShareBelowOne),
    "ema_decay_type": Key("how that share grows at first: threshold, exponential, or normal for not at all",
                          "threshold", Literal["threshold", "exponential", "normal"]),
    "corrupt_images": Key("what becomes of images that cannot be read: error, which stops; skip: they are left out "
                          "with a line (in training another takes the place, in evaluation their objects count as "
                          "missed)",
                          "error", Literal["error", "skip"]),
    "hang_timeout": Key("in a run of several processes: seconds after which one that neither gets a batch nor ends a "
                        "step reports what it hangs in and ends the run, if no step before took a fifth of that; 0: "
                        "never; null: 45, on a CPU 25, since gloo, over which the processes talk there, gives up after "
                        "30. The first step of a run on a GPU, which looks for fast kernels and connects the cards, "
                        "gets at least 300", None, Union[Annotated[float, Range(0, 1_000_000)], Automatic]),
    "teacher": Key("put there by `--slim_config`: the whole slim config, so that `-o teacher.pretrain_weights=PATH` "
                   "sets the teacher's weights and `-o teacher.num_classes=N` its classes", None,
                   Optional[dict[str, Any]]),
    "slim": Key("of a slim config: Distill", None, Optional[str]),
    "slim_method": Key("of a slim config: LD or CWD", None, Optional[str]),
    "distill_loss": Key("of a slim config with CWD: CWDFeatureLoss", "CWDFeatureLoss", Part),
    "distill_loss_name": Key("of a slim config with CWD: one for each level; the names themselves have no effect", None,
                             Optional[Sequence[str]]),
    "find_unused_parameters": Key("of Paddle's DataParallel", False, bool),
    "amp": Key("true: as `--amp` with `amp_level`", False, bool),
    "amp_level": Key("O1 or O2, for `amp`", "O1", Literal["O1", "O2"]),
    "custom_white_list": Key("operators that mixed precision computes in float16, beside Paddle's own list", None,
                             Optional[Sequence[str]]),
    "custom_black_list": Key("operators that mixed precision leaves in float32, beside Paddle's own list", None,
                             Optional[Sequence[str]]),
    "master_grad": Key("with O2: turn gradients into float32 before they are clipped and used", False, bool),
    "init_loss_scaling": Key("what the loss is multiplied with at first in mixed precision; the factor follows the "
                             "gradients from then on", 1024, Positive),
    **dict.fromkeys(("use_xpu", "use_npu", "use_mlu"), Key("false", False, _NO_DEVICE)),
    "trust": Key("true, with `-o` only: a config may name transforms of your own in other folders than its own", False,
                 bool),
    "use_vdl": Key("true: as `--use_vdl`", False, bool),
    "vdl_log_dir": Key("as `--vdl_log_dir`", None, Optional[File]),
    "loggers": Key("dashboards of a training, as `--loggers`; each but visualdl is an extra, as in "
                   "`pip install \"ppgfl[mlflow]\"`", None,
                   Optional[Sequence[Literal["visualdl", "mlflow", "tensorboard", "wandb"]]]),
    "use_wandb": Key("true: as `--loggers wandb`", False, bool),
    "wandb": Key("arguments of `wandb.init`, as in {project: shapes}; where it stands, W&B is on", None,
                 Optional[dict[str, Any]]),
}

# Top-level keys of PaddleDetection without an effect here, and what they are for there: a line says so where one is on.
_OTHERS = "belongs to other architectures"
_REFERRED = "is a number that other keys of the file refer to; of GFL, TestReader.inputs_def.image_shape is the size"
IGNORED = {
    "print_flops": "prints how many operations the model takes", "print_params": "prints how many parameters it has",
    "print_mem_info": "prints the memory in use", "profiler_options": "switches Paddle's profiler on",
    "log_ranks": "lists the processes that log; here the first one does",
    "uniform_output_enabled": "writes train_results.json; results.csv is what a run writes here",
    "output_eval": "is the folder of bbox.json; here it is that of the flag --output_eval",
    "save_prediction_only": "writes bbox.json and stops; here the flag --save_prediction_only does",
    "classwise": "prints the AP of each class; here the flag --classwise does",
    "to_static": "compiles the model; here the flag --to_static does",
    "fleet": "trains over several machines", "use_fused_allreduce_gradients": "adds up all gradients in one piece",
    "ema_filter_no_grad": "leaves parameters without a gradient out of the average, which is that parameter itself",
    "ema_black_list": "leaves the entries that it names out of the average; here all are averaged",
    "cycle_epoch": "starts the moving average anew after so many epochs; here it never is",
    "reset_norm_param_attr": "lets weight decay of the optimizer reach normalisation layers",
    "unstructured_prune": "prunes the model in training; there is no pruning here",
    **dict.fromkeys(("eval_size", "eval_height", "eval_width", "train_height", "train_width"), _REFERRED),
    **dict.fromkeys(("act", "data_format", "depth_mult", "width_mult", "hidden_dim", "use_focal_loss", "with_mask",
                     "trt", "export_onnx", "exclude_nms", "exclude_post_process", "for_distill", "for_mot",
                     "mot_metric", "num_joints", "use_simple_ema", "ema_start_iters"), _OTHERS),
}

# Names of PaddleDetection's classes that are left out on purpose, and what to take.
ABSENT = {
    **dict.fromkeys(("NormalizeBox", "BboxXYXY2XYWH", "BboxCXCYWH2XYXY", "Norm2PixelBbox"),
                    "GFL's targets take boxes in pixels, x1 y1 x2 y2; remove the line"),
    **dict.fromkeys(("PadBox", "PadGT", "PadRGT"), "GFL's targets are made for each image by itself, however many "
                                                   "boxes it has; remove the line"),
    **dict.fromkeys(("Gt2YoloTarget", "Gt2FCOSTarget", "Gt2TTFTarget", "Gt2Solov2Target", "Gt2SparseTarget",
                     "Gt2CenterNetTarget", "Gt2CenterTrackTarget"), "it makes the targets of another head; write "
                                                                    "Gt2GFLTarget: {} in its place"),
    "PadMaskBatch": "PadBatch: {pad_to_stride: 32} pads, and GFL needs no mask",
    "RandomErasingImage": "RandomErasing and GridMask cover parts of images",
    "PhotoMetricDistortion": "RandomDistort changes the same properties",
    **dict.fromkeys(("RandomColorJitter", "RandomGrayscale", "CenterRandColor"), "RandomDistort changes colours"),
    "RandomGaussianBlur": "a transform of your own can do it, as docs/augmentation.md shows",
    **dict.fromkeys(("CropWithSampling", "CropWithDataAchorSampling"), "RandomCrop draws parts by their overlap"),
    "RandomResizeCrop": "RandomResize and RandomCrop do it in two lines",
    "RandomShortSideRangeResize": "RandomResize with random_range: true draws from a range",
    "MultiscaleTestResize": "write Resize, and give eval and infer --tta flip,0.8,1.25, which looks at several sizes",
    **dict.fromkeys(("WarpAffine", "FlipWarpAffine"), "Mosaic and AutoAugment turn and shear"),
    "StrongAugImage": "it belongs to semi-supervised training",
    "BatchRandomResizeForSSOD": "it belongs to semi-supervised training; BatchRandomResize is there",
    "Poly2Mask": "GFL has no masks; remove the line",
    "DebugVisibleImage": "it draws pictures on disk in each step; remove the line",
    **dict.fromkeys(("DecodeCache", "SniperDecodeCrop"), "Decode reads images"),
}

MixEpochs = Annotated[int, Range(-1)]

_READER = {
    "sample_transforms": Key("list of transforms of one image, in order", (), Transforms),
    "batch_transforms": Key("list of transforms of a whole batch, in order", (), Optional[Transforms]),
    "batch_size": Key("images of a batch, of each process", 1, Count),
    "shuffle": Key("a new order in every epoch", False, bool),
    "drop_last": Key("leave the last batch out when it is not full", False, bool),
    "mixup_epoch": Key("Mixup mixes in so many epochs; 0: in all, -1: never", -1, MixEpochs),
    "cutmix_epoch": Key("Cutmix mixes until that epoch, after those of Mixup; 0 and -1 as above", -1, MixEpochs),
    "mosaic_epoch": Key("Mosaic mixes until that epoch, after those of Mixup and Cutmix; 0 and -1 as above", -1,
                        MixEpochs),
    "inputs_def": Key("`image_shape: [3, height, width]`: of TestReader, the size of an exported graph's input; -1: "
                      "any", None, Optional[dict[str, Any]]),
    "drop_empty": Key(NO_EFFECT),
    "use_shared_memory": Key(NO_EFFECT),
    "collate_batch": Key(NO_EFFECT),
    "num_classes": Key(NO_EFFECT),
}

SECTIONS = {
    "GFL": {
        "backbone": Key("name of its section", "ResNet", Part),
        "neck": Key("name of its section", "FPN", Part),
        "head": Key("name of its section", "GFLHead", Part)},
    "TrainReader": _READER, "EvalReader": _READER, "TestReader": _READER,
    "LearningRate": {
        "base_lr": Key("for a step of `total_batch_size` images; scaled to the real one unless given with `-o`", 0.01,
                       Positive),
        "schedulers": Key("list of two: the decay, then the warm-up", ("PiecewiseDecay", "LinearWarmup"),
                          Annotated[Sequence[Part], Length(1, 2), "the decay, then the warm-up"]),
        "total_batch_size": Key("images of a step over all processes that `base_lr` is meant for: PaddleDetection's 8 "
                                "GPUs with 2 each", 16, Count)},
    "OptimizerBuilder": {
        "optimizer": Key("`type`: Momentum, SGD, Adam or AdamW, and its keys (below)",
                         {"type": "Momentum", "momentum": 0.9},
                         Annotated[dict[str, Any], "as in {type: AdamW, beta1: 0.9}"]),
        "regularizer": Key("`type`: L1 or L2, and `factor`; null for none, as it is by default where the optimizer has "
                           "a weight_decay of its own", {"type": "L2", "factor": 1e-4},
                           Optional[Annotated[dict[str, Any], "as in {type: L2, factor: 0.0001}"]]),
        "clip_grad_by_norm": Key("largest norm over all gradients", None, Optional[Positive]),
        "clip_grad_by_value": Key("largest value of a gradient", None, Optional[Positive])},
    "export": {
        "post_process": Key("false: the graph ends with the head's maps", True, bool),
        "nms": Key("false: the graph ends with the boxes and scores of every cell", True, bool),
        "benchmark": Key("true: the same as `post_process: false`", False, bool),
        "fuse_conv_bn": Key("fold BatchNorm into the convolutions", False, bool),
        "sigma": Key("true: boxes have eight numbers more, how uncertain their sides are", False, bool)},
}

# The keys inside of other keys.
INPUTS = {"image_shape": Key("[3, height, width]", None, Optional[Sequence[int]]), "num_max_boxes": Key(NO_EFFECT)}
REGULARIZER = {"type": Key("L1 or L2", "L2", Literal["L1", "L2"]),
               "factor": Key("of the penalty", 1e-4, NotNegative)}
_DECAY = Key("of the weights, instead of `regularizer`", None, Optional[NotNegative])
_ANY_OPTIMIZER = {"weight_decay": _DECAY,
                  "multi_precision": Key("keep float32 copies of float16 parameters", False, bool)}
_ADAM = {"beta1": Key("share of the old mean of the gradient that is kept", 0.9, ShareBelowOne),
         "beta2": Key("the same of its square", 0.999, ShareBelowOne),
         "epsilon": Key("added to the divisor", 1e-8, Positive),
         "lazy_mode": Key("only rows with a gradient are changed", False, bool),
         "amsgrad": Key("divide by the largest mean so far; Paddle 3", False, bool)}
_ALL_AT_ONCE = {"use_multi_tensor": Key("change all parameters in one go", False, bool)}
# Keys of OptimizerBuilder.optimizer beside `type`: arguments of that class of paddle.optimizer.
OPTIMIZERS: dict[str, dict[str, Key]] = {
    "Momentum": {"momentum": Key("share of the old step that is kept", 0.9, ShareBelowOne),
                 "use_nesterov": Key("Nesterov's way", False, bool), **_ANY_OPTIMIZER, **_ALL_AT_ONCE,
                 "rescale_grad": Key("factor of the gradients", 1.0, Positive)},
    "SGD": _ANY_OPTIMIZER,
    "Adam": {**_ADAM, **_ANY_OPTIMIZER, **_ALL_AT_ONCE},
    "AdamW": {**_ADAM, **_ANY_OPTIMIZER, "weight_decay": Key("of the weights", 0.01, NotNegative)},
}

_REDUCTION = {"reduction": Key(NO_EFFECT)}
_DEFAULT_LABEL = {"use_default_label": Key(NO_EFFECT)}
# Keys of a section that its class does not take, since `build` passes them on elsewhere.
OTHER_KEYS: dict[str, dict[str, Key]] = {
    "GFLHead": {
        "loss_class": Key("QualityFocalLoss", kind=Part), "loss_dfl": Key("DistributionFocalLoss", kind=Part),
        "loss_bbox": Key("GIoULoss", kind=Part),
        "loss_qfl": Key("the name of loss_class in PaddleDetection's first GFLv2 files", kind=Part),
        "nms": Key("MultiClassNMS", kind=Union[Part, Automatic]),
        "cell_offset": Key("the cell at column i sits at (i + cell_offset) * stride; also a key of Gt2GFLTarget (0)",
                           kind=CellOffset),
        "clip_boxes": Key("cut boxes at the borders of the image before NMS, as MMDetection does (false)", kind=bool),
        "upstream_scores": Key("as the top-level key", kind=bool), "nms_pre": Key(NO_EFFECT)},
    "MultiClassNMS": dict.fromkeys(("return_index", "return_rois_num", "trt"), Key(NO_EFFECT)),
    "QualityFocalLoss": _REDUCTION, "FocalLoss": _REDUCTION, "DistributionFocalLoss": _REDUCTION,
    "GIoULoss": _REDUCTION, "KnowledgeDistillationKLDivLoss": _REDUCTION,
    "COCODataSet": _DEFAULT_LABEL, "VOCDataSet": _DEFAULT_LABEL,
    "ImageFolder": {"data_fields": Key(NO_EFFECT), **_DEFAULT_LABEL},
}
OTHER_KEYS["LDGFLHead"] = {**OTHER_KEYS["GFLHead"], **dict.fromkeys(
    ("loss_ld", "loss_ld_vlr", "loss_kd"), Key("KnowledgeDistillationKLDivLoss", kind=Part))}


def setting(cfg: Mapping[str, Any], name: str) -> Any:
    """The value of a top-level key, or its default where the config lacks it. Raises a ConfigError for one of another
    kind."""
    known = TOP_LEVEL[name]
    return read(name, cfg.get(name, known.default), known.kind)


def skips_corrupt_images(cfg: Mapping[str, Any]) -> bool:
    """Whether images that cannot be read are left out. Raises ConfigError."""
    return bool(setting(cfg, "corrupt_images") == "skip")


def with_weights(cfg: dict[str, Any], weights: str | PathLike[str] | None) -> dict[str, Any]:
    """The config with these weights; None: as it is."""
    return cfg if weights is None else {**cfg, "weights": weights}


def section(cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All keys of a section, with their defaults where the config lacks them. Raises ConfigError for one that it does
    not know, and for a value of another kind."""
    given = known_only(name, cfg.get(name, {}), SECTIONS[name])
    return {key: read(f"{name}.{key}", given.get(key, known.default), known.kind)
            for key, known in SECTIONS[name].items()}


def optimizer_section(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The section OptimizerBuilder, as `section`, with what is in `optimizer` and `regularizer` read too. Raises
    ConfigError, also where two of its keys do the same."""
    name = "OptimizerBuilder"
    keys = section(cfg, name)
    arguments = dict(keys["optimizer"])
    kind = arguments.pop("type", "Momentum")
    if not isinstance(kind, str) or kind not in OPTIMIZERS:
        raise ConfigError(f"{name}.optimizer.type: {as_written(kind)}; {nearest(kind, OPTIMIZERS)}")
    arguments = read_keys(f"{name}.optimizer", arguments, OPTIMIZERS[kind])
    keys["optimizer"] = {"type": kind, **arguments}
    decays = kind == "AdamW" or arguments.get("weight_decay") is not None
    if decays and "regularizer" not in cfg.get(name, {}):
        keys["regularizer"] = None
    if keys["regularizer"] is not None:
        keys["regularizer"] = read_keys(f"{name}.regularizer", keys["regularizer"], REGULARIZER)
        if decays:
            raise ConfigError(f"{name}.regularizer: {kind} decays weights itself; set regularizer to null and "
                              "optimizer.weight_decay to the factor")
    if keys["clip_grad_by_norm"] is not None and keys["clip_grad_by_value"] is not None:
        raise ConfigError(f"{name}: clip_grad_by_norm and clip_grad_by_value; only one of them, set the other to null")
    return keys


def read_keys(where: str, args: Any, known: Mapping[str, Key]) -> dict[str, Any]:
    """Those keys that are given, read. Raises ConfigError for an unknown one, and for a value of another kind."""
    given = known_only(where, args, known)
    return {key: read(f"{where}.{key}", value, known[key].kind) for key, value in given.items()}


def keys_of(name: str, cls: Callable[..., Any]) -> dict[str, Any]:
    """{key: its kind} of a class's section: the arguments that it takes, and what `build` passes on elsewhere."""
    own = {key: kind for key, kind in kinds_of(cls).items() if key != "section"}
    return {**own, **{key: known.kind for key, known in OTHER_KEYS.get(name, {}).items()}}


def known_only(where: str, args: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """`args`, a mapping, without the keys that `known` lacks and `null` has taken away. Raises a ConfigError for
    others that it lacks, with the nearest key."""
    if not isinstance(args, dict):
        raise ConfigError(f"{where}: {as_written(args)}; it must be a mapping of keys")
    for key, value in args.items():
        if key not in known and value is not None:
            raise ConfigError(f"{where}: unknown key '{key}', {nearest(key, known)}")
    return {key: value for key, value in args.items() if key in known}


def unknown_name(where: str, name: object, known: Iterable[str]) -> str:
    """A message about a class that does not exist, with what to take instead."""
    absent = ABSENT.get(name) if isinstance(name, str) else None
    advice = f"ppgfl leaves it out on purpose: {absent}" if absent else nearest(name, known)
    return f"{where}: unknown name {as_written(name)}; {advice}"
