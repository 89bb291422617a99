"""Training from start to end without any input: draw a data set, train on it, evaluate, detect, and show where to look.

    make demo        about four minutes on two CPU cores
"""
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ppgfl.cli import main  # noqa: E402
from ppgfl.data.shapes import make_shapes  # noqa: E402

CONFIG = "configs/demo/shapes_gfl.yml"
LEAST_AP = 0.5


def run(command, *arguments):
    """Print a command as a user would type it, run it, and stop if it fails."""
    print(f"\n$ python tools/{command}.py {' '.join(arguments)}", flush=True)
    code = main(command, list(arguments))
    if code:
        sys.exit(code)


def next_free(folder):
    """The folder itself, or with a number after it: an earlier demo is kept."""
    candidates = [folder, *(folder.with_name(f"{folder.name}_{i}") for i in range(2, 1000))]
    return next(path for path in candidates if not path.exists())


if __name__ == "__main__":
    start = time.time()
    data = make_shapes("output/shapes", train=240, val=60)
    print(f"300 drawn pictures in {data}; training takes about three minutes on two CPU cores")
    output = next_free(Path("output/demo"))
    run("train", "-c", CONFIG, "--eval", "--use_vdl", "-o", f"save_dir={output}")
    weights = f"weights={output}/shapes_gfl/best_model"
    run("eval", "-c", CONFIG, "-o", weights, "--output_eval", str(output))
    run("infer", "-c", CONFIG, "-o", weights, "--infer_dir", f"{data}/val2017", "--output_dir", f"{output}/pictures",
        "--draw_threshold", "0.4", "--save_results", "json")

    from ppgfl.run_folder import read_metrics

    best = read_metrics(output / "shapes_gfl")["best"]
    print(f"\nAP {best:.3f} after {time.time() - start:.0f} s. Have a look at:\n"
          f"  {output}/pictures                  detections on 60 pictures\n"
          f"  {output}/shapes_gfl/curves.png     losses and AP over the epochs\n"
          f"  visualdl --logdir {output}/shapes_gfl/vdl --language en --disable-telemetry")
    if best < LEAST_AP:
        print(f"AP is below the {LEAST_AP} that this demo reaches: something is wrong", file=sys.stderr)
        sys.exit(1)
