"""Every signature has type hints, mypy agrees with them, and an editor sees the public names."""
import ast
import importlib.util
import subprocess
import sys

import pytest
from helpers import ROOT

import ppgfl

PACKAGE = ROOT / "ppgfl"
# What a type checker must make of the public names. An ignored error that mypy does not find is an error too.
USE = '''
from pathlib import Path
from typing import Any

import numpy as np
import ppgfl
from ppgfl.inference.detections import Detections
from ppgfl.model.gfl import GFL
from ppgfl.weights.checkpoint import Report
from typing_extensions import assert_type

cfg = ppgfl.load_config("gfl_r18vd_1x_coco", overrides=["TestReader.batch_size=4"])
assert_type(cfg, dict[str, Any])
detector = ppgfl.Detector("gfl_r18vd_1x_coco", weights=Path("x.pdparams"))
pixels = np.zeros((4, 4, 3), np.uint8)
assert_type(detector("a.jpg"), Detections)
assert_type(detector(pixels), ppgfl.Detections)
assert_type(detector(["a.jpg", Path("b.jpg"), pixels]), list[Detections])
assert_type(detector(("a.jpg",)), list[Detections])
assert_type(detector("a.jpg").boxes, np.ndarray)
assert_type(ppgfl.build_model(cfg), GFL)
assert_type(ppgfl.load_weights(ppgfl.build.build_model(cfg), "x.pdparams"), Report)
assert_type(ppgfl.open_detector(cfg)([pixels]), list[np.ndarray])
assert_type(ppgfl.train(cfg), dict[str, Any])
assert_type(ppgfl.evaluate(cfg, weights="x.pdparams"), dict[str, Any])
assert_type(ppgfl.export(cfg), dict[str, dict[str, float]])
assert_type(ppgfl.targets.Gt2GFLTarget(num_classes=80)([{"image": pixels}]), list[dict[str, Any]])
detector(3)  # type: ignore[call-overload]
ppgfl.evaluate("a config")  # type: ignore[arg-type]
ppgfl.load_confg("gfl_r18vd_1x_coco")  # type: ignore[attr-defined]
'''


def without_hints(source):
    """The functions of a file that lack the hint of a parameter or of what they return."""
    tree = ast.parse(source)
    methods = {function for cls in ast.walk(tree) if isinstance(cls, ast.ClassDef) for function in cls.body
               if isinstance(function, ast.FunctionDef)
               and "staticmethod" not in [getattr(each, "id", "") for each in function.decorator_list]}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            args = node.args
            named = [*args.posonlyargs, *args.args][1 if node in methods else 0:]
            parameters = [*named, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
            if node.returns is None or any(parameter.annotation is None for parameter in parameters):
                yield f"{node.name}, line {node.lineno}"


def test_every_signature_has_hints():
    files = sorted(path for path in PACKAGE.rglob("*.py") if not {"configs", "deploy"} & set(path.parts[:-1]))
    assert len(files) > 70
    assert not {str(path): found for path in files
                if (found := list(without_hints(path.read_text(encoding="utf-8"))))}


@pytest.mark.parametrize(("source", "found"), [
    ("def f(a: int, *b: int, c: int = 0, **d: int) -> None: pass", []),
    ("class A:\n    def f(self) -> None: pass\n    @classmethod\n    def g(cls) -> None: pass", []),
    ("def f(): pass", ["f, line 1"]),
    ("def f(a) -> None: pass", ["f, line 1"]),
    ("def f(*, a) -> None: pass", ["f, line 1"]),
    ("def f(*a) -> None: pass", ["f, line 1"]),
    ("def f(**a) -> None: pass", ["f, line 1"]),
    ("class A:\n    def f(self, a) -> None: pass", ["f, line 2"]),
    ("class A:\n    @staticmethod\n    def f(a) -> None: pass", ["f, line 3"]),
    ("def f() -> None:\n    def g(a) -> None: pass", ["g, line 2"])])
def test_a_missing_hint_is_found(source, found):
    assert list(without_hints(source)) == found


def test_type_checkers_and_the_lazy_table_know_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name for statement in block.body for alias in statement.names}
    assert imported == {*ppgfl._NAMES, *ppgfl._MODULES}
    assert sorted(ppgfl.__all__) == sorted(ppgfl._NAMES)


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_agrees_with_the_hints_and_sees_the_public_names(tmp_path):
    file = tmp_path / "use.py"
    file.write_text(USE, encoding="utf-8")
    run = subprocess.run([sys.executable, "-m", "mypy", "ppgfl", str(file)], cwd=ROOT, check=False, timeout=300,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
