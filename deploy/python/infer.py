#!/usr/bin/env python3
"""Run an exported GFL detector with Paddle Inference. One file to copy: it needs numpy, OpenCV, PyYAML and Paddle,
and neither ppgfl nor PaddleDetection. It reads the exports of both.

    python infer.py --model_dir output_inference/gfl_r50_fpn_1x_coco --image_dir photos --output_dir output
    python infer.py --model_dir output_inference/gfl_r50_fpn_1x_coco --image_file photo.jpg --run_benchmark
"""
import argparse
import ctypes
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2  # before paddle: Paddle 2.6 brings a zlib that breaks an OpenCV loaded after it
import numpy as np
import yaml

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# A small file can claim far more pixels than an image of 16,384 x 16,384; OpenCV looks at this with its first image.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
RUN_MODES = ("paddle", "bf16", "int8", "trt_fp32", "trt_fp16")
ENGINES = ("auto", "onednn", "openvino", "native")


class RunnerError(ValueError):
    """A folder, a file or a setting that cannot be used; the message is one line with the mend."""


class Runner:
    """An exported detector.

    Args:
        model_dir: folder with model.pdmodel or .json (or inference.*), its .pdiparams, and infer_cfg.yml; or one of
            these model files itself.
        device: "CPU" or "GPU".
        run_mode: "paddle" float32; "bf16" on a CPU that has it; "int8" for a model exported with quantisation;
            "trt_fp32", "trt_fp16" TensorRT.
        cpu_threads: None: the physical cores.
        engine: on a CPU: "onednn", "openvino", "native", or "auto", the fastest that is safe (see `choose_engine`).

    Attributes:
        class_names: by class index.
        description: the file and the settings it really runs with.
    """

    def __init__(self, model_dir, device="CPU", run_mode="paddle", cpu_threads=None, engine="auto"):
        for name, value, allowed in (("device", device, ("CPU", "GPU")), ("run_mode", run_mode, RUN_MODES),
                                     ("engine", engine, ENGINES)):
            if value not in allowed:
                raise RunnerError(f"{name}: {value!r}; allowed: {', '.join(allowed)}")
        self.model_file, self.params_file = find_model(Path(model_dir))
        self.settings = read_settings(self.model_file.parent)
        check_params(self.params_file, self.settings.get("params_sha256"))
        self.class_names = list(self.settings["label_list"])
        self.steps = [make_step(op) for op in self.settings["Preprocess"]]
        self.threads = cpu_threads or physical_cores()
        prepare_for_paddle(self.threads)
        self.predictor, self.description = self._make_predictor(device, run_mode, engine)
        self.inputs = self.predictor.get_input_names()
        self.times = {"preprocess": 0.0, "inference": 0.0, "postprocess": 0.0}

    def _make_predictor(self, device, run_mode, engine):
        from paddle import inference

        config = inference.Config(str(self.model_file), str(self.params_file))
        config.disable_glog_info()
        config.switch_ir_optim(True)
        # It moves the stride behind the distances into a weight that all levels share: PaddleDetection's exports give
        # boxes of 1e8 pixels with it.
        config.delete_pass("matmul_v2_scale_fuse_pass")
        if run_mode == "int8" and not is_quantized(self.model_file):
            raise RunnerError(f"--run_mode int8: {self.model_file} holds no quantisation (PaddleSlim adds it before "
                              "the export); use --run_mode bf16 or paddle")
        if device == "GPU":
            notes = _use_gpu(config, run_mode, self.settings.get("min_subgraph_size", 3))
        else:
            notes = self._use_cpu(config, run_mode, engine)
        description = f"{self.model_file.name} on {device}, {notes}"
        with tempfile.TemporaryDirectory() as folder, kept_signal_stack():
            config.set_optim_cache_dir(folder)  # OpenVINO leaves a compiled copy: not in the user's folder
            try:
                return inference.create_predictor(config), description
            except Exception as error:  # Paddle raises many kinds
                reason = " ".join(str(error).split())[-300:]
                raise RunnerError(f"{self.model_file}: Paddle cannot load it ({description}): ...{reason}; export it "
                                  "again, or try --engine native") from error

    def _use_cpu(self, config, run_mode, engine):
        if run_mode.startswith("trt"):
            raise RunnerError(f"--run_mode {run_mode}: TensorRT needs --device GPU")
        if run_mode == "bf16" and not _has_bf16():
            print("this processor has no bfloat16: running in float32", file=sys.stderr)
            run_mode = "paddle"
        engine, note = choose_engine(engine, run_mode, self.model_file.suffix,
                                     has_openvino=hasattr(config, "enable_openvino_engine"),
                                     any_size=self.settings.get("use_dynamic_shape", True))
        if note:
            print(f"{self.model_file.name}: {note}", file=sys.stderr)
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(self.threads)
        ENGINE_SETTINGS[engine](config, run_mode)
        if engine != "openvino" and self.model_file.suffix == ".pdmodel":
            config.enable_memory_optim()  # a third of the memory, and all of it back in the end
        kind = {"paddle": "float32", "bf16": "bfloat16", "int8": "int8"}[run_mode]
        return f"{ENGINE_NAMES[engine]}, {kind}, {self.threads} threads"

    def run(self, arrays):
        """{"image": [N, 3, H, W], "scale_factor": [N, 2], ...} -> list of output arrays; extra inputs are ignored."""
        for name in self.inputs:
            if name not in arrays:
                raise RunnerError(f"{self.model_file}: wants an input '{name}', which this runner does not make")
            self.predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(arrays[name]))
        with kept_signal_stack():
            self.predictor.run()
        return [self.predictor.get_output_handle(name).copy_to_cpu() for name in self.predictor.get_output_names()]

    def __call__(self, images):
        """Images [H, W, 3] uint8 BGR of any sizes -> per image [M, 6] class, score, x1, y1, x2, y2 in its own pixels,
        best score first."""
        start = time.perf_counter()
        arrays = self.prepare(images)
        self.times["preprocess"] += time.perf_counter() - start
        return self.detect(arrays)

    def prepare(self, images):
        """Images -> the input arrays of `detect` (see the function `prepare`). Safe to call from several threads."""
        return prepare(images, self.steps)

    def detect(self, arrays):
        """What `prepare` made, or several of it of one size stacked -> detections as `__call__`."""
        start = time.perf_counter()
        outputs = self.run(arrays)
        finished = time.perf_counter()
        if len(outputs) != 2 or outputs[0].ndim != 2 or outputs[0].shape[1] != 6:
            raise RunnerError(f"{self.model_file}: gives outputs of shapes {[o.shape for o in outputs]}; this runner "
                              "needs an export with post-processing and NMS")
        rows = np.split(outputs[0].reshape(-1, 6), np.cumsum(outputs[1])[:-1])
        found = [r[np.argsort(-r[:, 1], kind="stable")] for r in rows]
        self.times["inference"] += finished - start
        self.times["postprocess"] += time.perf_counter() - finished
        return found


