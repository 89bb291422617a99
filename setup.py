"""Packaging."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "ppgfl/__init__.py").read_text(encoding="utf-8")).group(1)
# Folders that travel inside the package, as ppgfl/configs/gfl and ppgfl/deploy/python.
FOLDERS = [folder for folder in sorted(HERE.glob("configs/**")) if any(folder.glob("*.yml"))]
FOLDERS += [HERE / "deploy" / name for name in ("python", "serving", "ray")]
FOLDERS += [HERE / "tests/golden", HERE / "tests/golden/values"]  # what the GPU check compares with
INSIDE = {"ppgfl." + ".".join(folder.relative_to(HERE).parts): str(folder.relative_to(HERE)) for folder in FOLDERS}

# DeformConv: in ONNX since 1.14, in ONNX Runtime since 1.25, which needs Python 3.11. Other models take any.
ONNX = ["onnx>=1.14", "onnxruntime; python_version < '3.11'", "onnxruntime>=1.25; python_version >= '3.11'"]
SERVE = ["starlette", "h11", "python-multipart", "prometheus-client"]

setup(
    name="ppgfl",
    version=VERSION,
    description="Generalized Focal Loss detectors (GFL, GFLv2) on PaddlePaddle",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["ppgfl", "ppgfl.*"]) + list(INSIDE),
    package_dir={"ppgfl": "ppgfl", **INSIDE},
    package_data={"ppgfl": ["py.typed", "evaluation/*.html"],
                  **{name: ["*.yml", "*.html", "*.json", "*.npz"] for name in INSIDE}},
    install_requires=["numpy", "pyyaml", "opencv-python", "pycocotools", "faster-coco-eval>=1.7", "visualdl", "tqdm",
                      "matplotlib", "pillow", "requests", "filelock"],
    entry_points={"console_scripts": ["ppgfl = ppgfl.cli:entry"]},
    extras_require={
        "cpu": ["paddlepaddle", *ONNX],  # ONNX Runtime runs the graph of eval and infer, where it is installed
        # The newest on PyPI is 2.6.2, for Python up to 3.12; from there on it imports setuptools without asking for it.
        "gpu": ["paddlepaddle-gpu>=2.6.2", "setuptools; python_version >= '3.12'"],
        "onnx": ONNX,
        "serve": SERVE,
        "video": ["av>=10"],  # H.264; without it drawn videos are VP8
        "mlflow": ["mlflow"],
        "tensorboard": ["tensorboardX", "tensorboard"],  # one writes, the other one shows
        "wandb": ["wandb"],
        "safetensors": ["safetensors"],
        "supervision": ["supervision"],
        "parquet": ["pyarrow>=16"],
        "ray": ["ray[data]<2.64", "pyarrow>=16", "fsspec"],  # Ray 2.64 takes no limit of retries
        "sahi": ["sahi"],
        "fonts": ["pylopdf-fonts-zh-cn"],  # Noto Sans SC under the Open Font License, 17 MB
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26", "ruff"],
        # With "tritonclient[http,grpc]" the tests of the service ask it with NVIDIA's client too.
        "dev": ["pytest>=7.3", "ruff", "mypy", "httpx", "selenium", "safetensors", *ONNX, *SERVE],
    },
)
