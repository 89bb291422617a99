"""One exported model on a CPU: ppgfl's runner against ONNX Runtime and OpenVINO, in one run, taking turns.

    pip install openvino onnxruntime
    python tools/export_model.py -c gfl_r18vd_1x_coco -o weights=W.pdparams --onnx
    python benchmarks/inference.py --model_dir output_inference/gfl_r18vd_1x_coco

ppgfl's rows end with detections: decoding and NMS over all classes and cells are part of the time. Those of the others
run `model.onnx` up to decoded boxes and scores, without NMS.
"""
import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "deploy" / "python"))
import infer  # noqa: E402
import numpy as np  # noqa: E402


def ppgfl(model_dir, arrays, **settings):
    runner = infer.Runner(model_dir, **settings)
    return runner.description, lambda: runner.detect(arrays)


def onnx_runtime(path, arrays, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return f"ONNX Runtime {onnxruntime.__version__}, float32, no NMS", lambda: session.run(None, arrays)


def openvino(path, arrays, threads, precision):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    version = openvino.__version__.split("-")[0]
    return f"OpenVINO {version}, {precision}, no NMS", lambda: request.infer(arrays)


def machine():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", required=True, help="an export made with --onnx")
    parser.add_argument("--paddledetection", help="PaddleDetection's own export of the same model")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar=("H", "W"))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=infer.physical_cores())
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    infer.prepare_for_paddle(args.threads)
    import paddle

    folder, threads = Path(args.model_dir), args.threads
    arrays = {"image": np.random.default_rng(0).normal(size=(args.batch_size, 3, *args.size)).astype("float32"),
              "scale_factor": np.ones((args.batch_size, 2), np.float32)}
    subjects = [ppgfl(folder, arrays, cpu_threads=threads),
                ppgfl(folder, arrays, cpu_threads=threads, engine="onednn"),
                ppgfl(folder, arrays, cpu_threads=threads, run_mode="bf16"),
                ppgfl(folder, arrays, cpu_threads=threads, run_mode="bf16", engine="onednn")]
    if (folder / "model.onnx").is_file():
        subjects += [onnx_runtime(folder / "model.onnx", arrays, threads),
                     openvino(folder / "model.onnx", arrays, threads, "f32"),
                     openvino(folder / "model.onnx", arrays, threads, "bf16")]
    if args.paddledetection:
        name, run = ppgfl(args.paddledetection, arrays, cpu_threads=threads, engine="onednn")
        subjects.append((f"PaddleDetection's export: {name}", run))

    for _, run in subjects:
        run()
    times = [[] for _ in subjects]
    for _ in range(args.rounds):
        for (_, run), taken in zip(subjects, times):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)

    print(f"\n{folder.name}, {args.batch_size} x {args.size[0]} x {args.size[1]}, {threads} threads, median of "
          f"{args.rounds} rounds taking turns\n{machine()}, {os.cpu_count()} logical cores; Paddle "
          f"{paddle.__version__}, Python {platform.python_version()}\n")
    print("| | seconds | least to most | against the first |\n| --- | --- | --- | --- |")
    first = statistics.median(times[0])
    for (name, _), taken in zip(subjects, times):
        middle = statistics.median(taken)
        print(f"| {name} | {middle:.3f} | {min(taken):.3f} to {max(taken):.3f} | {middle / first:.2f} |")


if __name__ == "__main__":
    main()
