"""Part 7: images per second and peak memory of training, evaluation and inference. Each way has a process of its own,
so that its peak is its own."""
from __future__ import annotations

import importlib.util
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from ... import load_config
from ...build import build_model
from ...config.load import shipped_configs
from ...data.batch import collate
from ...data.shapes import make_shapes
from ...data.targets import Gt2GFLTarget
from ...inference.export import export
from ...inference.runner import make_runner
from ...system.atomic_write import write_text
from ...training.hooks import Hooks
from ...training.run_folder import RunFolder
from ...training.setup import Options, set_up
from . import golden
from .finding import Finding, Place, skipped

MODEL, SMALL_MODEL = "gfl_r50_fpn_1x_coco", "gfl_r18vd_1x_coco"
SIZE, SMALL_SIZE = (800, 1344), (64, 96)
ROUNDS = 20
# What is measured, how it computes, images together.
WAYS = tuple(f"{what}, {how}, {count}" for what, hows, counts in (
    ("train", ("float32", "O1", "O2"), (2, 8)), ("train PaddleDetection", ("float32", "O1"), (2, 8)),
    ("evaluate", ("float32", "O1"), (1, 8)), ("infer", ("paddle", "fp16", "trt_fp16"), (1, 8)))
    for how in hows for count in counts)
DRY_WAYS = ("train, float32, 1", "train PaddleDetection, float32, 1", "infer, paddle, 1")
Run = Callable[[], Any]  # works through one batch -> what tells that it has worked


@dataclass(frozen=True)
class Measured:
    """Seconds of one batch, and the peak memory in GiB."""

    seconds: float
    memory: float


def speed(place: Place) -> Iterator[Finding]:
    """One way: its speed, its memory, and that what comes out is finite."""
    what, how, count = place.way.split(", ")
    if what == "train PaddleDetection" and importlib.util.find_spec("ppdet") is None:
        yield skipped(place.way, "ppdet is not installed")
        return
    if how.startswith("trt") and paddle.inference.get_trt_compile_version() == (0, 0, 0):
        yield skipped(place.way, "this Paddle was built without TensorRT")
        return
    run = MAKERS[what](place, how, int(count))
    is_finite = bool(np.isfinite(np.asarray(run())).all())
    found = measure(place, run)
    figures = {"what": what, "precision": how, "batch": int(count), "images/s": int(count) / found.seconds,
               "GiB": found.memory}
    yield Finding(is_finite, place.way, f"{figures['images/s']:.3g} images/s, {found.memory:.2f} GiB at most"
                  + ("" if is_finite else "; what comes out is not finite"), figures)


def measure(place: Place, run: Run) -> Measured:
    """After two rounds that are not counted: the mean of the others."""
    rounds = 2 if place.dry else ROUNDS
    for _ in range(2):
        run()
    _wait(place)
    start = time.perf_counter()
    for _ in range(rounds):
        run()
    _wait(place)
    seconds = (time.perf_counter() - start) / rounds
    if place.dry:
        return Measured(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return Measured(seconds, paddle.device.cuda.max_memory_allocated() / 2**30)


def _wait(place: Place) -> None:
    if not place.dry:
        paddle.device.cuda.synchronize()


def training_batch(place: Place, count: int) -> dict[str, Any]:
    """Noise with eight boxes an image, and their targets, as tensors."""
    rng, (height, width) = np.random.default_rng(0), SMALL_SIZE if place.dry else SIZE
    samples = []
    for _ in range(count):
        low = rng.uniform(0, 0.7, (8, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (8, 2))], axis=1) * [width, height, width, height]
        samples.append({"image": rng.normal(size=(3, height, width)).astype("float32"),
                        "gt_bbox": boxes.astype("float32"), "gt_class": rng.integers(0, 80, 8),
                        "im_shape": np.array([height, width], np.float32), "scale_factor": np.ones(2, np.float32)})
    made = collate(Gt2GFLTarget(num_classes=80, grid_cell_scale=8)(samples))
    return {key: paddle.to_tensor(value) for key, value in made.items()}


def _trainer(place: Place, how: str, count: int) -> Run:
    """The step of `ppgfl train`, without the reading of images."""
    cfg = load_config(_name(place), [f"use_gpu={place.device == 'gpu'}".lower(), "pretrain_weights=null",
                                     *(f"TrainDataset.{key}" for key in _data(place))])
    options = Options(run_name="speed", evaluate=False, resume=None, amp=None if how == "float32" else how,
                      accumulate=1, use_vdl=False, vdl_log_dir=None, to_static=False, seed=0, patience=0,
                      best_metric="AP", scale_lr=True, command="")
    made = set_up(cfg, options, RunFolder(place.folder / "speed", resume=None), Hooks())
    made.state.model.train()
    batch = training_batch(place, count)

    def run() -> Any:
        return made.step([batch])["loss"].numpy()

    return run


def _data(place: Place) -> list[str]:
    """Keys of a data set of drawn pictures that has COCO's 80 classes."""
    data = make_shapes(place.folder / "speed_shapes", train=16, val=1)
    file = data / "annotations/instances_train2017.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["categories"] += [{"id": i, "name": f"class {i}"} for i in range(4, 81)]
    write_text(data / "coco.json", json.dumps({**content, "categories": content["categories"][:80]}))
    return [f"dataset_dir={data}", "anno_path=coco.json"]


def _paddledetection(place: Place, how: str, count: int) -> Run:
    """PaddleDetection's model and optimizer of the same config, in a step as its Trainer makes it."""
    from ppdet.core.workspace import create
    from ppdet.core.workspace import load_config as load

    cfg = load(str(next(path for folder in shipped_configs() for path in folder.rglob(f"{_name(place)}.yml"))))
    model = create(cfg.architecture)
    model.train()
    optimizer = create("OptimizerBuilder")(create("LearningRate")(1000), model)
    batch, half = training_batch(place, count), how != "float32"
    scaler = paddle.amp.GradScaler(enable=half, init_loss_scaling=1024.0)

    def run() -> Any:
        with paddle.amp.auto_cast(enable=half, level="O1"):
            loss = model(batch)["loss"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
        return loss.numpy()

    return run


def _evaluator(place: Place, how: str, count: int) -> Run:
    model = build_model(load_config(_name(place)))
    golden.put_weights(model, _name(place))
    model.eval()
    batch = {key: value for key, value in training_batch(place, count).items() if key in ("image", "scale_factor")}

    def run() -> Any:
        with paddle.no_grad(), paddle.amp.auto_cast(enable=how != "float32", level="O1"):
            return model(batch)["bbox"].numpy()

    return run


def _inference(place: Place, how: str, count: int) -> Run:
    folder, name = place.folder / "speed_export", _name(place)
    if not folder.is_dir():
        golden.write_weights(name, place.folder / "speed.pdparams")
        export(load_config(name), weights=place.folder / "speed.pdparams", output_dir=folder, verify=())
    settings = {} if place.dry else {"device": "GPU", "run_mode": how}
    batch = training_batch(place, count)
    arrays = {key: batch[key].numpy() for key in ("image", "scale_factor")}
    if how.startswith("trt"):
        make_runner(folder, **settings).run(arrays)  # TensorRT learns the size from a first run
    runner = make_runner(folder, **settings)
    return lambda: runner.run(arrays)[0]


def _name(place: Place) -> str:
    return SMALL_MODEL if place.dry else MODEL


MAKERS: dict[str, Callable[[Place, str, int], Run]] = {
    "train": _trainer, "train PaddleDetection": _paddledetection, "evaluate": _evaluator, "infer": _inference}
