"""Keys of a config that belong to no class, with their meaning; the keys of a class are the arguments it takes.

`build.check_config` refuses what is not here; docs/configs.md is written from here.
"""

NO_EFFECT = "no effect; PaddleDetection's files have it"

TOP_LEVEL = {
    "architecture": "GFL",
    "pretrain_weights": "what training starts from: a file, an address, the name of a released model or of a backbone",
    "weights": "what eval, infer and export load: a file (with or without `.pdparams`), an address, the name of a "
               "released model",
    "engine": "of eval and infer: dygraph; static, a graph kept in the cache, several times as fast on a CPU; auto: "
              "static on a CPU for more than a few images (auto)",
    "num_classes": "C; null: as many as the annotation file of TrainDataset lists",
    "metric": "COCO",
    "norm_type": "of the backbone: bn or sync_bn (statistics shared between processes)",
    "upstream_scores": "true: PaddleDetection's GFLv2 scores, which take a second sigmoid",
    "epoch": "epochs of training (12)",
    "snapshot_epoch": "a checkpoint, and with `--eval` an evaluation, every so many epochs (1)",
    "save_dir": "runs go to `save_dir`/CONFIG_NAME (output)",
    "log_iter": "a log line every so many steps (20)",
    "worker_num": "processes that load images (0: none)",
    "use_gpu": "false: the CPU, even where there is a GPU; true: the CPU only where there is none, and a line says so",
    "use_ema": "keep a moving average of the weights: it is evaluated and saved (false)",
    "ema_decay": "share of the old average that is kept in a step (0.9998)",
    "ema_decay_type": "how that share grows at first: threshold, exponential, or normal for not at all (threshold)",
    "corrupt_images": "what becomes of images that cannot be read: error, which stops; skip: they are left out with a "
                      "line (in training another takes the place, in evaluation their objects count as missed) (error)",
    "hang_timeout": "in a run of several processes: seconds after which one that neither gets a batch nor ends a step "
                    "says over what it hangs and ends the run, if no step before took a fifth of that; 0: never (45; "
                    "on a CPU 25, since gloo, over which the processes talk there, gives up after 30)",
    "onednn_training": "true: train on a CPU with oneDNN's convolutions: half the time of a step when all batches have "
                       "the same size, and at least twice the memory; Paddle 3.3 (false)",
    "teacher": "put there by `--slim_config`: the whole slim config, so that `-o teacher.pretrain_weights=PATH` sets "
               "the teacher's weights and `-o teacher.num_classes=N` its classes",
    "slim": "of a slim config: Distill",
    "slim_method": "of a slim config: LD or CWD",
    "distill_loss": "of a slim config with CWD: CWDFeatureLoss",
    "distill_loss_name": "of a slim config with CWD: one for each level; the names themselves have no effect",
    "find_unused_parameters": "of Paddle's DataParallel (false)",
    "amp": "true: as `--amp` with `amp_level` (false)",
    "amp_level": "O1 or O2, for `amp` (O1)",
    "use_vdl": "true: as `--use_vdl` (false)",
    "vdl_log_dir": "as `--vdl_log_dir`",
    "ema_filter_no_grad": NO_EFFECT,
    "use_xpu": NO_EFFECT,
    "use_npu": NO_EFFECT,
    "use_mlu": NO_EFFECT,
    "print_flops": NO_EFFECT,
    "print_params": NO_EFFECT,
    "output_eval": NO_EFFECT + "; the flag `--output_eval` has one",
}

_READER = {
    "sample_transforms": "list of transforms of one image, in order",
    "batch_transforms": "list of transforms of a whole batch, in order",
    "batch_size": "images of a batch, of each process (1)",
    "shuffle": "a new order in every epoch (false)",
    "drop_last": "leave the last batch out when it is not full (false)",
    "inputs_def": "`image_shape: [3, height, width]`: of TestReader, the size of an exported graph's input; -1: any",
    "drop_empty": NO_EFFECT,
    "use_shared_memory": NO_EFFECT + "; shared memory is used where there is enough",
    "collate_batch": NO_EFFECT,
    "num_classes": NO_EFFECT,
}

SECTIONS = {
    "GFL": {"backbone": "name of its section (ResNet)", "neck": "name of its section (FPN)",
            "head": "name of its section (GFLHead)"},
    "TrainReader": _READER, "EvalReader": _READER, "TestReader": _READER,
    "LearningRate": {
        "base_lr": "for a step of `total_batch_size` images; scaled to the real one unless given with `-o` (0.01)",
        "schedulers": "list of two: the decay, then the warm-up",
        "total_batch_size": "images of a step over all processes that `base_lr` is meant for (16)"},
    "OptimizerBuilder": {
        "optimizer": "`type`: Momentum, SGD, Adam or AdamW, and arguments of that class of paddle.optimizer",
        "regularizer": "`type`: L1 or L2, and `factor`; null for none",
        "clip_grad_by_norm": "largest norm over all gradients", "clip_grad_by_value": "largest value of a gradient"},
    "export": {
        "post_process": "false: the graph ends with the head's maps (true)",
        "nms": "false: the graph ends with the boxes and scores of every cell (true)",
        "benchmark": "true: the same as `post_process: false` (false)",
        "fuse_conv_bn": "fold BatchNorm into the convolutions (false)"},
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
