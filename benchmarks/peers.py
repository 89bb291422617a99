"""The peers' own environments, below benchmarks/.envs: made once, never mixed with ppgfl's."""
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
LONGEST = 1800  # seconds for an answer: a loader of PaddleDetection waits for ever where a transform of it fails
PACKAGES = {
    # On the newest Paddle that its training runs on.
    "paddledet": ("paddlepaddle==2.6.2", "paddledet==2.6.0", "scikit-learn", "setuptools<81"),
    # mmcv-lite has no compiled operators: GFL needs none (see worker.NamesOnly).
    "mmdet": ("torch==2.13.0", "torchvision", "mmdet==3.3.0", "mmcv-lite==2.1.0", "numpy<2", "opencv-python<4.12",
              "setuptools<81"),
    "openvino": ("openvino==2026.4.1", "numpy"),
}


def is_made(peer):
    """Whether its environment is there."""
    return (HERE / ".envs" / peer / "ready").exists()


def python_of(peer):
    """The interpreter of a peer's environment, which is made unless it is there."""
    folder = HERE / ".envs" / peer
    python = folder / "bin" / "python"
    if not is_made(peer):
        print(f"making {folder}: a few minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
        (folder / "ready").touch()
    return str(python)


def leave_out_lane_detection():
    """Let PaddleDetection's development branch be imported without imgaug, which only its lane detection needs."""
    for name in ("imgaug", "imgaug.augmentables", "imgaug.augmentables.lines", "imgaug.augmentables.segmaps",
                 "imgaug.augmenters"):
        sys.modules.setdefault(name, mock.MagicMock())


class Worker:
    """A subject of `worker.py` in a process of its own; each call is one run and returns what it answered.

    Args:
        python: the interpreter of the subject's environment.
        subject, question, settings: see `worker.py`.
        environment: all of the process's environment variables.
    """

    def __init__(self, python, subject, question, settings, environment):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), subject, question, json.dumps(settings)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=settings["scratch"], env=environment)
        self.setting = self._answer()["setting"]

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        """Raises RuntimeError when the subject ends, or has not answered for LONGEST seconds: then it is ended."""
        end = threading.Timer(LONGEST, self.process.kill)
        end.start()
        try:
            for line in self.process.stdout:
                if line.startswith("@@"):
                    return json.loads(line[2:])
        finally:
            end.cancel()
        self.log.seek(0)
        raise RuntimeError(f"the subject ended: ...{self.log.read()[-2000:]}")