# --- the exported folder


def find_model(path):
    """(model file, parameter file) of a folder, by what exists, whatever Paddle wrote it. Raises RunnerError."""
    folder, names = path, [f"{name}{suffix}" for suffix in (".pdmodel", ".json") for name in ("model", "inference")]
    if path.is_file() and path.suffix in (".pdmodel", ".json"):
        folder, names = path.parent, [path.name]
    if not folder.is_dir():
        raise RunnerError(f"{folder.absolute()}: no such folder; --model_dir is the folder that the export wrote")
    for name in names:
        model, params = folder / name, (folder / name).with_suffix(".pdiparams")
        if model.is_file() and params.is_file():
            return model, params
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise RunnerError(f"{folder}: needs model.pdmodel or model.json (or inference.*) with its .pdiparams; "
                      f"found {found}")


def read_settings(folder):
    """infer_cfg.yml, checked. Raises RunnerError."""
    path = folder / "infer_cfg.yml"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir()))
        raise RunnerError(f"{path}: no such file; the export writes it beside the model; found {found}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunnerError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or settings.get("arch") != "GFL":
        arch = settings.get("arch") if isinstance(settings, dict) else settings
        raise RunnerError(f"{path}: arch is {arch!r}; this runner runs GFL only")
    for key in ("Preprocess", "label_list"):
        if not isinstance(settings.get(key), list):
            raise RunnerError(f"{path}: has no list '{key}'; export the model again")
    return settings


def check_params(path, expected):
    """Raise RunnerError unless the file is what the export wrote: Paddle reads past the end of a cut one and says
    nothing. PaddleDetection's exports hold no sum to compare with."""
    if expected is not None and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise RunnerError(f"{path}: damaged or replaced: it is not the file that belongs to infer_cfg.yml there; copy "
                          "the whole exported folder again")


def is_quantized(model_file):
    """Whether the graph has the operators that PaddleSlim's quantisation leaves in it."""
    graph = model_file.read_bytes()
    return b"quantize_linear" in graph or b"fake_quantize" in graph


# --- preprocessing, with the arithmetic of training


def make_step(op):
    """An entry of Preprocess -> a function of (image, scale) returning both."""
    kind = op.get("type")
    if kind == "Resize":
        return lambda image, scale: resize(image, scale, op["target_size"], op["keep_ratio"], op.get("interp", 1))
    if kind == "NormalizeImage":
        table = normalization_table(op)
        return lambda image, scale: (cv2.LUT(image, table), scale)
    if kind == "Permute":
        return lambda image, scale: (image.transpose(2, 0, 1), scale)
    if kind == "PadStride":
        return lambda image, scale: (image, scale)  # `prepare` pads the whole batch
    raise RunnerError(f"infer_cfg.yml: Preprocess has a step {kind!r}; "
                      "known: Resize, NormalizeImage, Permute, PadStride")


def resize(image, scale, target_size, keep_ratio, interp):
    height, width = image.shape[:2]
    if keep_ratio:
        ratio = min(min(target_size) / min(height, width), max(target_size) / max(height, width))
        new_height, new_width = max(1, int(ratio * height + 0.5)), max(1, int(ratio * width + 0.5))
    else:
        new_height, new_width = target_size
    image = cv2.resize(image, (new_width, new_height), interpolation=interp)
    return image, (scale[0] * new_height / height, scale[1] * new_width / width)


def normalization_table(op):
    """The 256 values that a pixel of each channel can become, [1, 256, 3] float32."""
    table = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    if op.get("is_scale", True):
        table *= np.float32(1.0 / 255.0)
    if op.get("norm_type", "mean_std") == "mean_std":
        table -= np.array(op["mean"])
        table /= np.array(op["std"])
    return table.reshape(1, 256, 3)


def prepare(images, steps, stride=32):
    """BGR images -> {"image" [N, 3, H, W], "scale_factor" [N, 2], "im_shape" [N, 2]}; H, W are multiples of 32."""
    ready, scales, shapes = [], [], []
    for bgr in images:
        image, scale = np.ascontiguousarray(bgr[..., ::-1]), (1.0, 1.0)
        for step in steps:
            image, scale = step(image, scale)
        ready.append(image)
        scales.append(scale)
        shapes.append(image.shape[1:])
    height, width = (-(-int(n) // stride) * stride for n in np.max(shapes, axis=0))
    batch = np.zeros((len(ready), 3, height, width), np.float32)
    for target, image in zip(batch, ready):
        target[:, :image.shape[1], :image.shape[2]] = image
    return {"image": batch, "scale_factor": np.array(scales, np.float32), "im_shape": np.array(shapes, np.float32)}


# --- Paddle's settings


def prepare_for_paddle(threads):
    """What Paddle reads while it is imported; settings of the user's own win."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if os.path.exists("/proc/cpuinfo") and "AuthenticAMD" in Path("/proc/cpuinfo").read_text():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def physical_cores():
    """Physical cores that this process may use."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, (os.cpu_count() or 2) // 2)
    cores = set()
    for cpu in cpus:
        try:
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            cores.add(cpu)
    return len(cores)


@contextmanager
def kept_signal_stack():
    """Undo what OpenVINO does to the process: it moves the signal handlers of this thread to a stack of its own and
    frees that with the model, after which the next signal (Ctrl-C, a child that ends) would crash."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


class SignalStack(ctypes.Structure):
    """`stack_t` of <signal.h>."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def _use_gpu(config, run_mode, min_subgraph_size):
    import paddle
    from paddle import inference

    if not paddle.is_compiled_with_cuda():
        raise RunnerError("--device GPU: this paddlepaddle is a CPU build; install paddlepaddle-gpu or use "
                          "--device CPU")
    config.enable_use_gpu(256, 0)
    config.enable_memory_optim()
    if not run_mode.startswith("trt"):
        return "float32"
    if inference.get_trt_compile_version() == (0, 0, 0):
        raise RunnerError(f"--run_mode {run_mode}: this Paddle was built without TensorRT; use --run_mode paddle")
    half = run_mode == "trt_fp16"
    shapes = f"{config.prog_file()}.shapes.pbtxt"
    if not os.path.exists(shapes):
        config.collect_shape_range_info(shapes)
        return "float32, collecting the shapes for TensorRT; run again to use it"
    kind = inference.PrecisionType.Half if half else inference.PrecisionType.Float32
    config.enable_tensorrt_engine(workspace_size=1 << 30, max_batch_size=8, min_subgraph_size=min_subgraph_size,
                                  precision_mode=kind)
    config.enable_tuned_tensorrt_dynamic_shape(shapes, True)
    return f"TensorRT {'float16' if half else 'float32'}"


def choose_engine(wanted, run_mode, suffix, *, has_openvino, any_size):
    """The engine that runs on a CPU, and a line on why when it is not the fastest or not the one that was wanted.

    .pdmodel: OpenVINO where Paddle has it, else oneDNN.
    .json: oneDNN for a fixed size of input. With images of changing sizes oneDNN threw or corrupted memory in one of
        150 runs of Paddle 3.3.1, so native kernels, unless bfloat16 needs it.
    """
    can_openvino = has_openvino and suffix == ".pdmodel" and run_mode in ("paddle", "bf16")
    risky = suffix == ".json" and any_size
    if wanted == "native" and run_mode != "paddle":
        raise RunnerError(f"--run_mode {run_mode}: the native kernels are float32 only; leave --engine native out")
    if wanted == "openvino" and not can_openvino:
        return "onednn", "OpenVINO needs a Paddle that has it, a .pdmodel, and float32 or bf16: using oneDNN"
    if wanted != "auto":
        return wanted, None
    if can_openvino:
        return "openvino", None
    if risky and run_mode == "paddle":
        return "native", ("using native kernels, since Paddle 3's oneDNN fails at random with a .json and images of "
                          "changing sizes; a .pdmodel beside it (export with --format both) is several times faster, "
                          "--engine onednn insists")
    return "onednn", "oneDNN may fail with a .json and images of changing sizes; a .pdmodel does not" if risky else None


def _use_onednn(config, run_mode):
    config.enable_mkldnn()
    if run_mode == "bf16":
        config.enable_mkldnn_bfloat16()
        if config.prog_file().endswith(".pdmodel"):  # those of Paddle 3 fail with every operator in bfloat16
            config.set_bfloat16_op({"conv2d", "fused_conv2d", "relu", "pool2d"})
    if run_mode == "int8":
        config.enable_mkldnn_int8()


def _use_openvino(config, run_mode):
    from paddle.inference import PrecisionType

    _use_native(config, run_mode)
    config.enable_openvino_engine(PrecisionType.Bfloat16 if run_mode == "bf16" else PrecisionType.Float32)


def _use_native(config, run_mode):
    if hasattr(config, "disable_mkldnn"):  # where it is on by default
        config.disable_mkldnn()


ENGINE_SETTINGS = {"onednn": _use_onednn, "openvino": _use_openvino, "native": _use_native}
ENGINE_NAMES = {"onednn": "oneDNN", "openvino": "OpenVINO", "native": "native kernels"}


def _has_bf16():
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


# --- the command line


def main():
    args = parse_arguments()
    ctrl_c = CtrlC()
    try:
        runner = Runner(args.model_dir, args.device, args.run_mode, args.cpu_threads, args.engine)
        print(f"running {runner.description}")
        files = find_images(args.image_file or args.image_dir)
        if args.run_benchmark:
            benchmark(runner, files, args.batch_size, args.benchmark_seconds, ctrl_c)
        else:
            detect(runner, files, args, ctrl_c)
    except RunnerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; mend that, or choose another path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 130
    return 0


class CtrlC:
    """The first Ctrl-C waits for the next `obey`: in the midst of a C++ library it may hang, crash or turn up as
    another error. The second acts at once. Where the parent ignores it, as a shell script does for what it starts with
    `&`, it stays ignored."""

    def __init__(self):
        self.pressed = False
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, self._press)

    def _press(self, *_):
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def obey(self):
        if self.pressed:
            raise KeyboardInterrupt


def parse_arguments():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", required=True, help="the exported folder, or a model file in it")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image_file")
    images.add_argument("--image_dir", help="searched recursively")
    parser.add_argument("--device", type=str.upper, default="CPU", choices=("CPU", "GPU"))
    parser.add_argument("--run_mode", default="paddle", choices=RUN_MODES)
    parser.add_argument("--engine", default="auto", choices=ENGINES,
                        help="on a CPU (auto: the fastest that is safe for the file)")
    parser.add_argument("--batch_size", type=positive(int), default=1)
    parser.add_argument("--cpu_threads", type=positive(int), help="default: the physical cores")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score drawn and saved (0.5)")
    parser.add_argument("--output_dir", default="output")
    parser.add_argument("--save_results", action="store_true", help="also write results.json to the output folder")
    parser.add_argument("--run_benchmark", action="store_true", help="print milliseconds per stage, write nothing")
    parser.add_argument("--benchmark_seconds", type=positive(float), default=10.0)
    return parser.parse_args()


def positive(kind):
    """The type of an argument: an int or a float above 0."""
    def convert(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text}: it must be above 0")
        return value

    convert.__name__ = kind.__name__  # for argparse's own message
    return convert


def find_images(path):
    path = Path(path)
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else []
    if not files:
        raise RunnerError(f"{path.absolute()}: no image there")
    return files


def read_image(path):
    data, image = np.fromfile(path, np.uint8), None
    with suppress(cv2.error):  # as of more pixels than allowed, or of an empty file
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise RunnerError(f"{path}: not an image that can be decoded; replace or remove it")
    return image


def detect(runner, files, args, ctrl_c):
    folder = Path(args.output_dir)
    root = Path(os.path.commonpath([p.resolve().parent for p in files]))
    results = []
    for start in range(0, len(files), args.batch_size):
        ctrl_c.obey()
        group = files[start:start + args.batch_size]
        images = [read_image(path) for path in group]
        for path, image, rows in zip(group, images, runner(images)):
            rows = rows[rows[:, 1] >= args.threshold]
            target = folder / path.resolve().relative_to(root)
            if target.resolve() == path.resolve():
                raise RunnerError(f"{path}: the drawn picture would replace the image; give another --output_dir")
            write(target, cv2.imencode(path.suffix, draw(image, rows, runner.class_names))[1])
            results.append({"file": str(path), "detections": [
                {"label": int(r[0]), "name": runner.class_names[int(r[0])], "score": round(float(r[1]), 5),
                 "box": [round(float(n), 2) for n in r[2:]]} for r in rows]})
    if args.save_results:
        write(folder / "results.json", json.dumps(results, ensure_ascii=False).encode("utf-8"))
    print(f"{len(files)} pictures{' and results.json' if args.save_results else ''} in {folder.resolve()}")


def write(path, data):
    """Write all of a file, or raise OSError with the path and leave what was there."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def draw(image, rows, class_names):
    picture = image.copy()
    for label, score, *box in rows[::-1]:
        color = tuple(int(n) for n in cv2.cvtColor(
            np.uint8([[[int(label * 111) % 180, 200, 240]]]), cv2.COLOR_HSV2BGR)[0, 0])
        x1, y1, x2, y2 = (int(n) for n in np.clip(np.round(box), -10_000, 100_000))
        cv2.rectangle(picture, (x1, y1), (x2, y2), color, 2)
        cv2.putText(picture, f"{class_names[int(label)]} {score:.2f}", (max(0, x1), max(12, y1 - 4)),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
    return picture


def benchmark(runner, files, batch_size, seconds, ctrl_c):
    """Milliseconds per image and stage over `seconds`, after one batch of warm-up."""
    images = [read_image(path) for path in (files * batch_size)[:batch_size]]
    runner(images)
    runner.times = dict.fromkeys(runner.times, 0.0)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        ctrl_c.obey()
        runner(images)
        count += batch_size
    for stage, total in runner.times.items():
        print(f"{stage:<12} {1000 * total / count:9.2f} ms per image")
    print(f"{'all':<12} {1000 * sum(runner.times.values()) / count:9.2f} ms per image, "
          f"{count / sum(runner.times.values()):.2f} images/s, batch {batch_size}")


if __name__ == "__main__":
    sys.exit(main())
