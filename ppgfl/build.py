"""From a config to objects: visible tables, and one function per thing, top-down.

To add a backbone or a neck, write the class and add one line to its table; the tables of data are in `readers`.
How an object gets its arguments is said in `make`.
"""
from __future__ import annotations

import os
from typing import Any

from paddle.optimizer import Optimizer

from .config.check import check_config
from .config.keys import optimizer_section, section, setting, with_weights
from .config.values import kinds_of
from .data.targets import Gt2GFLTarget
from .errors import CheckpointError, ConfigError
from .fit import check_parts
from .make import Config, make, shared_keys, spec
from .model.decode import Decoder, MultiClassNMS
from .model.distill import (
    ChannelWiseDistillation,
    CWDFeatureLoss,
    KnowledgeDistillationKLDivLoss,
    LocalizationDistillation,
    Teacher,
    check_fit,
)
from .model.fpn import FPN
from .model.gfl import GFL
from .model.head import DGQP, FCOSFeat, GFLHead
from .model.losses import DistributionFocalLoss, FocalLoss, GFLCriterion, GIoULoss, QualityFocalLoss
from .model.res2net import Res2Net
from .model.resnet import ResNet
from .optim import (
    EMA,
    CosineDecay,
    ExpWarmup,
    LinearWarmup,
    PiecewiseDecay,
    Schedule,
    make_optimizer,
    make_schedule,
)
from .readers import (
    BATCH_TRANSFORMS,
    DATASETS,
    SAMPLE_TRANSFORMS,
    build_dataset,  # noqa: F401  this is its public path
    build_loader,  # noqa: F401  the same
    build_reader,
    own_classes,
)
from .system.log import logger
from .weights.checkpoint import load_weights

BACKBONES: dict[str, Any] = {"ResNet": ResNet, "Res2Net": Res2Net}
NECKS = {"FPN": FPN}
HEADS = {"GFLHead": GFLHead, "LDGFLHead": GFLHead}  # LDGFLHead: the same layers, and the losses of a teacher
TOWERS = {"FCOSFeat": FCOSFeat}
QUALITY_PREDICTORS = {"DGQP": DGQP}
CLASS_LOSSES: dict[str, Any] = {"QualityFocalLoss": QualityFocalLoss, "FocalLoss": FocalLoss}
DISTRIBUTION_LOSSES = {"DistributionFocalLoss": DistributionFocalLoss}
BOX_LOSSES = {"GIoULoss": GIoULoss}
DISTILLATION_LOSSES = {"KnowledgeDistillationKLDivLoss": KnowledgeDistillationKLDivLoss}
FEATURE_LOSSES = {"CWDFeatureLoss": CWDFeatureLoss}
LOSSES: dict[str, Any] = {**CLASS_LOSSES, **DISTRIBUTION_LOSSES, **BOX_LOSSES, **DISTILLATION_LOSSES, **FEATURE_LOSSES}
NMS = {"MultiClassNMS": MultiClassNMS}
DECAYS: dict[str, Any] = {"PiecewiseDecay": PiecewiseDecay, "CosineDecay": CosineDecay}
WARMUPS: dict[str, Any] = {"LinearWarmup": LinearWarmup, "ExpWarmup": ExpWarmup}
CLASSES: dict[str, Any] = {**BACKBONES, **NECKS, **HEADS, **TOWERS, **QUALITY_PREDICTORS, **LOSSES, **NMS,
                           **SAMPLE_TRANSFORMS, **BATCH_TRANSFORMS, **DATASETS, **DECAYS, **WARMUPS}


def check(cfg: Config) -> None:
    """Raise a ConfigError that lists every unknown key and every wrong value of a config. Each command calls it once,
    before all else."""
    check_config(cfg, {**CLASSES, **own_classes(cfg)})


# --- the model


def build_model(cfg: Config) -> GFL:
    """The detector that a config describes, with freshly initialised weights.

    Args:
        cfg: the dict of `load_config`.

    Returns: a `model.gfl.GFL`, a paddle Layer with .backbone .neck .head, in training mode.
    Raises: ConfigError.
    """
    check(cfg)
    return make_model(cfg)


