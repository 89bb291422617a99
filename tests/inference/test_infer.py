import csv
import json
import os
import sys

import cv2
import numpy as np
import pytest
from helpers import files_of_all_names, lines_of, run_tool, tiny_config

from ppgfl import ConfigError, DataError, Detections, Detector, load_config
from ppgfl.data.image import read_images
from ppgfl.inference import infer as infer_module
from ppgfl.inference.detector import RowDetector
from ppgfl.inference.draw import class_color
from ppgfl.inference.infer import infer

OVERRIDES = ["TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "use_gpu=false", "engine=dygraph"]


@pytest.fixture(scope="module")
def detector(r18vd_weights):
    return Detector("gfl_r18vd_1x_coco", weights=r18vd_weights, overrides=OVERRIDES)


@pytest.fixture
def picture(small_coco):
    return sorted((small_coco / "val2017").iterdir())[0]


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def test_a_path_an_array_and_a_list_give_the_same(detector, picture):
    by_path, by_array = detector(str(picture)), detector(read(picture))
    in_list = detector([picture, read(picture)])
    assert len(by_path) == 100
    for other in (by_array, *in_list):
        np.testing.assert_array_equal(by_path.boxes, other.boxes)
        np.testing.assert_array_equal(by_path.scores, other.scores)
    assert by_path.boxes.shape == (100, 4)
    assert (np.diff(by_path.scores) <= 0).all()
    assert by_path.names[0] == detector.class_names[by_path.labels[0]]
    assert detector([]) == []


def test_batches_of_different_sizes_of_images(r18vd_weights, small_coco):
    one = Detector("gfl_r18vd_1x_coco", r18vd_weights, [*OVERRIDES, "TestReader.batch_size=2"])
    found = one(sorted((small_coco / "val2017").iterdir()))
    assert [f.path.rsplit("_", 1)[1] for f in found] == [f"{i}é.jpg" for i in range(5)]


def test_boxes_are_in_pixels_of_the_original_image(r18vd_weights, picture):
    """Twice the pixels, the same network input: twice the coordinates."""
    image = np.kron(read(picture)[:60, :90], np.ones((2, 2, 1), np.uint8))
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_NEAREST)
    options = [*OVERRIDES, "TestReader.sample_transforms.1.Resize.interp=0"]
    detector = Detector("gfl_r18vd_1x_coco", r18vd_weights, options)
    large, small = detector(image), detector(half)
    np.testing.assert_allclose(large.boxes, 2 * small.boxes, atol=0.05)


@pytest.mark.parametrize("image", [
    np.zeros((5, 5, 3)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), 5])
def test_other_things_are_refused(detector, image):
    with pytest.raises(DataError, match="cannot detect on"):
        detector(image)


def test_grey_arrays_are_images(detector):
    assert len(detector(np.zeros((50, 60), np.uint8)).boxes) == len(detector(np.zeros((50, 60, 3), np.uint8)).boxes)


def some_detections(**options):
    return Detections.from_rows(np.array([[2, 0.4, 1, 2, 30, 40], [0, 0.9, 5, 5, 20, 20]], np.float32),
                                ["cat", "dog"], **options)


def test_detections_sort_name_filter_and_serialise():
    found = some_detections(path="a.jpg")
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    assert found.names == ["cat", "class 2"]
    assert len(found.above(0.5)) == 1
    assert json.loads(found.to_json()) == {"file": "a.jpg", "detections": [
        {"label": 0, "name": "cat", "score": 0.9, "box": [5, 5, 20, 20]},
        {"label": 2, "name": "class 2", "score": 0.4, "box": [1, 2, 30, 40]}]}


@pytest.mark.parametrize("name", ["行人", "\ud800", "\x1b[31m\n", "\u202egpj"])
def test_any_name_can_be_printed_and_read_back(name):
    found = Detections.from_rows(np.array([[0, 0.9, 5, 5, 20, 20]], np.float32), [name], path="a\udcff\n.jpg")
    text = found.to_json().encode("utf-8")
    assert json.loads(text) == {"file": "a\udcff\n.jpg", "detections": [
        {"label": 0, "name": name, "score": 0.9, "box": [5, 5, 20, 20]}]}
    assert repr(found).isprintable()


