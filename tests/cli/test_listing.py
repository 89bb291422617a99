"""`ppgfl models` and `ppgfl configs`."""
from ppgfl.cli.commands import entry
from ppgfl.system import framework
from ppgfl.weights.download import cached_path
from ppgfl.weights.zoo import MODELS, SHORT_NAMES


def test_the_models(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path))
    monkeypatch.setattr(framework, "import_paddle", lambda: 1 / 0)  # a list takes no seconds
    here = cached_path(MODELS["gfl_r18vd_1x_coco"].weights)
    here.parent.mkdir(parents=True)
    here.touch()
    assert entry(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:len(MODELS) + 1]] == list(MODELS)
    for word, name in SHORT_NAMES.items():
        line, = [line for line in lines if line.startswith(f"{name} ")]
        assert word in line.split()
        assert str(MODELS[name].ap) in line
        assert line.endswith(" yes") is (name == "gfl_r18vd_1x_coco")


def test_the_configs(capsys):
    assert entry(["configs"]) == 0
    row = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if line}
    assert row["gfl_r101vd_fpn_mstrain_2x_coco"].startswith("46.8 GFL, ResNet-101-vd, 24 epochs with images")
    assert row["shapes_gflv2"] == "The same with GFLv2's quality predictor"
    assert row["gfl_r101_dcn_c3-c5_ms2x"].startswith("47.2 GFL, ResNet-101 with deformable convolutions")
    assert "coco_detection" not in row  # a part of configs