def make_model(cfg: Config) -> GFL:
    """`build_model` of a config that is checked already."""
    setting(cfg, "architecture")  # refuses all but GFL
    parts = section(cfg, "GFL")
    backbone = make(cfg, BACKBONES, parts["backbone"], "GFL.backbone", shared=["norm_type"])
    neck = make(cfg, NECKS, parts["neck"], "GFL.neck", in_channels=backbone.channels,
                 spatial_scales=[1 / stride for stride in backbone.strides])
    head_name, head_args = spec(cfg, parts["head"], HEADS, "GFL.head")
    head = _build_head(cfg, head_name, head_args)
    check_parts(backbone, neck, head, head_name)
    return GFL(backbone, neck, head, decoder=_build_decoder(cfg, head_name, head_args, head),
               criterion=_build_criterion(cfg, head_name, head_args, head))


def load_model(cfg: Config, weights: str | os.PathLike[str] | None = None) -> GFL:
    """The detector of a config in evaluation mode, with a .pdparams file (else the config's `weights`) loaded.

    Raises: ConfigError, CheckpointError.
    """
    cfg = with_weights(cfg, weights)
    model = make_model(cfg)
    model.class_names = load_weights(model, setting(cfg, "weights") or "").class_names
    model.eval()
    return model


def _build_head(cfg: Config, name: str, args: Config) -> GFLHead:
    layers = {key: value for key, value in args.items() if key in kinds_of(GFLHead)}
    layers["conv_feat"] = make(cfg, TOWERS, args.get("conv_feat", "FCOSFeat"), f"{name}.conv_feat")
    if args.get("dgqp_module") is not None:
        layers["dgqp_module"] = make(cfg, QUALITY_PREDICTORS, args["dgqp_module"], f"{name}.dgqp_module")
    return GFLHead(**{**shared_keys(cfg, ["num_classes"]), **layers})


def _build_decoder(cfg: Config, name: str, args: Config, head: GFLHead) -> Decoder:
    nms = args.get("nms")
    return Decoder(
        strides=tuple(head.fpn_stride), num_classes=head.num_classes, joint_scores=head.dgqp_module is not None,
        upstream_scores=upstream_scores(cfg),
        cell_offset=args.get("cell_offset", 0), clip_boxes=args.get("clip_boxes", False),
        separate_quality=head.quality_branch is not None,
        nms=make(cfg, NMS, nms if nms is not None else "MultiClassNMS", f"{name}.nms"))


def upstream_scores(cfg: Config) -> bool:
    """Whether the scores of the config's model are those of PaddleDetection, see `Decoder.scores`."""
    args = spec(cfg, section(cfg, "GFL")["head"], HEADS, "GFL.head")[1]
    return bool(args.get("upstream_scores", setting(cfg, "upstream_scores")))


def _build_criterion(cfg: Config, name: str, args: Config, head: GFLHead) -> GFLCriterion:
    # PaddleDetection: its first GFLv2 configs call the section loss_qfl
    quality = args.get("loss_class", args.get("loss_qfl", "QualityFocalLoss"))
    loss_class = make(cfg, CLASS_LOSSES, quality, f"{name}.loss_class")
    if loss_class.use_sigmoid == (head.dgqp_module is not None):
        raise ConfigError(f"{name}.loss_class.use_sigmoid: {loss_class.use_sigmoid}; it must be true without "
                          "dgqp_module (the maps hold logits), and false with it (they hold probabilities)")
    return GFLCriterion(
        strides=tuple(head.fpn_stride), num_classes=head.num_classes, reg_max=head.distribution_project.reg_max,
        quality_branch=head.quality_branch, loss_class=loss_class, cell_offset=args.get("cell_offset", 0),
        loss_dfl=make(cfg, DISTRIBUTION_LOSSES, args.get("loss_dfl", "DistributionFocalLoss"), f"{name}.loss_dfl"),
        loss_bbox=make(cfg, BOX_LOSSES, args.get("loss_bbox", "GIoULoss"), f"{name}.loss_bbox"),
        distillation=_build_distillation(cfg, name, args, head) if cfg.get("teacher") else None)


# --- a teacher


def _build_distillation(cfg: Config, name: str, args: Config,
                        head: GFLHead) -> LocalizationDistillation | ChannelWiseDistillation:
    teacher = cfg["teacher"]
    method = teacher.get("slim_method")
    if method == "LD":
        return LocalizationDistillation(**{
            key: make(cfg, DISTILLATION_LOSSES, args.get(key, "KnowledgeDistillationKLDivLoss"), f"{name}.{key}")
            for key in ("loss_ld", "loss_ld_vlr", "loss_kd")})
    if method == "CWD":
        names = teacher.get("distill_loss_name")
        if names is not None and len(names) != len(head.fpn_stride):
            raise ConfigError(f"teacher.distill_loss_name: {names!r}; it must name {len(head.fpn_stride)} losses, one "
                              "for each level")
        loss = make(teacher, FEATURE_LOSSES, setting(teacher, "distill_loss"),
                     "teacher.distill_loss")
        return ChannelWiseDistillation(loss, tuple(head.fpn_stride))
    raise ConfigError(f"teacher.slim_method: {method!r}; allowed: LD, CWD")


