"""The released models: names, configs, addresses, and the AP that those who trained them list."""
from __future__ import annotations

from dataclasses import dataclass

ADDRESS = "https://paddledet.bj.bcebos.com"
OPENMMLAB = "https://download.openmmlab.com/mmdetection/v2.0"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
BACKBONES = ("ResNet18_vd_pretrained", "ResNet34_vd_pretrained", "ResNet50_cos_pretrained", "ResNet101_vd_pretrained")


@dataclass(frozen=True)
class Model:
    """A row of the model zoo.

    Attributes:
        name: of its weights.
        title: as the table calls it.
        schedule: in rounds of twelve epochs.
        ap: box AP on COCO val2017, in percent, as released.
        config: the name of a shipped one.
        weights: address of the file.
        source: who trained it: "PaddleDetection", "MMDetection", "GFocal" or "GFocalV2". All but PaddleDetection's are
            files of PyTorch, which `ppgfl convert` reads.
        log: address of the log of its training, if there is one.
        test_dev: box AP on COCO test-dev, as released.
        sha256: its first digits, as far as they are known.
    """

    name: str
    title: str
    schedule: str
    ap: float
    config: str
    weights: str
    source: str = "PaddleDetection"
    log: str | None = None
    test_dev: float | None = None
    sha256: str = ""

    @property
    def is_of_pytorch(self) -> bool:
        """Whether the file has to be converted."""
        return self.source != "PaddleDetection"

    @property
    def file(self) -> str:
        """The name of the file, which Google Drive's addresses do not have."""
        return f"{self.name}.pth" if self.weights.startswith(DRIVE) else self.weights.rsplit("/", 1)[1]


def _paddle(name: str, title: str, schedule: str, ap: float, config: str = "",
            folder: str = ADDRESS) -> Model:
    return Model(name, title, schedule, ap, config or name, f"{folder}/models/{name}.pdparams",
                 log=f"{folder}/logs/train_{name}.log")


def _mmdet(config: str, title: str, schedule: str, ap: float, file: str) -> Model:
    """OpenMMLab's file names end with the first eight digits of the SHA-256."""
    return Model(f"mmdet_{config}", title, schedule, ap, config, f"{OPENMMLAB}/{file}.pth", "MMDetection",
                 sha256=file[-8:])


def _authors(config: str, title: str, schedule: str, ap: float, test_dev: float, drive: str) -> Model:
    version = "GFocalV2" if config.startswith("gflv2") else "GFocal"
    return Model(f"{version.lower()}_{config.split('_', 1)[1]}", title, schedule, ap, config, DRIVE + drive, version,
                 test_dev=test_dev)


MODELS = {model.name: model for model in (
    _paddle("gfl_r50_fpn_1x_coco", "GFL ResNet-50", "1x", 41.0),
    _paddle("gfl_r50_fpn_2x_coco_cwd", "GFL ResNet-50, taught by CWD", "2x", 44.0, "gfl_r50_fpn_1x_coco"),
    _paddle("gfl_r101vd_fpn_mstrain_2x_coco", "GFL ResNet-101-vd", "2x", 46.8),
    _paddle("gfl_r34vd_1x_coco", "GFL ResNet-34-vd", "1x", 40.8),
    _paddle("gfl_r18vd_1x_coco", "GFL ResNet-18-vd", "1x", 36.6),
    _paddle("gfl_slim_ld_r18vd_1x_coco", "GFL ResNet-18-vd, taught by LD", "1x", 38.2,
            folder="https://bj.bcebos.com/v1/paddledet"),
    _paddle("gflv2_r50_fpn_1x_coco", "GFLv2 ResNet-50", "1x", 41.2),

    _mmdet("gfl_r50_1x", "GFL ResNet-50", "1x", 40.2,
           "gfl/gfl_r50_fpn_1x_coco/gfl_r50_fpn_1x_coco_20200629_121244-25944287"),
    _mmdet("gfl_r50_ms2x", "GFL ResNet-50", "2x", 42.9,
           "gfl/gfl_r50_fpn_mstrain_2x_coco/gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc"),
    _mmdet("gfl_r101_ms2x", "GFL ResNet-101", "2x", 44.7,
           "gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847"),
    _mmdet("gfl_r101_dcn_c3-c5_ms2x", "GFL ResNet-101, DCN c3-c5", "2x", 47.1,
           "gfl/gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco/"
           "gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco_20200630_102002-134b07df"),
    _mmdet("gfl_x101-32x4d_ms2x", "GFL ResNeXt-101-32x4d", "2x", 45.9,
           "gfl/gfl_x101_32x4d_fpn_mstrain_2x_coco/gfl_x101_32x4d_fpn_mstrain_2x_coco_20200630_102002-50c1ffdb"),
    _mmdet("gfl_x101-32x4d_dcn_c4-c5_ms2x", "GFL ResNeXt-101-32x4d, DCN c4-c5", "2x", 48.1,
           "gfl/gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco/"
           "gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco_20200630_102002-14a2bf25"),
    _mmdet("ld_r18_1x", "GFL ResNet-18, taught by LD", "1x", 36.5,
           "ld/ld_r18_gflv1_r101_fpn_coco_1x/ld_r18_gflv1_r101_fpn_coco_1x_20220702_062206-330e6332"),
    _mmdet("ld_r34_1x", "GFL ResNet-34, taught by LD", "1x", 39.8,
           "ld/ld_r34_gflv1_r101_fpn_coco_1x/ld_r34_gflv1_r101_fpn_coco_1x_20220630_134007-9bc69413"),
    _mmdet("ld_r50_1x", "GFL ResNet-50, taught by LD", "1x", 41.1,
           "ld/ld_r50_gflv1_r101_fpn_coco_1x/ld_r50_gflv1_r101_fpn_coco_1x_20220629_145355-8dc5bad8"),
    _mmdet("ld_r101_ms2x", "GFL ResNet-101, taught by LD", "2x", 45.4,
           "ld/ld_r101_gflv1_r101dcn_fpn_coco_2x/ld_r101_gflv1_r101dcn_fpn_coco_2x_20220629_185920-9e658426"),

    _authors("gfl_r50_1x", "GFL ResNet-50", "1x", 40.2, 40.3, "184HAOoCl6j1-u0ad_lzmFFYQPY9nKxgy"),
    _authors("gfl_r101_ms2x", "GFL ResNet-101", "2x", 44.9, 45.0, "1vCYKVejsxO0Fj3CNtjYg_giq3aKmQ8gB"),
    _authors("gfl_r101_dcn_c3-c5_ms2x", "GFL ResNet-101, DCN c3-c5", "2x", 47.2, 47.3,
             "1lJT5jj6mU29fLXHFRmMBIqKi-jZGSlSR"),
    _authors("gfl_x101-32x4d_ms2x", "GFL ResNeXt-101-32x4d", "2x", 45.7, 46.0, "1VqlZKmwVYmmQzU1z-qOHiAlToG8wwIOL"),
    _authors("gfl_x101-32x4d_dcn_c3-c5_ms2x", "GFL ResNeXt-101-32x4d, DCN", "2x", 48.3, 48.2,
             "13W38rPTxvxwmQuDR2DIsTxvGrPhIOOOz"),
    _authors("gflv2_r50_1x", "GFLv2 ResNet-50", "1x", 41.0, 41.1, "1wSE9-c7tcQwIDPC6Vm_yfOokdPfmYmy7"),
    _authors("gflv2_r50_ms2x", "GFLv2 ResNet-50", "2x", 43.9, 44.4, "17-1cKRdR5J3SfZ9NBCwe6QE554uTS30F"),
    _authors("gflv2_r101_ms2x", "GFLv2 ResNet-101", "2x", 45.8, 46.0, "1qomgA7mzKW0bwybtG4Avqahv67FUxmNx"),
    _authors("gflv2_r101_dcn_c3-c5_ms2x", "GFLv2 ResNet-101, DCN c3-c5", "2x", 48.0, 48.2,
             "1xsBjxmqsJoYZYPMr0k06X5K9nnPrexcx"),
    _authors("gflv2_x101-32x4d_dcn_c4-c5_ms2x", "GFLv2 ResNeXt-101-32x4d, DCN c4-c5", "2x", 48.8, 49.0,
             "1AHDVQoclYPSP0Ync2a5FCsr_rhq2QdMH"),
    _authors("gflv2_r2n101_dcn_c4-c5_ms2x", "GFLv2 Res2Net-101, DCN c4-c5", "2x", 49.9, 50.5,
             "1sAXfYLXIxZgMrC44LBqDgfYImThZ_kud"),
)}

