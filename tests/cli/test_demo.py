"""`ppgfl demo`: its commands follow each other, on a few pictures and for one epoch."""
from ppgfl import cli
from ppgfl.cli import demo
from ppgfl.data.shapes import make_shapes


def test_it_trains_evaluates_detects_and_says_that_one_epoch_is_not_enough(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_shapes("output/shapes", train=8, val=2)  # the demo keeps what is there

    def main(command, arguments, prog):
        commands.append(command)
        more = ["epoch=1", "worker_num=0"] if command == "train" else ["engine=dygraph"]
        return cli.main(command, [*arguments, "-o", *more], prog=prog)

    commands = []
    assert demo.run(main) == 1
    assert commands == ["train", "eval", "infer"]
    assert len(list((tmp_path / "output" / "demo" / "pictures").glob("*.png"))) == 2
    assert (tmp_path / "output" / "demo" / "shapes_gfl" / "report" / "report.html").is_file()
    out, errors = capsys.readouterr()
    assert "AP 0.0" in out
    assert "AP is below the 0.6 that this demo reaches" in errors
