"""Maps and gradients of PaddleDetection's backbones, for tests/golden/values/backbones.npz.

    python backbones.py CHECKOUT

CHECKOUT is a folder with PaddleDetection's development branch, which runs in the peers' environment (see `peers.py`):
the release there lacks `freeze_stem_only`. Cases and image are in tests/golden/cases.py, weights in make_weights.py.
"""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from peers import leave_out_lane_detection, python_of

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def record():
    """In PaddleDetection's process: write the file."""
    import cv2  # noqa: F401  before paddle: Paddle 2.6 brings a zlib that breaks an OpenCV loaded after it
    import paddle

    leave_out_lane_detection()
    from ppdet.modeling.backbones import Res2Net, ResNet

    sys.path.append(str(GOLDEN))
    import cases
    import make_weights

    paddle.set_device("cpu")
    values = {}
    for name, (kind, arguments) in cases.BACKBONES.items():
        net = {"ResNet": ResNet, "Res2Net": Res2Net}[kind](**arguments)
        shapes = {entry: value.shape for entry, value in net.state_dict().items()}
        net.set_state_dict({entry: make_weights.draw(entry, shape, 0) for entry, shape in shapes.items()})
        cases.keep_statistics(net)
        maps = net({"image": paddle.to_tensor(cases.backbone_image())})
        sum((each**2).mean() for each in maps).backward()
        values[f"{name}: entries"] = np.array([f"{entry} {list(shape)}" for entry, shape in shapes.items()])
        for i, each in enumerate(maps):
            values[f"{name}: map {i}"] = cases.sample(each.numpy(), 96)
        gradients = {entry: value.grad.numpy() for entry, value in net.named_parameters() if value.grad is not None}
        values[f"{name}: learning"] = np.array(list(gradients))
        values[f"{name}: norms"] = np.array([np.linalg.norm(each) for each in gradients.values()], np.float32)
        for ending in cases.FROM_BACKBONES:
            for entry in [entry for entry in gradients if entry.endswith(ending)][-1:]:
                values[f"{name}: gradient {entry}"] = cases.sample(gradients[entry], 48)
    np.savez_compressed(GOLDEN / "values" / "backbones.npz", **values)


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        checkout, = sys.argv[1:]
        subprocess.run([python_of("paddledet"), __file__, "--record"], check=True,
                       env={**os.environ, "PYTHONPATH": checkout})
