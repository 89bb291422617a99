"""What a TrainReader has, case by case, where `compare.py augmentations` asks how fast batches are loaded."""
NORMALIZE = {"NormalizeImage": {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
TARGETS = {"Gt2GFLTarget": {"downsample_ratios": [8, 16, 32, 64, 128], "grid_cell_scale": 8}}


def augmented(name, epoch_key=None, **arguments):
    """What a TrainReader has instead, with an augmentation behind Decode; `epoch_key`: what says how long it mixes."""
    reader = {"sample_transforms": [
        {"Decode": {}}, {name: arguments}, {"RandomFlip": {"prob": 0.5}},
        {"Resize": {"target_size": [800, 1333], "keep_ratio": True, "interp": 1}}, NORMALIZE, {"Permute": {}}]}
    return {**reader, **({epoch_key: 1000} if epoch_key else {})}


AUGMENTED = {
    "RandomDistort": augmented("RandomDistort"),
    "RandomExpand": augmented("RandomExpand", fill_value=[123.675, 116.28, 103.53]),
    "RandomCrop": augmented("RandomCrop"),
    "AutoAugment": augmented("AutoAugment", autoaug_type="v1"),
    "GridMask": augmented("GridMask"),
    "Mixup": augmented("Mixup", "mixup_epoch", alpha=1.5, beta=1.5),
    "Cutmix": augmented("Cutmix", "cutmix_epoch", alpha=1.5, beta=1.5),
    "Mosaic": augmented("Mosaic", "mosaic_epoch", input_dim=[640, 640]),
    "PP-YOLO's": {
        "sample_transforms": [
            {"Decode": {}}, {"RandomDistort": {}}, {"RandomExpand": {"fill_value": [123.675, 116.28, 103.53]}},
            {"RandomCrop": {}}, {"RandomFlip": {}}],
        "batch_transforms": [
            {"BatchRandomResize": {"target_size": [480, 560, 640, 720, 800], "random_size": True, "random_interp": True,
                                   "keep_ratio": False}}, NORMALIZE, {"Permute": {}}, TARGETS]}}
