"""See `python tools/gpu_check.py --help`."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

from ppgfl.cli.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("doctor", ["--gpu", *sys.argv[1:]], prog="gpu_check.py"))
