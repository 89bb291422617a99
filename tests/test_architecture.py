"""The house rules: which room may know which, and what a file may not do."""
import ast
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

# A wing imports only wings that stand before it; those of one list do not know each other.
ORDER = [["errors"], ["kinds"], ["system", "optim"], ["config", "weights", "model", "data"],
         ["classes", "fit", "precision"], ["make"], ["readers"], ["build", "targets"], ["checked", "convert"],
         ["inference"], ["evaluation"], ["training"], ["cli"]]
PLACE = {wing: i for i, wings in enumerate(ORDER) for wing in wings}
PACKAGE = ROOT / "ppgfl"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts and "deploy" not in path.parts)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path, source=None):
    """The wings of ppgfl that a file imports anywhere: "system", "data", ..., "" for the package itself."""
    package = name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            yield from [base[0]] if base else [alias.name for alias in node.names]


def wrong_imports(path, source=None):
    """The wings that a file may not import, but does."""
    wing = name_of(path).split(".")[0]
    return [f"{name_of(path)} imports {other}" for other in imports_of(path, source)
            if other in PLACE and other != wing and PLACE[other] >= PLACE[wing]]


def test_imports_point_one_way():
    assert {name_of(path).split(".")[0] for path in FILES} - {"__init__"} == set(PLACE), "to which wing does it belong?"
    assert not [line for path in FILES if path.parent != PACKAGE or path.stem in PLACE for line in wrong_imports(path)]


def test_an_import_turned_round_is_found():
    path = PACKAGE / "data" / "loader.py"
    source = path.read_text(encoding="utf-8")
    assert wrong_imports(path, source + "\nfrom ..inference import detector\n") == ["data.loader imports inference"]
    assert wrong_imports(path, source + "\nfrom ..model.boxes import iou\n") == ["data.loader imports model"]


def test_only_two_files_touch_environment_variables():
    touching = {name_of(path) for path in FILES if "environ" in path.read_text(encoding="utf-8")}
    assert touching == {"system.runtime", "system.dist"}


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


def test_every_public_name_imports():
    code = ("import ppgfl; from ppgfl.targets import Gt2GFLTarget; from ppgfl.config import load_config;"
            "names = [getattr(ppgfl, name) for name in dir(ppgfl) if not name.startswith('_')];"
            "assert ppgfl.targets.Gt2GFLTarget is ppgfl.data.targets.Gt2GFLTarget; ppgfl.build.build_optimizer;"
            "assert callable(ppgfl.train) and callable(ppgfl.evaluate) and callable(ppgfl.export);"
            "assert {'Detector', 'Detections', 'open_detector', 'build_model', 'load_weights'} <= set(dir(ppgfl))")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
