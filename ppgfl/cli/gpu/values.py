"""Parts 0 to 2: the card; raw maps, NMS and training steps against recorded values."""
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence

import numpy as np
import paddle

from ... import load_config
from ...build import build_model, build_optimizer
from ...model.gfl import GFL
from ...optim import schedule_of
from ...weights.zoo import SHORT_NAMES
from .. import doctor
from . import golden
from .finding import Finding, Limits, Place, skipped, unlike, within

SMALL = "gfl_r18vd_1x_coco"
TRAINED = (SMALL, "gflv2_r50_fpn_1x_coco")  # those whose training steps are recorded
LOSSES = ("loss", "loss_qfl", "loss_bbox", "loss_dfl")
# TF32 rounds what enters a product to 11 bits (5e-4 of a value); a network of 50 to 100 layers adds some of it up.
OFF, ON = "TF32 off", "TF32 on"
MAPS = {OFF: 2e-4, ON: 5e-3}  # of the largest value of a map
STEPS = {OFF: 1e-3, ON: 1e-2}  # of a loss; on CPUs 1e-3 is what other versions of Paddle need
# Of 100 detections the last ones change where scores are nearly equal, more so in networks that have learnt nothing.
DETECTIONS = {OFF: Limits(pixels=0.05, score=1e-4, share=0.02), ON: Limits(pixels=2.0, score=1e-2, share=0.15)}
SAME_ROWS = Limits(pixels=1e-3, score=1e-6)


# --- part 0: the card


def card(place: Place) -> Iterator[Finding]:
    """What doctor finds, the card with its driver and libraries, and a convolution of a size that has real kernels."""
    for check in (doctor.software, doctor.pairs, doctor.device, doctor.self_test):
        for level, topic, text in check():
            yield Finding(level != doctor.BAD, f"doctor: {topic}", text)
    if place.dry:
        yield skipped("card", "--dry: the CPU takes its place")
    else:
        major, minor = paddle.device.cuda.get_device_capability()
        yield Finding(True, "card", f"{card_name()}, capability {major}.{minor}")
        yield Finding(True, "libraries", f"CUDA {paddle.version.cuda()}, cuDNN {paddle.version.cudnn()}, TensorRT "
                                         f"{'.'.join(map(str, paddle.inference.get_trt_compile_version()))}")
    yield convolution()


def card_name() -> str:
    """Of the first card: its name, memory, driver, and how many there are."""
    properties = paddle.device.cuda.get_device_properties(0)
    return (f"{paddle.device.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
            f"driver {_driver()}")


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown (no nvidia-smi)"
    done = subprocess.run([tool, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True,
                          timeout=60, check=False)
    return done.stdout.split("\n")[0].strip() or "unknown"


def convolution() -> Finding:
    """64 channels, 3x3, against numpy in float64."""
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(64, 34, 34)), rng.normal(size=(64, 64, 3, 3))
    wanted = sum(np.tensordot(kernel[:, :, i, j], image[:, i:i + 32, j:j + 32], 1) for i in range(3) for j in range(3))
    found = paddle.nn.functional.conv2d(*(paddle.to_tensor(a.astype(np.float32)) for a in (image[None], kernel)))
    return within("convolution, 64 channels", largest(found.numpy()[0], np.asarray(wanted)), 1e-5, " of the largest")


# --- part 1: raw maps and NMS


def maps(place: Place) -> Iterator[Finding]:
    """Maps and detections of the five models against the recorded ones, and NMS on the device against the CPU's."""
    for name in [SMALL] if place.dry else SHORT_NAMES.values():
        model = stand_in(name)
        yield from _maps_of(place, name, model)
        if name == SMALL:
            small = model
    for what, image in (("320x416", golden.inputs(0)["image"]),
                        ("32x64, fewer cells than nms_top_k", golden.inputs(0)["image"][:, :, :32, :64])):
        yield suppression(place, small, image, f"NMS on {what}")


def stand_in(name: str) -> GFL:
    model = build_model(load_config(name))
    golden.put_weights(model, name)
    model.eval()
    return model