def test_drawing_marks_the_boxes_and_leaves_the_image_alone():
    image = np.full((60, 80, 3), 128, np.uint8)
    drawn = some_detections(image=image).draw(0.0)
    assert (image == 128).all()
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[40, 15], class_color(2))  # bottom edge of the box of class 2
    only_best = some_detections(image=image).draw(0.5)
    np.testing.assert_array_equal(only_best[40, 15], (128, 128, 128))
    assert len({class_color(label) for label in range(80)}) == 80


def test_huge_and_outside_boxes_can_be_drawn():
    rows = np.array([[0, 0.9, -1e6, -50, 1e7, 20], [0, 0.8, 500, 500, 600, 600]], np.float32)
    found = Detections.from_rows(rows, ["a name longer than the picture"], image=np.zeros((9, 9, 3), np.uint8))
    assert found.draw(0).shape == (9, 9, 3)


def infer_config():
    return tiny_config()


@pytest.mark.parametrize(("kind", "name"), [("json", "results.json"), ("csv", "results.csv"), ("coco", "bbox.json")])
def test_results_in_three_formats(kind, name, small_coco, r18vd_weights, tmp_path):
    found = infer(infer_config(), str(small_coco / "val2017"), weights=r18vd_weights, output_dir=tmp_path / "out",
                  draw_threshold=0.1, save_results=kind, save_threshold=0.05)
    pictures = sorted(p.name for p in (tmp_path / "out").glob("*.jpg"))
    assert pictures == [f"bild_{i}é.jpg" for i in range(5)]
    count = sum(len(one) for one in found)
    assert all(one.scores.min() >= 0.05 for one in found if len(one))
    text = (tmp_path / "out" / name).read_text(encoding="utf-8")
    if kind == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert set(rows[0]) == {"file", "label", "name", "score", "x1", "y1", "x2", "y2"}
    elif kind == "json":
        rows = [d for image in json.loads(text) for d in image["detections"]]
        assert [image["file"] for image in json.loads(text)] == [one.path for one in found]
    else:
        rows = json.loads(text)
        assert {"image_id", "category_id", "bbox", "score"} == set(rows[0])
    assert len(rows) == count


def test_equal_names_in_sub_folders_do_not_collide(small_coco, r18vd_weights, tmp_path):
    source = sorted((small_coco / "val2017").iterdir())[0].read_bytes()
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "same.jpg").write_bytes(source)
    infer(infer_config(), str(tmp_path / "in"), weights=r18vd_weights, output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "a" / "same.jpg").is_file()
    assert (tmp_path / "out" / "b" / "same.jpg").is_file()


def test_a_picture_never_replaces_its_image(small_coco, r18vd_weights):
    folder = small_coco / "val2017"
    before = [p.read_bytes() for p in sorted(folder.iterdir())]
    with pytest.raises(DataError, match="would replace the image"):
        infer(infer_config(), str(folder), weights=r18vd_weights, output_dir=folder)
    assert [p.read_bytes() for p in sorted(folder.iterdir())] == before


def test_class_names_follow_the_config(small_coco, r18vd_weights):
    cfg = load_config("gfl_r18vd_1x_coco", [*OVERRIDES, f"TestDataset.dataset_dir={small_coco}"])
    assert cfg["TestDataset"]["dataset_dir"] == str(small_coco)
    found = Detector("gfl_r18vd_1x_coco", r18vd_weights, [*OVERRIDES, f"TestDataset.dataset_dir={small_coco}"])
    assert found.class_names[0] == "class 0"


# --- the command, as a user runs it