def build_teacher(cfg: Config, student: GFL) -> Teacher | None:
    """The `Teacher` of a config with a slim config in it (see `load_config`), with its weights; None without one.

    Raises: ConfigError, also when it does not fit the student; CheckpointError.
    """
    teacher_cfg = cfg.get("teacher")
    if not teacher_cfg:
        return None
    teacher_cfg = {**teacher_cfg, "num_classes": teacher_cfg.get("num_classes") or cfg.get("num_classes")}
    teacher = build_model(teacher_cfg)
    check_fit(teacher, student)
    if teacher_cfg["slim_method"] == "LD":
        head = section(cfg, "GFL")["head"]
        if head != "LDGFLHead":
            raise ConfigError(f"GFL.head: {head}; slim_method LD trains an LDGFLHead, as in gfl_slim_ld_r18vd_1x_coco")
        batch_transforms = build_reader(cfg, "TrainReader").batch_transforms
        if not any(isinstance(each, Gt2GFLTarget) and each.compute_vlr_region for each in batch_transforms):
            raise ConfigError("TrainReader.batch_transforms: LD needs Gt2GFLTarget with compute_vlr_region: true")
    if not setting(teacher_cfg, "pretrain_weights"):
        raise ConfigError("teacher.pretrain_weights: missing; they are the trained weights of the teacher: "
                          "set -o teacher.pretrain_weights=PATH")
    try:
        taught = load_weights(teacher, teacher_cfg["pretrain_weights"]).class_names
    except CheckpointError as error:
        raise CheckpointError(f"the teacher (teacher.pretrain_weights): {error}") from error
    if None not in (taught, student.class_names) and taught != student.class_names:
        raise ConfigError(f"teacher.pretrain_weights: was trained with the classes {taught}, the student learns "
                          f"{student.class_names}; both need the same in the same order")
    return Teacher(teacher)


# --- what trains the model


def build_optimizer(cfg: Config, model: GFL, *, steps_per_epoch: int,
                    total_batch_size: int | None = None) -> Optimizer:
    """The optimizer of the sections LearningRate and OptimizerBuilder, with its schedule as `._learning_rate`; see
    `build_schedule`."""
    schedule = build_schedule(cfg, steps_per_epoch=steps_per_epoch, total_batch_size=total_batch_size)
    return make_optimizer(model, schedule, **optimizer_section(cfg))


def build_schedule(cfg: Config, *, steps_per_epoch: int, total_batch_size: int | None = None) -> Schedule:
    """The schedule of the section LearningRate.

    Args:
        total_batch_size: images per step over all processes. The config's rate belongs to a step of
            LearningRate.total_batch_size images and is scaled linearly. None: the rate as it stands.
    """
    rates = section(cfg, "LearningRate")
    base_lr = rates["base_lr"]
    if total_batch_size is not None:
        reference = rates["total_batch_size"]
        scaled = base_lr * total_batch_size / reference
        if scaled != base_lr:
            logger.info("lr %g for %d images -> %g for %d (set LearningRate.base_lr to choose it yourself)",
                        base_lr, reference, scaled, total_batch_size)
        base_lr = scaled
    # PaddleDetection: the first scheduler is the decay, the second the warm-up, by position
    schedulers = rates["schedulers"]
    decay = make(cfg, DECAYS, schedulers[0], "LearningRate.schedulers[0]")
    warmup = make(cfg, WARMUPS, schedulers[1], "LearningRate.schedulers[1]") if len(schedulers) > 1 else None
    return make_schedule(base_lr, decay, warmup, steps_per_epoch)


def build_ema(cfg: Config, model: GFL) -> EMA | None:
    """The moving average that `use_ema`, `ema_decay`, `ema_decay_type` ask for, or None."""
    if not setting(cfg, "use_ema"):
        return None
    return EMA(model, decay=setting(cfg, "ema_decay"), decay_type=setting(cfg, "ema_decay_type"))
