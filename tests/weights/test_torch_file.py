"""Files of torch.save are read as torch reads them, from a writer that makes them without torch."""
import numpy as np
import pytest
import torch_files as made

from ppgfl import CheckpointError
from ppgfl.weights import safe_pickle
from ppgfl.weights.torch_file import Stranger, read

BIG = np.arange(24, dtype=np.float32).reshape(4, 6)
FORMATS = pytest.mark.parametrize("write", [made.write_zip, made.write_legacy])


def arrays(path):
    content, array = read(path)
    return {name: array(name, value) for name, value in content["state_dict"].items()}


@FORMATS
def test_views_of_one_storage(tmp_path, write):
    views = {"whole": made.tensor("7", BIG), "turned": made.tensor("7", BIG, shape=(6, 4), strides=(1, 6)),
             "part": made.tensor("7", BIG, offset=8, shape=(2, 3), strides=(6, 1)),
             "steps": made.tensor("7", BIG, shape=(4, 3), strides=(6, 2)),
             "one": made.tensor("7", BIG, offset=5, shape=()),
             "none": made.tensor("7", BIG, shape=(0, 3)),
             "repeated": made.tensor("7", BIG, offset=2, shape=(2, 2), strides=(0, 1))}
    found = arrays(write(tmp_path / "a.pth", made.content(views), {"7": BIG}))
    wanted = {"whole": BIG, "turned": BIG.T, "part": BIG[1:3, 2:5], "steps": BIG[:, ::2], "one": np.float32(5),
              "none": np.zeros((0, 3)), "repeated": [[2, 3], [2, 3]]}
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].flags.c_contiguous
        assert found[name].shape == np.shape(value)


@FORMATS
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "b1"])
def test_numbers_of_other_types_keep_their_values(tmp_path, write, dtype):
    value = BIG.astype(dtype)
    found = arrays(write(tmp_path / "a.pth", made.content({"x": made.tensor("0", value)}), {"0": value}))["x"]
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


@FORMATS
def test_bfloat16_becomes_float32(tmp_path, write):
    value = (BIG.view(np.uint32) >> 16).astype(np.uint16)
    found = arrays(write(tmp_path / "a.pth", made.content({"x": made.tensor("0", value)}), {"0": value}))["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, BIG)


def test_a_file_of_a_big_endian_machine(tmp_path):
    path = made.write_zip(tmp_path / "a.pth", made.content({"x": made.tensor("0", BIG)}), {"0": BIG}, order="big")
    assert BIG.astype(">f4").tobytes() in path.read_bytes()
    np.testing.assert_array_equal(arrays(path)["x"], BIG)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_legacy_file_is_known_with_any_protocol(tmp_path, protocol):
    content = made.content({"x": made.tensor("0", BIG)})
    path = made.write_legacy(tmp_path / "a.pth", content, {"0": BIG}, protocol=protocol)
    np.testing.assert_array_equal(arrays(path)["x"], BIG)


@FORMATS
def test_objects_of_mmengine_are_passed_over(tmp_path, write):
    """As a checkpoint of MMDetection 3 holds them: a history with methods of its class, counters, schedules."""
    history = (b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81" + made.mapping({
        "_log_history": made.plain(np.arange(3.0)), "_statistics_methods": made.mapping({
            "mean": made.call("__builtin__.getattr", b"cmmengine.logging.history_buffer\nHistoryBuffer\n",
                              made.plain("mean"))})}) + b"b")
    others = {"message_hub": made.mapping({"log_scalars": made.mapping({"train/loss": history})}),
              "param_schedulers": b"]" + made.mapping({"milestones": made.call("collections.Counter", b"}")}) + b"a",
              "optimizer": made.mapping({"state": made.call("collections.defaultdict", b"c__builtin__\ndict\n")}),
              "size": made.call("torch.Size", made.plain((2, 3))), "dtype": b"ctorch\nfloat32\n",
              "seed": made.plain(np.float64(1)), "folder": made.call("pathlib.PosixPath", made.plain("a"))}
    state = {"x": made.call("torch._utils._rebuild_parameter", made.tensor("0", BIG), made.plain(True),
                            call_of_ordered_dict())}
    path = write(tmp_path / "a.pth", made.content(state, **others), {"0": BIG})
    content, array = read(path)
    np.testing.assert_array_equal(array("x", content["state_dict"]["x"]), BIG)
    assert isinstance(content["message_hub"]["log_scalars"]["train/loss"], Stranger)
    assert content["size"] == (2, 3)


def call_of_ordered_dict():
    return made.call("collections.OrderedDict") + made.mapping({"_metadata": made.plain({"": {"version": 1}})}) + b"b"


@pytest.mark.parametrize(("data", "says"), [
    (b"", "is empty"), (b"<!DOCTYPE html>", "is no file of torch.save"), (b"PK\x03\x04" + bytes(50), "damaged"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"ustar" * 100, "is no file of torch.save")])
def test_what_is_no_file_of_torch(tmp_path, data, says):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        read(tmp_path / "a.pth")


@FORMATS
def test_cut_and_damaged_files(tmp_path, write):
    data = write(tmp_path / "a.pth", made.content({"x": made.tensor("0", BIG)}), {"0": BIG}).read_bytes()
    for end in range(1, len(data), 7):
        (tmp_path / "cut.pth").write_bytes(data[:end])
        with pytest.raises(CheckpointError, match="cut.pth"):
            read(tmp_path / "cut.pth")
    if write is made.write_zip:  # which has sums of its parts
        at = data.index(BIG.tobytes())
        (tmp_path / "a.pth").write_bytes(data[:at + 9] + b"\xff" + data[at + 10:])
        with pytest.raises(CheckpointError, match="'x': damaged"):
            arrays(tmp_path / "a.pth")


def test_a_torch_file_as_weights_names_the_command(tmp_path):
    for write in (made.write_zip, made.write_legacy):
        path = write(tmp_path / "a.pth", made.content({"x": made.tensor("0", BIG)}), {"0": BIG})
        with pytest.raises(CheckpointError, match="like a file of PyTorch.*`ppgfl convert .*a.pth NAME.pdparams`"):
            safe_pickle.load(path)
