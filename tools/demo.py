"""Detection from start to end without any input: stand-in weights, three drawn images, pictures and numbers.

The weights are random numbers under the names of the released file, so the boxes mean nothing; every step is the
one that real weights take.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from ppgfl.cli import main  # noqa: E402

OUTPUT = Path("output/demo")


def draw_images(folder, count=3):
    """Rectangles and circles on clutter."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = rng.integers(0, 80, (480, 640, 3), dtype=np.uint8)
        for _ in range(6):
            x, y, size = (int(n) for n in (rng.integers(60, 580), rng.integers(60, 420), rng.integers(20, 60)))
            color = tuple(int(n) for n in rng.integers(100, 255, 3))
            if rng.random() < 0.5:
                cv2.circle(image, (x, y), size, color, cv2.FILLED)
            else:
                cv2.rectangle(image, (x - size, y - size), (x + size, y + size), color, cv2.FILLED)
        cv2.imwrite(str(folder / f"shapes_{i}.jpg"), image)


def save_stand_in_weights(path):
    """A checkpoint with the names and shapes of the released one."""
    import paddle

    from ppgfl import build_model, load_config

    paddle.seed(0)
    model = build_model(load_config("gfl_r18vd_1x_coco"))
    # Freshly initialised scores all stand at the prior, 0.01: spread them so that there is something to draw.
    model.head.gfl_head_cls.bias.set_value(np.linspace(-6, 0.5, 80, dtype="float32"))
    paddle.save(model.state_dict(), str(path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        draw_images(images)
        save_stand_in_weights(Path(folder) / "stand_in.pdparams")
        print(f"three drawn images, stand-in weights; about half a minute on 2 cores; results in {OUTPUT.resolve()}")
        sys.exit(main("infer", ["-c", "gfl_r18vd_1x_coco", "-o", f"weights={folder}/stand_in", "--infer_dir",
                                str(images), "--output_dir", str(OUTPUT), "--save_results", "json"]))