def test_the_command_takes_a_list_and_a_folder(small_coco, r18vd_weights, tmp_path):
    names = sorted(p.name for p in (small_coco / "val2017").iterdir())[:2]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    done = run_tool("infer", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", *OVERRIDES,
                    "--infer_list", "list.txt", "--infer_dir", small_coco / "val2017", "--save_results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(p.name for p in (tmp_path / "output").iterdir()) == [*names, "results.json"]
    assert "2 pictures in" in done.stdout


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "give --infer_img"),
    (["--infer_img", "none.jpg"], "no such image or folder"),
    (["--infer_dir", "."], "holds no image"),
    (["--infer_list", "none.txt"], "no such file"),
    (["--infer_list", "empty.txt"], "the list is empty"),
    (["--infer_img", "cut.jpg"], "cut.jpg: the image is truncated"),
])
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, run_here, small_coco, r18vd_weights, tmp_path):
    check_bad_input(arguments, words, run_here, small_coco, r18vd_weights, tmp_path)


def test_bad_input_ends_the_process_with_one_line_and_exit_code_2(small_coco, r18vd_weights, tmp_path):
    check_bad_input(["--infer_img", "cut.jpg"], "cut.jpg: the image is truncated", run_tool, small_coco, r18vd_weights,
                    tmp_path)


