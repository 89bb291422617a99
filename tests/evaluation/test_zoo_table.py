"""The table of the model zoo, from a server on this machine."""
import csv
import json
import shutil

import numpy as np
import paddle
import pytest
import torch_files
from helpers import tiny_config

from ppgfl import CheckpointError, ConfigError, build_model, load_config
from ppgfl.config.load import find_config
from ppgfl.evaluation import zoo_table
from ppgfl.system import runtime
from ppgfl.weights import zoo

SMALL = ["EvalReader.sample_transforms.1.Resize.target_size=[64, 96]", "worker_num=0", "use_gpu=false",
         "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"]
TWO = ["gfl_r18vd_1x_coco", "gfl_r34vd_1x_coco"]


@pytest.fixture
def shortened(exported, monkeypatch):
    """Overrides for a row that takes a few seconds: no graph is made, and the export is there already."""
    monkeypatch.setattr(zoo_table, "export", lambda *args, output_dir, **kw: shutil.copytree(
        exported[0], output_dir, dirs_exist_ok=True))
    return ["engine=dygraph"]


@pytest.fixture
def reproduce(server, small_coco, r18vd_weights, tmp_path, monkeypatch):
    """A call over the small data set; the server has the weights of R18vd alone."""
    gflops = zoo_table.gflops
    monkeypatch.setattr(zoo_table, "gflops", lambda model: gflops(model, 128, 128))  # for the time it takes
    content = r18vd_weights.read_bytes()
    server.behave = lambda path, count: ((200, len(content), content, 0) if "r18vd" in path else (404, 0, b"", 0))

    def call(names=("gfl_r18vd_1x_coco",), more=()):
        return zoo_table.reproduce(names, overrides=[f"EvalDataset.dataset_dir={small_coco}", *SMALL, *more],
                                   output_dir=tmp_path / "zoo", mirror=f"{server.url}/", fps_images=3)

    call.server, call.folder = server, tmp_path / "zoo"
    return call


def test_the_models_are_the_released_ones():
    assert {model.name: model.ap for model in zoo.of_paddle()} == {
        "gfl_r50_fpn_1x_coco": 41.0, "gfl_r50_fpn_2x_coco_cwd": 44.0, "gfl_r101vd_fpn_mstrain_2x_coco": 46.8,
        "gfl_r34vd_1x_coco": 40.8, "gfl_r18vd_1x_coco": 36.6, "gfl_slim_ld_r18vd_1x_coco": 38.2,
        "gflv2_r50_fpn_1x_coco": 41.2}
    for model in zoo.of_paddle():
        pretrained = load_config(model.config)["pretrain_weights"].rsplit("/", 1)[1]
        assert zoo.address(pretrained) == load_config(model.config)["pretrain_weights"]
        assert zoo.address(model.name) == model.weights
    assert [sum(model.source == source for model in zoo.MODELS.values())
            for source in ("MMDetection", "GFocal", "GFocalV2")] == [10, 5, 6]
    assert zoo.address("yolov3") is zoo.address("mmdet_gfl_r50_1x") is None
    assert all(zoo.MODELS[name].config == name for name in zoo.SHORT_NAMES.values())
    assert {model.config for model in zoo.MODELS.values()} == set(zoo.COST)


@pytest.mark.parametrize("model", zoo.MODELS.values(), ids=zoo.MODELS)
def test_each_has_a_config_that_expects_its_ap(model):
    text = find_config(model.config).read_text(encoding="utf-8")
    if model.name != "gfl_r50_fpn_2x_coco_cwd":  # whose config is that of another row
        assert str(model.ap) in text.split("_BASE_")[0]
    assert len({each.file for each in zoo.MODELS.values()}) == len(zoo.MODELS)


def test_parameters_and_operations_as_listed():
    model = build_model(load_config("gfl_r18vd_1x_coco"))
    model.eval()
    millions = sum(np.prod(parameter.shape) for parameter in model.parameters()) / 1e6
    assert (round(millions, 1), round(zoo_table.gflops(model))) == zoo.COST["gfl_r18vd_1x_coco"]


@pytest.mark.drill
def test_a_row_is_measured_and_kept(reproduce):
    check_a_row(reproduce, [])


@pytest.mark.drill
def test_a_row_is_measured_and_kept_in_dygraph(reproduce, shortened):
    check_a_row(reproduce, shortened)


