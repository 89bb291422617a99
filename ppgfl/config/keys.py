"""Keys of a config that belong to no class: what they mean, and what holds where a config lacks them. The keys of a
class are the arguments it takes, with their defaults.

`check.check_config` refuses what is not here; docs/configs.md is written from here.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest

NO_EFFECT = "no effect; PaddleDetection's files have it"


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        meaning: for docs/configs.md.
        default: its value where a config lacks it; this is its only home.
    """

    meaning: str
    default: Any = None


TOP_LEVEL = {
    "architecture": Key("GFL", "GFL"),
    "pretrain_weights": Key("what training starts from: a file, an address, the name of a released model or of a "
                            "backbone"),
    "weights": Key("what eval, infer and export load: a file (with or without `.pdparams`), an address, the name of a "
                   "released model", ""),
    "engine": Key("of eval and infer: dygraph; static, a graph kept in the cache, several times as fast on a CPU; "
                  "auto: static on a CPU for more than a few images", "auto"),
    "num_classes": Key("C; null: as many as the annotation file of TrainDataset lists", 80),
    "metric": Key("COCO", "COCO"),
    "norm_type": Key("of the backbone: bn or sync_bn (statistics shared between processes)"),
    "upstream_scores": Key("true: PaddleDetection's GFLv2 scores, which take a second sigmoid", False),
    "epoch": Key("epochs of training", 12),
    "snapshot_epoch": Key("a checkpoint, and with `--eval` an evaluation, every so many epochs", 1),
    "save_dir": Key("runs go to `save_dir`/CONFIG_NAME", "output"),
    "log_iter": Key("a log line every so many steps", 20),
    "worker_num": Key("processes that load images; 0: none", 0),
    "use_gpu": Key("false: the CPU, even where there is a GPU; true: the CPU only where there is none, and a line says "
                   "so", False),
    "use_ema": Key("keep a moving average of the weights: it is evaluated and saved", False),
    "ema_decay": Key("share of the old average that is kept in a step", 0.9998),
    "ema_decay_type": Key("how that share grows at first: threshold, exponential, or normal for not at all",
                          "threshold"),
    "corrupt_images": Key("what becomes of images that cannot be read: error, which stops; skip: they are left out "
                          "with a line (in training another takes the place, in evaluation their objects count as "
                          "missed)",
                          "error"),
    "hang_timeout": Key("in a run of several processes: seconds after which one that neither gets a batch nor ends a "
                        "step reports what it hangs in and ends the run, if no step before took a fifth of that; 0: "
                        "never; null: 45, on a CPU 25, since gloo, over which the processes talk there, gives up after "
                        "30"),
    "onednn_training": Key("true: train on a CPU with oneDNN's convolutions: half the time of a step when all batches "
                           "have the same size, and at least twice the memory; Paddle 3.3", False),
    "teacher": Key("put there by `--slim_config`: the whole slim config, so that `-o teacher.pretrain_weights=PATH` "
                   "sets the teacher's weights and `-o teacher.num_classes=N` its classes"),
    "slim": Key("of a slim config: Distill"),
    "slim_method": Key("of a slim config: LD or CWD"),
    "distill_loss": Key("of a slim config with CWD: CWDFeatureLoss", "CWDFeatureLoss"),
    "distill_loss_name": Key("of a slim config with CWD: one for each level; the names themselves have no effect"),
    "find_unused_parameters": Key("of Paddle's DataParallel", False),
    "amp": Key("true: as `--amp` with `amp_level`", False),
    "amp_level": Key("O1 or O2, for `amp`", "O1"),
    "use_vdl": Key("true: as `--use_vdl`", False),
    "vdl_log_dir": Key("as `--vdl_log_dir`"),
    "ema_filter_no_grad": Key(NO_EFFECT),
    "use_xpu": Key(NO_EFFECT),
    "use_npu": Key(NO_EFFECT),
    "use_mlu": Key(NO_EFFECT),
    "print_flops": Key(NO_EFFECT),
    "print_params": Key(NO_EFFECT),
    "output_eval": Key(NO_EFFECT + "; the flag `--output_eval` has one"),
}