def check_bad_input(arguments, words, run, small_coco, r18vd_weights, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    if "cut.jpg" in arguments:
        data = sorted((small_coco / "val2017").iterdir())[0].read_bytes()
        (tmp_path / "cut.jpg").write_bytes(data[:-40])
    done = run("infer", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", *OVERRIDES, *arguments,
               cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "output").exists()


# --- names of files


@pytest.fixture
def quick(monkeypatch):
    """`infer` with a detector that finds one thing in each image."""
    def opened(cfg, **_):
        def detect_records(records):
            for record, image in read_images(records):
                assert image.shape == (8, 9, 3)
                yield record["im_id"], ROWS

        return RowDetector(lambda images: [ROWS] * len(images), detect_records)

    monkeypatch.setattr(infer_module, "open_detector", opened)
    return lambda *args, **options: infer(tiny_config(), *args, **options)


ROWS = np.array([[0, 0.9, 1, 2, 5, 6]], np.float32)


def files_in(folder, kind):
    """The names of the images in the results that `infer` has written."""
    if kind == "csv":
        with open(folder / "results.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
            return [row["file"] for row in csv.DictReader(file)]
    if kind == "coco":
        files = {one["id"]: one["file_name"] for one in json.loads((folder / "images.json").read_text("utf-8"))}
        return [files[one["image_id"]] for one in json.loads((folder / "bbox.json").read_text("utf-8"))]
    return [line["file"] for line in (lines_of(folder) if kind == "jsonl"
                                      else json.loads((folder / "results.json").read_text("utf-8")))]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take any bytes as a name")
@pytest.mark.parametrize("kind", ["json", "csv", "coco", "jsonl"])
def test_each_image_has_a_result_under_its_name(quick, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = files_of_all_names(tmp_path / "in")
    for folder, out in (("in", tmp_path / "out"), ("./in/", tmp_path / "in" / "out")):
        for _ in range(2):  # the second time a folder of results is there, which is not read
            quick(folder, output_dir=out, save_results=kind, resume=kind == "jsonl")
            assert sorted(files_in(out, kind)) == sorted(os.path.join(folder, name) for name in names)
            pictures = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()]
            assert sorted(name for name in pictures if not name.endswith((".json", ".csv", ".jsonl"))) == sorted(names)


def test_names_that_a_picture_cannot_have_get_an_ending(quick, small_coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files_of_all_names(tmp_path / "in", 1)
    data = (tmp_path / "in" / "target" / "one.png").read_bytes()
    names = ["upload", "upload.png", "photo.dat", "x" * 255, "x" * 251 + ".dat", "results.json"]
    for name in names:
        (tmp_path / name).write_bytes(data)
    found = quick(names, output_dir="out", save_results="json")
    assert [one.path for one in found] == names
    pictures = sorted(name for name in os.listdir("out") if name != "results.json")
    assert {"upload.png", "upload.png.png", "photo.dat.png", "results.json.png"} < set(pictures)
    assert len(pictures) == len(names)
    assert all(read(tmp_path / "out" / name).shape == (8, 9, 3) for name in pictures)


def test_resume_knows_an_image_however_it_is_spelled(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = files_of_all_names(tmp_path / "in", 20)
    (tmp_path / "else").symlink_to(tmp_path / "in")
    (tmp_path / "other").mkdir()
    options = dict(output_dir=tmp_path / "out", save_results="jsonl", pictures=False)
    quick("in", **options)
    for place in ("./in", "in/../in", tmp_path / "in", "else"):
        quick(place, **options, resume=True)
    monkeypatch.chdir(tmp_path / "other")
    quick("../in", **options, resume=True)
    assert len(lines_of(tmp_path / "out")) == len(names) == 20


def test_a_broken_link_is_named(quick, tmp_path):
    files_of_all_names(tmp_path / "in", 1)
    for name, target in (("gone.png", "nowhere.png"), ("self.png", "self.png")):
        (tmp_path / "in" / name).symlink_to(target)
        for place in (tmp_path / "in", tmp_path / "in" / name):
            with pytest.raises(DataError, match=f"{name}: .* it is a link to {target}, which is not there"):
                quick(place, output_dir=tmp_path / "out")
        (tmp_path / "in" / name).unlink()


@pytest.mark.parametrize(("threshold", "words"), [
    (0.5, "1 boxes drawn"), (0.95, "0 boxes drawn: the best score is 0.900, and --draw_threshold is 0.95")])
def test_what_was_drawn_is_said(quick, tmp_path, caplog, threshold, words):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 9, 3), np.uint8))
    with caplog.at_level("INFO"):
        quick(str(tmp_path / "a.png"), output_dir=tmp_path / "out", draw_threshold=threshold)
    assert caplog.messages[-1] == words


@pytest.mark.parametrize("threshold", [-0.1, 50, float("nan")])
@pytest.mark.parametrize("name", ["draw_threshold", "save_threshold"])
def test_a_threshold_is_a_score(quick, name, threshold, tmp_path):
    with pytest.raises(ConfigError, match=f"--{name}: .*it is a score, 0 to 1"):
        quick(tmp_path, **{name: threshold})


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_an_image_of_pillow_is_taken_as_it_is(detector, picture, mode):
    image = pytest.importorskip("PIL.Image").open(picture).convert(mode)
    found, wanted = detector(image), detector(np.asarray(image.convert("RGB"))[..., ::-1].copy())
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    assert found.draw(0.5).shape == read(picture).shape


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_an_image_of_pillow_with_larger_values_is_refused(detector, mode):
    with pytest.raises(DataError, match=f"Pillow image of mode '{mode}'"):
        detector(pytest.importorskip("PIL.Image").new(mode, (9, 9)))


@pytest.fixture
def small_photos(tmp_path):
    """Of the size that `quick` asks for, in two folders, one of which is called like a folder of labels."""
    for name in ("voc/a.png", "voc/b.png", "x/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), np.zeros((8, 9, 3), np.uint8))
    return str(tmp_path / "in")


@pytest.mark.parametrize("kind", ["yolo", "labelme", "voc"])
def test_labels_are_saved_and_never_written_over(quick, kind, small_photos, tmp_path):
    quick(small_photos, output_dir=tmp_path / "out", save_results=kind, save_threshold=0.5, pictures=False)
    labels = [path for path in (tmp_path / "out" / kind).rglob("[ab].*") if path.suffix != ".png"]
    assert len(labels) == 3
    assert {path.suffix for path in labels} == {{"yolo": ".txt", "labelme": ".json", "voc": ".xml"}[kind]}
    with pytest.raises(DataError, match="is there already"):
        quick(small_photos, output_dir=tmp_path / "out", save_results=kind, pictures=False)


def test_pictures_do_not_lie_among_labels(quick, small_photos, tmp_path):
    with pytest.raises(DataError, match="would lie among the labels"):
        quick(small_photos, output_dir=tmp_path / "out", save_results="voc")
    assert not (tmp_path / "out").exists()


def test_a_table_is_saved(quick, small_photos, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    assert quick(small_photos, output_dir=tmp_path / "out", save_results="parquet") == []
    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert table["file"] == [os.path.join(small_photos, name) for name in ("voc/a.png", "voc/b.png", "x/a.png")]
    assert table["x2"] == [5] * 3
