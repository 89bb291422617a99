"""Class names inside a .pdparams file."""
import pickle

import numpy as np
import pytest

from ppgfl import CheckpointError
from ppgfl.weights.checkpoint import read, read_named
from ppgfl.weights.class_names import ENTRY, to_array


def write(path, **entries):
    path.write_bytes(pickle.dumps({"w": np.ones(2, np.float32), **entries}, protocol=2))
    return path


@pytest.mark.parametrize("names", [["cat", "dog"], ["猫", "a, b", "\n", '"'], []])
def test_names_come_back(tmp_path, names):
    path = write(tmp_path / "a.pdparams", **{ENTRY: to_array(names)})
    assert read_named(path)[1] == names
    assert set(read(path)) == {"w"}
    assert read_named(write(tmp_path / "b.pdparams"))[1] is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b"null"])
def test_an_entry_that_holds_no_names_is_refused(tmp_path, data):
    with pytest.raises(CheckpointError, match=r"a.pdparams: entry 'class_names@@' holds no class names"):
        read_named(write(tmp_path / "a.pdparams", **{ENTRY: np.frombuffer(data, np.uint8)}))