# The short names of `train --model`: a training starts from such a released model.
SHORT_NAMES = {"r18vd": "gfl_r18vd_1x_coco", "r34vd": "gfl_r34vd_1x_coco", "r50": "gfl_r50_fpn_1x_coco",
               "r101vd": "gfl_r101vd_fpn_mstrain_2x_coco", "gflv2_r50": "gflv2_r50_fpn_1x_coco"}


# Config -> millions of parameters, and GFLOPs of the convolutions for an image of 800 x 1344 (`zoo_table.gflops`).
COST = {
    "gfl_r101vd_fpn_mstrain_2x_coco": (51.6, 605), "gfl_r18vd_1x_coco": (19.5, 344),
    "gfl_r34vd_1x_coco": (29.6, 423), "gfl_r50_fpn_1x_coco": (32.5, 436), "gfl_slim_ld_r18vd_1x_coco": (19.5, 344),
    "gflv2_r50_fpn_1x_coco": (32.5, 436), "gfl_r101_dcn_c3-c5_ms2x": (53.5, 612), "gfl_r101_ms2x": (51.5, 595),
    "gfl_r50_1x": (32.5, 436), "gfl_r50_ms2x": (32.5, 436), "gfl_x101-32x4d_dcn_c3-c5_ms2x": (55.1, 636),
    "gfl_x101-32x4d_dcn_c4-c5_ms2x": (54.8, 628), "gfl_x101-32x4d_ms2x": (51.2, 602),
    "gflv2_r101_dcn_c3-c5_ms2x": (53.5, 612), "gflv2_r101_ms2x": (51.5, 595),
    "gflv2_r2n101_dcn_c4-c5_ms2x": (54.4, 632), "gflv2_r50_1x": (32.5, 436), "gflv2_r50_ms2x": (32.5, 436),
    "gflv2_x101-32x4d_dcn_c4-c5_ms2x": (54.8, 628), "ld_r101_ms2x": (51.5, 595), "ld_r18_1x": (19.4, 333),
    "ld_r34_1x": (29.6, 413), "ld_r50_1x": (32.5, 436),
}

def of_paddle() -> list[Model]:
    """Those that PaddleDetection released, whose files are used as they are."""
    return [model for model in MODELS.values() if not model.is_of_pytorch]


def address(name: str) -> str | None:
    """Where the weights of one of PaddleDetection's models or backbones are, or None for another name."""
    name = str(name)[:-len(".pdparams")] if str(name).endswith(".pdparams") else str(name)
    if name in MODELS and not MODELS[name].is_of_pytorch:
        return MODELS[name].weights
    return f"{ADDRESS}/models/pretrained/{name}.pdparams" if name in BACKBONES else None
