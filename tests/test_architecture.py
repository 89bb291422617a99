"""The house rules: which room may know which, and what a file may not do."""
import ast
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

# Every room with its floor: a file imports only files of lower floors.
FLOORS = [
    ["errors", "log", "dist", "operators", "zoo", "config_keys", "files"],
    ["slicing", "interrupt"],
    ["runtime", "config", "boxes", "safe_pickle", "data.coco_classes", "predictor", "progress"],
    ["download", "command"],
    ["data.image", "checkpoint", "losses", "decode", "targets", "draw", "model.layers", "onednn"],
    ["data.transforms", "data.batch", "data.dataset", "model.resnet", "model.fpn", "model.head", "model.gfl",
     "data.shapes", "detections", "resume", "meter", "optim", "curves", "distill", "step"],
    ["data.loader", "dashboard", "report", "json_lines"],
    ["build"],
    ["onnx_graph", "export_check", "quantize"],
    ["export", "doctor", "benchmark", "data_check", "data_convert"],
    ["engine"],
    ["predict"],
    ["evaluate"],
    ["run_folder", "zoo_table"],
    ["train", "demo"],
    ["cli"],
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
FILES = sorted((ROOT / "ppgfl").rglob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(ROOT / "ppgfl").with_suffix("").parts)


def imports_of(path):
    """Our own modules that a file imports anywhere, as dotted names below ppgfl."""
    package = name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                dotted = ".".join([*base, alias.name])
                yield dotted if dotted in FLOOR else ".".join(base)


def test_imports_point_one_way():
    wrong = []
    for path in FILES:
        name = name_of(path)
        if name.endswith("__init__"):
            continue
        assert name in FLOOR, f"{name}: which floor does the new file stand on?"
        for other in imports_of(path):
            if other and FLOOR[other] >= FLOOR[name]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_data_never_imports_the_model_and_the_model_no_config():
    for path in FILES:
        for other in imports_of(path):
            assert not (name_of(path).startswith("data.") and other.startswith("model"))
            assert not (name_of(path).startswith("model.") and other in ("config", "build"))


def test_only_two_files_touch_environment_variables():
    touching = {name_of(path) for path in FILES if "environ" in path.read_text(encoding="utf-8")}
    assert touching == {"runtime", "dist"}


def test_importing_ppgfl_and_asking_for_help_load_nothing_heavy():
    code = ("import sys, ppgfl; ppgfl.load_config('gfl_r18vd_1x_coco');"
            "heavy = {'cv2', 'numpy', 'paddle', 'pycocotools', 'visualdl'} & set(sys.modules); assert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_opencv_is_loaded_before_a_paddle_that_the_user_imports():
    """Paddle 2.6 crashes an OpenCV that is loaded after it at the first PNG file."""
    code = ("import ppgfl, paddle, sys, cv2, numpy; names = list(sys.modules);"
            "assert names.index('cv2') < names.index('paddle');"
            "assert cv2.imdecode(cv2.imencode('.png', numpy.zeros((9, 9, 3), 'uint8'))[1], 1).shape == (9, 9, 3)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_files_stay_small_enough_to_read():
    for path in [*FILES, *Path(ROOT / "tools").glob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path