def check_a_row(reproduce, overrides):
    row, = reproduce(more=overrides)
    assert row["released AP"] == 36.6
    assert row["difference"] == pytest.approx(row["measured AP"] - 36.6, abs=2e-3)
    assert row["remark"] == "differs"
    assert row["FPS"] > 0 < row["FPS exported"]
    assert zoo_table.failed([row]) == [row]
    assert zoo_table.failed([{**row, "difference": 0.1}, {**row, "difference": -0.1}]) == []
    written = json.loads((reproduce.folder / "model_zoo.json").read_text(encoding="utf-8"))
    assert written == [row]
    with open(reproduce.folder / "model_zoo.csv", encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["model"] == "gfl_r18vd_1x_coco"
    table = (reproduce.folder / "model_zoo.md").read_text(encoding="utf-8")
    assert f"Paddle {paddle.__version__} on cpu" in table
    assert "| gfl_r18vd_1x_coco | PaddleDetection | 1x | 36.6 |" in table

    assert reproduce(more=overrides) == [row]  # nothing is measured again, so the speeds are the same
    assert sum(reproduce.server.requests.values()) == 1
    again, = reproduce(more=[*overrides, "EvalDataset.sample_num=3"])
    assert again["made from"] != row["made from"]


def test_a_model_that_fails_does_not_stop_the_others(reproduce, shortened):
    rows = reproduce(TWO, shortened)
    assert [row["model"] for row in rows] == TWO[::-1]  # the order of the zoo
    assert "404" in rows[0]["remark"]
    assert "measured AP" in rows[1]
    assert zoo_table.failed(rows)[0] is rows[0]
    assert "404" in (reproduce.folder / "model_zoo.md").read_text(encoding="utf-8")


def test_the_command(run_here, reproduce, small_coco, tmp_path):
    """The server has no such weights, so that nothing takes time."""
    done = run_here("ppgfl", "zoo", "gfl_r34vd_1x_coco", "--dataset_dir", small_coco, "--output_dir", "zoo", "--mirror",
                    reproduce.server.url, cwd=tmp_path)
    assert done.returncode == 1
    assert "| gfl_r34vd_1x_coco |" in done.stdout
    assert "404" in (tmp_path / "zoo" / "model_zoo.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def r18_of_pytorch(tmp_path_factory):
    """A stand-in for mmdet_ld_r18_1x."""
    widths = (64, 128, 256, 512)
    state = torch_files.gfl(torch_files.resnet((2, 2, 2, 2), widths, bottleneck=False), widths[1:], channels=256,
                            classes=80)
    for name, value in state.items():
        if value.ndim == 4:
            state[name] = value / np.sqrt(value.shape[1])
    return torch_files.save(tmp_path_factory.mktemp("pth") / "r18.pth", state).read_bytes()


def test_a_file_of_pytorch_is_converted_once(reproduce, shortened, r18_of_pytorch):
    content = r18_of_pytorch
    reproduce.server.behave = lambda path, count: (200, len(content), content, 0)
    row, = reproduce(["mmdet_ld_r18_1x"], shortened)
    assert (row["released AP"], row["trained by"], row["remark"]) == (36.5, "MMDetection", "differs")
    assert row["measured AP"] >= 0
    assert reproduce(["mmdet_ld_r18_1x"], shortened) == [row]
    assert sum(reproduce.server.requests.values()) == 1
    made, = (runtime.cache_folder() / "converted").glob("*.yml")
    assert load_config(made)["GFLHead"]["clip_boxes"]

    other, = reproduce(["mmdet_ld_r34_1x"], shortened)  # another network
    assert "is no GFL ResNet-34, taught by LD" in other["remark"]
    assert "measured AP" not in other


def test_a_file_of_mmdetection_that_was_changed_is_refused(r18_of_pytorch, tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(r18_of_pytorch)
    monkeypatch.setattr(zoo_table.download, "fetch", lambda address, verify: tmp_path / "a.pth")
    entry = zoo.MODELS["mmdet_ld_r18_1x"]
    with pytest.raises(CheckpointError, match="not the file that MMDetection released, .* begins with 330e6332"):
        zoo_table._fetch(entry, None)
    assert zoo_table._fetch(entry, "http://mirror.example.org") == tmp_path / "a.pth"  # with a warning


@pytest.mark.parametrize(("words", "count"),
                         [((), 7), (["GFocal"], 5), (["gfocal_r50_1x", "GFocal"], 5), (["all"], 28)])
def test_groups_of_models(words, count):
    assert len(zoo_table._chosen(words)) == count


def test_a_name_that_does_not_exist():
    with pytest.raises(ConfigError, match="gfl_r18: no released model; .*gfl_r18vd_1x_coco"):
        zoo_table.reproduce(["gfl_r18"])


def test_operations_and_parameters_by_hand():
    """One convolution after the other, from the shapes alone."""
    model = build_model(tiny_config())
    model.eval()
    assert zoo_table.gflops(model, 128, 128) == pytest.approx(by_hand(128) / 1e9, rel=1e-9)


def by_hand(size):
    def conv(c_in, c_out, kernel, side):
        return 2 * c_in * c_out * kernel**2 * side**2

    half, quarter = size // 2, size // 4
    total = conv(3, 32, 3, half) + conv(32, 32, 3, half) + conv(32, 64, 3, half)  # the vd stem
    c_in = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        side = quarter >> stage
        total += conv(c_in, width, 3, side) + conv(width, width, 3, side) + conv(c_in, width, 1, side)
        total += 2 * conv(width, width, 3, side)
        c_in = width
    sides = [size // stride for stride in (8, 16, 32, 64, 128)]
    total += sum(conv(width, 256, 1, side) for width, side in zip((128, 256, 512), sides))  # lateral
    total += sum(conv(256, 256, 3, side) for side in sides)  # outputs and extra levels
    towers = sum(8 * conv(256, 256, 3, side) for side in sides)
    return total + towers + sum(conv(256, 80 + 4 * 17, 3, side) for side in sides)