_READER = {
    "sample_transforms": Key("list of transforms of one image, in order", ()),
    "batch_transforms": Key("list of transforms of a whole batch, in order", ()),
    "batch_size": Key("images of a batch, of each process", 1),
    "shuffle": Key("a new order in every epoch", False),
    "drop_last": Key("leave the last batch out when it is not full", False),
    "inputs_def": Key("`image_shape: [3, height, width]`: of TestReader, the size of an exported graph's input; -1: "
                      "any"),
    "drop_empty": Key(NO_EFFECT),
    "use_shared_memory": Key(NO_EFFECT),
    "collate_batch": Key(NO_EFFECT),
    "num_classes": Key(NO_EFFECT),
}

SECTIONS = {
    "GFL": {
        "backbone": Key("name of its section", "ResNet"),
        "neck": Key("name of its section", "FPN"),
        "head": Key("name of its section", "GFLHead")},
    "TrainReader": _READER, "EvalReader": _READER, "TestReader": _READER,
    "LearningRate": {
        "base_lr": Key("for a step of `total_batch_size` images; scaled to the real one unless given with `-o`", 0.01),
        "schedulers": Key("list of two: the decay, then the warm-up", ("PiecewiseDecay", "LinearWarmup")),
        "total_batch_size": Key("images of a step over all processes that `base_lr` is meant for: PaddleDetection's 8 "
                                "GPUs with 2 each", 16)},
    "OptimizerBuilder": {
        "optimizer": Key("`type`: Momentum, SGD, Adam or AdamW, and arguments of that class of paddle.optimizer",
                         {"type": "Momentum", "momentum": 0.9}),
        "regularizer": Key("`type`: L1 or L2, and `factor`; null for none", {"type": "L2", "factor": 1e-4}),
        "clip_grad_by_norm": Key("largest norm over all gradients"),
        "clip_grad_by_value": Key("largest value of a gradient")},
    "export": {
        "post_process": Key("false: the graph ends with the head's maps", True),
        "nms": Key("false: the graph ends with the boxes and scores of every cell", True),
        "benchmark": Key("true: the same as `post_process: false`", False),
        "fuse_conv_bn": Key("fold BatchNorm into the convolutions", False)},
}

# Keys of a section that its class does not take, since `build` passes them on elsewhere.
OTHER_KEYS = {
    "GFLHead": {
        "loss_class": "QualityFocalLoss", "loss_dfl": "DistributionFocalLoss", "loss_bbox": "GIoULoss",
        "loss_qfl": "the name of loss_class in PaddleDetection's first GFLv2 files", "nms": "MultiClassNMS",
        "cell_offset": "the cell at column i sits at (i + cell_offset) * stride; also a key of Gt2GFLTarget (0)",
        "upstream_scores": "as the top-level key", "nms_pre": NO_EFFECT},
    "MultiClassNMS": dict.fromkeys(("return_index", "return_rois_num", "trt"), NO_EFFECT),
    "QualityFocalLoss": {"reduction": NO_EFFECT},
    "DistributionFocalLoss": {"reduction": NO_EFFECT},
    "GIoULoss": {"reduction": NO_EFFECT},
    "KnowledgeDistillationKLDivLoss": {"reduction": NO_EFFECT},
    "COCODataSet": {"use_default_label": NO_EFFECT},
    "ImageFolder": {"data_fields": NO_EFFECT, "use_default_label": NO_EFFECT},
}
OTHER_KEYS["LDGFLHead"] = {**OTHER_KEYS["GFLHead"],
                           **dict.fromkeys(("loss_ld", "loss_ld_vlr", "loss_kd"), "KnowledgeDistillationKLDivLoss")}


def setting(cfg: Mapping[str, Any], name: str) -> Any:
    """The value of a top-level key, or its default where the config lacks it."""
    return cfg.get(name, TOP_LEVEL[name].default)


def section(cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All keys of a section, with their defaults where the config lacks them. Raises ConfigError for one it does not
    know."""
    defaults = {key: known.default for key, known in SECTIONS[name].items()}
    return {**defaults, **known_only(name, cfg.get(name) or {}, SECTIONS[name])}


def known_only(where: str, args: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """`args` itself, a mapping whose keys are all in `known`. Raises ConfigError, with the nearest key."""
    if not isinstance(args, dict):
        raise ConfigError(f"{where}: {args!r}; it must be a mapping of keys")
    for key in args:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}', {nearest(key, known)}")
    return args