def _maps_of(place: Place, name: str, model: GFL) -> Iterator[Finding]:
    expected, drawn = golden.recorded(f"{name}_eval"), golden.inputs(0)
    with paddle.no_grad():
        features = model.features(paddle.to_tensor(drawn["image"]))
        output = model({key: paddle.to_tensor(drawn[key]) for key in ("image", "scale_factor")})
    worst = 0.0
    for kind, values_of_levels, count in (("fpn", features.levels, 96), ("cls", features.cls, 512),
                                          ("reg", features.reg, 512)):
        for i, values in enumerate(values_of_levels):
            wanted = expected[f"{kind}{i}"]
            difference = np.abs(golden.sample(values.numpy(), count) - wanted).max() / wanted[2]
            worst = max(worst, np.nan_to_num(difference, nan=np.inf))
    yield within(f"{name}: maps", worst, MAPS[place.way], " of the largest value")
    suffix = "_calibrated" if "gflv2" in name else ""
    recorded = by_image(expected["bbox" + suffix], expected["bbox_num" + suffix])
    found = by_image(output["bbox"].numpy(), output["bbox_num"].numpy())
    limits = DETECTIONS[place.way]
    yield within(f"{name}: detections", unlike(recorded, found, limits), limits.share,
                 f" of them not within {limits.pixels:g} pixels and {limits.score:g} in score")


def by_image(rows: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """bbox [M, 6] and bbox_num [N] -> the rows of each image."""
    return np.split(rows, np.cumsum(numbers)[:-1])


def suppression(place: Place, model: GFL, image: np.ndarray, what: str) -> Finding:
    """The same boxes and scores through NMS on the device and on the CPU: the same rows, in whatever order."""
    with paddle.no_grad():
        boxes, scores = model.decoder.decode(model.features(paddle.to_tensor(image)), model.head.distribution_project,
                                             paddle.ones([len(image), 2]))
    arrays = boxes.numpy(), scores.numpy()
    wanted, found = (suppressed(model, device, arrays) for device in ("cpu", place.device))
    paddle.set_device(place.device)
    counts = [[len(rows) for rows in kept] for kept in (wanted, found)]
    missing = unlike(wanted, found, SAME_ROWS)
    return Finding(counts[0] == counts[1] and not missing, what,
                   f"{counts[1]} detections where the CPU has {counts[0]}, {missing:.1%} of them others")


def suppressed(model: GFL, device: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """NMS of boxes [N, A, 4] and scores [N, A, C] on a device -> the rows of each image."""
    paddle.set_device(device)
    boxes, scores = map(paddle.to_tensor, arrays)
    rows, numbers = model.decoder.nms(boxes, scores.transpose([0, 2, 1]), model.decoder.threshold())
    return by_image(rows.numpy(), numbers.numpy())


# --- part 2: training steps


def steps(place: Place) -> Iterator[Finding]:
    """Six steps of GFL and of GFLv2 against PaddleDetection's."""
    for name in TRAINED:
        if place.dry and name != SMALL:
            yield skipped(f"{name}: steps", "--dry takes small models only")
        else:
            yield from recorded_steps(place, name, 2 if place.dry else 6)


def recorded_steps(place: Place, name: str, count: int) -> Iterator[Finding]:
    expected, model = golden.recorded(f"{name}_train"), build_model(load_config(name))
    golden.put_weights(model, name)
    model.train()
    optimizer = build_optimizer(load_config(name), model, steps_per_epoch=100)
    limit, differences, rates = STEPS[place.way], [], []
    for step in range(count):
        losses = model(golden.training_batch(100 + step))
        wanted = expected[f"step{step}_losses"]
        differences.append(float(np.abs(np.array([float(losses[key]) for key in LOSSES]) / wanted - 1).max()))
        rates.append(abs(optimizer.get_lr() / float(expected[f"step{step}_lr"]) - 1))
        losses["loss"].backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule_of(optimizer).step()
    yield within(f"{name}: losses of {count} steps", float(np.max(differences)), limit, " of a loss")
    yield within(f"{name}: learning rates", max(rates), 1e-6)
    if count < 6:
        return
    state, worst = model.state_dict(), 0.0
    for key in (key for key in expected if key.startswith("final_")):
        found = golden.sample(state[key[len("final_"):]].numpy(), 64)
        worst = max(worst, largest(found, expected[key]))
    yield within(f"{name}: weights after them", worst, limit, " of the largest")


def largest(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, over the largest value that is wanted; infinite where something is not a number."""
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    return difference if np.isfinite(difference) else float("inf")
