"""Results in shards: rotated and resumed; a kill amid them is in tests/faults/test_kills.py."""
import pytest
from helpers import lines_of

from ppgfl import DataError
from ppgfl.inference.json_lines import JsonLines


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_shards_are_rotated_and_resumed(tmp_path):
    lines = JsonLines(tmp_path, shard=3)
    for i in range(7):
        lines.write({"file": f"bild {i} ü\n\u2028.jpg", "detections": []})
    lines.close()
    assert names(tmp_path) == ["results-00000.jsonl", "results-00001.jsonl", "results-00002.jsonl"]
    assert [line["file"] for line in lines_of(tmp_path)] == [f"bild {i} ü\n\u2028.jpg" for i in range(7)]
    with pytest.raises(DataError, match="--resume goes on with them"):
        JsonLines(tmp_path)
    lines = JsonLines(tmp_path, resume=True)
    assert lines.done == {f"bild {i} ü\n\u2028.jpg" for i in range(7)}
    lines.write({"file": "new"})
    lines.close()
    assert names(tmp_path)[-1] == "results-00003.jsonl"


def test_nothing_is_written_before_the_first_line(tmp_path):
    JsonLines(tmp_path / "new").close()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cut", ['{"file": "b', "\x00\x00", '{"file": "b", "detections": []}'])
def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    (tmp_path / "results-00000.jsonl").write_text('{"file": "a", "detections": []}\n' + cut)
    assert JsonLines(tmp_path, resume=True).done == {"a"}
    assert (tmp_path / "results-00000.jsonl").read_text() == '{"file": "a", "detections": []}\n'


@pytest.mark.parametrize("content", ["not json\n", "[]\n", '{"name": 1}\n'])
def test_a_file_of_another_kind_is_left_alone(tmp_path, content):
    (tmp_path / "results-00000.jsonl").write_text(content)
    with pytest.raises(DataError, match="not a file of results"):
        JsonLines(tmp_path, resume=True)
    assert (tmp_path / "results-00000.jsonl").read_text() == content


def test_resume_needs_shards(run_here, small_coco, tmp_path):
    done = run_here("infer", "-c", "gfl_r18vd_1x_coco", "--infer_dir", small_coco, "--resume", cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume goes with --save_results jsonl" in done.stderr


def test_a_run_goes_on_with_the_same_settings_alone(tmp_path):
    lines = JsonLines(tmp_path, settings={"tta": "None", "weights": "a.pdparams"})
    lines.write({"file": "a"})
    lines.close()
    assert JsonLines(tmp_path, resume=True, settings={"tta": "None", "weights": "a.pdparams"}).done == {"a"}
    with pytest.raises(DataError, match="were made with tta None, and now it is flip"):
        JsonLines(tmp_path, resume=True, settings={"tta": "flip", "weights": "a.pdparams"})
    (tmp_path / "results-settings.json").write_text("{", encoding="utf-8")  # or of an earlier version, without the file
    assert JsonLines(tmp_path, resume=True, settings={"tta": "flip"}).done == {"a"}
