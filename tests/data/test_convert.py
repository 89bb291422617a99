"""VOC, YOLO and labelme -> COCO: numbers by hand, every layout that tools write, and every kind of broken file counted
instead of fatal."""
import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import image, run_ppgfl, text, voc_object

from ppgfl import DataError, cli
from ppgfl.data.convert import convert, convert_splits
from ppgfl.data.dataset import COCODataSet, ImageFolder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data ünïcode"


def boxes(content):
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {one["id"]: one["file_name"] for one in content["images"]}
    return sorted((files[a["image_id"]], names[a["category_id"]], *a["bbox"]) for a in content["annotations"])


def test_voc(root, tmp_path):
    image(root / "JPEGImages" / "a.jpg")
    image(root / "JPEGImages" / "b.png")
    text(root / "Annotations" / "a.xml", "<annotation>" + voc_object("dog", 1, 1, 100, 50)
         + voc_object("cat", 11, 21, 20, 30)
         + voc_object("dog", 90, 40, 130, 60) + voc_object("dog", 200, 200, 210, 210) + voc_object("cat", "x", 1, 2, 3)
         + "<object><name>cat</name></object></annotation>")
    text(root / "Annotations" / "b.xml", "<annotation></annotation>")
    text(root / "Annotations" / "c.xml", "<annotation></annotation>")  # no such image
    text(root / "Annotations" / "d.xml", "<annotation>")
    image(root / "JPEGImages" / "d.jpg")
    text(root / "Annotations" / "e.xml",
         '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>')
    image(root / "JPEGImages" / "e.jpg")
    content, rejected = convert("voc", root, tmp_path / "out" / "a.json")
    assert boxes(content) == [("JPEGImages/a.jpg", "cat", 10, 20, 10, 10), ("JPEGImages/a.jpg", "dog", 0, 0, 100, 50),
                              ("JPEGImages/a.jpg", "dog", 89, 39, 11, 11)]
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert len(content["images"]) == 2
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "file that cannot be used": 3, "box without a size, or outside of its image": 1,
        "object without a box (xmin is 'x', not a number)": 1, "object without a box (xmin is None, not a number)": 1}
    assert any("declares entities" in line for line in rejected["file that cannot be used"])
    dataset = COCODataSet(str(root), "", str(tmp_path / "out" / "a.json"), data_fields=["image", "gt_bbox", "gt_class"])
    assert dataset.class_names == ["cat", "dog"]
    assert len(dataset.records) == 1  # the other has no box


def test_yolo(root, tmp_path):
    image(root / "images" / "train" / "a.jpg")
    image(root / "images" / "train" / "b.jpg")
    image(root / "images" / "train" / "c.JPG".lower())
    text(root / "data.yaml", "names: {1: cat, 0: dog}\nnc: 2\n")
    text(root / "labels" / "train" / "a.txt",
         "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6\n\n7 0.5 0.5 0.1 0.1\n"
         "0 0.5 0.5\nzero 1 1 1 1\n0 nan 0.5 0.1 0.1\n0 0.98 0.5 0.2 0.2\n")
    text(root / "labels" / "train" / "b.txt", "")
    content, rejected = convert("yolo", root, tmp_path / "a.json")
    assert boxes(content) == [("images/train/a.jpg", "cat", 10, 10, 30, 20),
                              ("images/train/a.jpg", "dog", 40, 15, 20, 20),
                              ("images/train/a.jpg", "dog", 88, 20, 12, 10)]
    assert [category["name"] for category in content["categories"]] == ["dog", "cat"]
    assert len(content["images"]) == 3  # with the empty one and the one without a text
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "object of a class that is not listed (7)": 1, "line that is not five numbers": 3}


def test_yolo_without_names(root, tmp_path):
    image(root / "a.jpg")
    text(root / "a.txt", "1 0.5 0.5 1 1")
    with pytest.raises(DataError, match="give --classes FILE"):
        convert("yolo", root, tmp_path / "a.json")
    text(tmp_path / "names.txt", "dog\ncat\n")
    content, _ = convert("yolo", root, tmp_path / "a.json", classes=tmp_path / "names.txt")
    assert boxes(content) == [("a.jpg", "cat", 0, 0, 100, 50)]


def test_labelme(root, tmp_path):
    image(root / "a.jpg")
    image(root / "sub" / "other name.png")
    shapes = [{"label": "dog", "points": [[10, 20], [30, 5]], "shape_type": "rectangle"},
              {"label": "cat", "points": [[1, 2], [9, 3], [5, 12]], "shape_type": "polygon"},
              {"label": "dog", "points": [[50, 25], [53, 29]], "shape_type": "circle"},
              {"label": "dog", "points": [[50, 25]], "shape_type": "point"},
              {"label": "dog", "points": "none"}, "no shape"]
    text(root / "a.json", json.dumps({"shapes": shapes, "imagePath": "..\\somewhere\\a.jpg"}))
    text(root / "sub" / "b.json", json.dumps({"shapes": [], "imagePath": "other name.png"}))
    text(root / "sub" / "c.json", "{")
    text(root / "sub" / "no labelme.json", "{}")
    content, rejected = convert("labelme", root, tmp_path / "a.json")
    assert boxes(content) == [("a.jpg", "cat", 1, 2, 8, 10), ("a.jpg", "dog", 10, 5, 20, 15),
                              ("a.jpg", "dog", 45, 20, 10, 10)]
    assert {one["file_name"] for one in content["images"]} == {"a.jpg", "sub/other name.png"}
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "file that cannot be used": 1, "shape that has no box (point)": 1, "shape without points": 2}


def test_a_class_that_is_not_listed(root, tmp_path):
    image(root / "a.jpg")
    objects = voc_object("dog", 1, 1, 10, 10) + voc_object("cat", 1, 1, 10, 10)
    text(root / "a.xml", f"<annotation>{objects}</annotation>")
    text(tmp_path / "names.txt", "bird\ncat\n")
    content, rejected = convert("voc", root, tmp_path / "a.json", classes=tmp_path / "names.txt")
    assert [a["category_id"] for a in content["annotations"]] == [2]
    assert list(rejected) == ["object of a class that is not listed (dog)"]


def test_a_damaged_image_is_left_out(root, tmp_path):
    image(root / "a.jpg")
    (root / "b.jpg").write_bytes(b"no image")
    for name in "ab":
        text(root / f"{name}.xml", "<annotation>" + voc_object("dog", 1, 1, 10, 10) + "</annotation>")
    content, rejected = convert("voc", root, tmp_path / "a.json")
    assert len(content["images"]) == 1
    assert "b.jpg" in rejected["file that cannot be used"][0]


def test_the_command_writes_nothing_over(run_here, root, tmp_path):
    image(root / "a.jpg")
    text(root / "a.xml", "<annotation>" + voc_object("dog", 1, 1, 10, 10) + "</annotation>")
    done = run_ppgfl("data", "convert", "--from", "voc", root, tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert "1 images, 0 of them without a box, 1 boxes" in done.stdout + done.stderr
    before = (tmp_path / "a.json").read_text(encoding="utf-8")
    for arguments, words in (([root, tmp_path / "a.json"], "is not written over"),
                             ([tmp_path / "none", "b.json"], "no such folder"),
                             ([root, tmp_path / "b.json", "--classes", "none.txt"], "no such file")):
        done = run_here("ppgfl", "data", "convert", "--from", "voc", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == before
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing that looks like labelme"):
        convert("labelme", tmp_path / "empty", tmp_path / "b.json")


# --- what the command says and how it ends


@pytest.fixture
def command(capsys):
    """ppgfl data convert --from ... -> (exit code, what it printed)."""
    def run(*words):
        code = cli.main("data", ["convert", "--from", *map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return code, printed.out + printed.err
    return run


def voc(path, *names, filename=None, encoding="utf-8", more=""):
    """A VOC file with one box 10 10 20 20 (x y w h) per class."""
    objects = "".join(voc_object(name, 11, 11, 30, 30) for name in names)
    title = f"<filename>{filename}</filename>" if filename else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation>{title}{more}{objects}</annotation>'
                     .encode(encoding))


def labelme(path, image_path, shapes=(("dog", "rectangle", [[10, 20], [30, 40]]),), **more):
    content = {"imagePath": image_path, "imageData": None, **more,
               "shapes": [{"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes]}
    text(path, json.dumps(content))


def yolo(root, *names, images="images", labels="labels", line="0 0.2 0.4 0.2 0.4"):
    """Images and texts with one box 10 10 20 20 (x y w h) each."""
    for name in names:
        image(root / images / f"{name}.png")
        text(root / labels / f"{name}.txt", line)


def counts(content):
    return len(content["images"]), len(content["annotations"])


def files(content):
    return [one["file_name"] for one in content["images"]]


def test_the_lines_for_a_config_can_be_pasted(root, tmp_path, command):
    yolo(root, "train/a", "val/b")
    text(root / "data.yaml", "train: images/train\nval: images/val\nnames: [dog, cat]\n")
    code, said = command("yolo", root, tmp_path / "out")
    assert code == 0
    pasted = yaml.safe_load("\n".join(re.findall("in a config: (.*)", said)))
    assert pasted["num_classes"] == 2
    for section, name in (("TrainDataset", "images/train/a.png"), ("EvalDataset", "images/val/b.png")):
        dataset = COCODataSet(**pasted[section], data_fields=["image", "gt_bbox"])
        assert [Path(record["im_file"]) for record in dataset.records] == [root / name]
        assert dataset.class_names == ["dog", "cat"]
    before = (tmp_path / "out" / "instances_val.json").read_bytes()
    (tmp_path / "out" / "instances_train.json").unlink()
    code, said = command("yolo", root, tmp_path / "out")
    assert code == 2
    assert "instances_val.json: is there already" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["instances_val.json"]
    assert (tmp_path / "out" / "instances_val.json").read_bytes() == before


def test_a_result_without_images_or_boxes_is_exit_code_1(root, tmp_path, command):
    voc(root / "a.xml", "dog")
    code, said = command("voc", root, tmp_path / "a.json")
    assert code == 1
    assert "1 x file that cannot be used" in said
    assert said.splitlines()[-1].endswith("a.json: not written, since there is no image for it")
    assert not (tmp_path / "a.json").exists()
    image(root / "a.png")
    voc(root / "a.xml")
    code, said = command("voc", root, tmp_path / "a.json")
    assert code == 1
    assert said.splitlines()[-1].endswith("a.json: none of its images has a box")
    yolo(tmp_path / "yolo", "train/a")
    text(tmp_path / "yolo" / "data.yaml", "train: images/train\nval: images/val\nnames: [dog]\n")
    code, said = command("yolo", tmp_path / "yolo", tmp_path / "out")  # its val is not there
    assert code == 1
    assert "key `val`: images/val is not there" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["instances_train.json"]


@pytest.mark.parametrize("words, wanted", [
    (["o.json", "--split", "0.5"], "give a folder as OUTPUT"), (["o", "--split", "1.5"], "between 0 and 1"),
    (["o", "--split", "nan"], "between 0 and 1"), (["o", "--split", "0.5", "--split", "0.2"], "between 0 and 1"),
    (["o", "--split", "none.txt"], "no such file"), (["o"], "nothing says which images are for training"),
    (["o", "--split", "0.5"], "cannot be divided"), (["a file"], "is a file"),
    (["o", "--split", "~nobody/a.txt"], "no such file")])
def test_a_wrong_output_or_split_is_one_line(root, tmp_path, command, monkeypatch, words, wanted):
    monkeypatch.chdir(tmp_path)
    text(tmp_path / "a file", "")
    image(root / "a.png")
    voc(root / "a.xml", "dog")
    code, said = command("voc", root, *words)
    assert code == 2
    assert wanted in said.splitlines()[-1]
    assert not (tmp_path / "o").exists()


# --- class lists


def test_a_class_list_may_have_a_byte_order_mark_and_windows_line_ends(root, tmp_path):
    image(root / "a.png")
    voc(root / "a.xml", "dog", "cat")
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\n")
    content, rejected = convert("voc", root, tmp_path / "a.json", classes=tmp_path / "names.txt")
    assert [one["name"] for one in content["categories"]] == ["dog", "cat"]
    assert not rejected


@pytest.mark.parametrize("content, words", [
    ("圆盘\n方块\n".encode("gbk"), "save it as UTF-8"), ("dog\ncat\n".encode("utf-16"), "save it as UTF-8"),
    (b"", "lists no class"), (b"dog\ncat\ndog\n", "the class 'dog' stands there twice")])
def test_a_class_list_that_cannot_be_used_is_one_line(root, tmp_path, command, content, words):
    yolo(root, "a")
    (tmp_path / "names.txt").write_bytes(content)
    code, said = command("yolo", root, tmp_path / "a.json", "--classes", tmp_path / "names.txt")
    assert code == 2
    assert words in said
    assert f"{tmp_path / 'names.txt'}: " in said
    assert said.count("\n") == 1


# --- VOC


@pytest.mark.parametrize("images, annotations", [
    ("images", "annotations"), ("JPEGImages", "Annotations"), ("images/train", "annotations/train"), ("train", "train"),
    ("JPEGImages/cam1", "Annotations"), ("pictures", "xml"), (".", "labels"), ("set/images", "set/labels")])
def test_voc_layouts(root, tmp_path, images, annotations):
    image(root / images / "a.png")
    voc(root / annotations / "a.xml", "dog", filename="a.png")
    content, rejected = convert("voc", root, tmp_path / "a.json")
    assert boxes(content) == [((Path(images) / "a.png").as_posix(), "dog", 10, 10, 20, 20)]
    assert not rejected


def test_voc_images_are_those_that_the_file_names(root, tmp_path):
    """<filename> counts; then the name of the XML file, when no image is called as <filename> says."""
    for name in ("cam_0.png", "cam_1.png", "label2.png", "label3.png", "photo.v1.png"):
        image(root / "images" / name)
    image(root / "images" / "upper.PNG")
    for i, name in enumerate(["cam_0.png", "C:\\pictures\\cam_1.png", "gone.png", None, "photo.v1", "UPPER.png"]):
        voc(root / "xml" / f"label{i}.xml", f"class{i}", filename=name)
    image(root / "masks" / "label3.bmp")  # not in a folder for images
    content, rejected = convert("voc", root, tmp_path / "a.json")
    assert [(file, name) for file, name, *_ in boxes(content)] == [
        ("images/cam_0.png", "class0"), ("images/cam_1.png", "class1"), ("images/label2.png", "class2"),
        ("images/label3.png", "class3"), ("images/photo.v1.png", "class4"), ("images/upper.PNG", "class5")]
    assert not rejected


def test_voc_images_of_one_name(root, tmp_path):
    """The nearest counts, never one of another split; two that are equally near are a reason to leave the file out."""
    years = ("VOC2007", "VOC2012")
    for year in years:
        image(root / year / "JPEGImages" / "1.png")
        voc(root / year / "Annotations" / "1.xml", year, filename="1.png")
    content, _ = convert("voc", root, tmp_path / "a.json")
    assert [box[:2] for box in boxes(content)] == [(f"{year}/JPEGImages/1.png", year) for year in years]
    for camera in ("cam1", "cam2"):
        image(tmp_path / "cameras" / "images" / camera / "1.png")
        voc(tmp_path / "cameras" / "xml" / camera / "1.xml", camera)
    content, _ = convert("voc", tmp_path / "cameras", tmp_path / "cameras.json")
    assert [box[:2] for box in boxes(content)] == [("images/cam1/1.png", "cam1"), ("images/cam2/1.png", "cam2")]
    image(tmp_path / "other" / "images" / "val" / "1.png")
    voc(tmp_path / "other" / "annotations" / "train" / "1.xml", "dog")
    content, rejected = convert("voc", tmp_path / "other", tmp_path / "b.json")
    assert not content["images"]
    assert "its image was not found" in rejected["file that cannot be used"][0]
    for folder in ("a", "b"):
        image(tmp_path / "twice" / folder / "1.png")
    voc(tmp_path / "twice" / "xml" / "1.xml", "dog", filename="1.png")
    _, rejected = convert("voc", tmp_path / "twice", tmp_path / "c.json")
    assert re.search("1.png may be .*/b/1.png or .*/a/1.png", rejected["file that cannot be used"][0])


def test_voc_lists_divide_the_images(root, tmp_path):
    """ImageSets/Main of each year, whose ids are of that year only; also for XML files called unlike their images."""
    for year in ("VOC2007", "VOC2012"):
        for i in range(4):
            image(root / year / "JPEGImages" / f"cam{i}.png")
            voc(root / year / "Annotations" / f"00{i}.xml", f"{year} {i}", filename=f"cam{i}.png")
        main = root / year / "ImageSets" / "Main"
        text(main / "train.txt", "000\n001\r\n")
        text(main / "val.txt", "\ufeff002\n")
        text(main / "trainval.txt", "000\n001\n002\n")
        text(main / "dog_train.txt", "000  1\n001 -1\n")
        text(root / year / "ImageSets" / "Segmentation" / "train.txt", "003\n")
    text(root / "VOC2012" / "ImageSets" / "Main" / "val.txt", "002\n009\n")
    contents, rejected = convert_splits("voc", root, tmp_path / "out")
    names = {split: [name for _, name, *_ in boxes(content)] for split, content in contents.items()}
    assert names == {"train": ["VOC2007 0", "VOC2007 1", "VOC2012 0", "VOC2012 1"], "val": ["VOC2007 2", "VOC2012 2"]}
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "image that is in none of train, val": 2, "line of a list that names no image that could be used": 1}
    assert len({json.dumps(content["categories"]) for content in contents.values()}) == 1
    for split, content in contents.items():
        assert json.loads((tmp_path / "out" / f"instances_{split}.json").read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("line", ["./images/{0}.png ./annotations/{0}.xml", "images/{0}.png", "{0}.png", "{0}",
                                  "annotations\\{0}.xml", "{0} 1"])
def test_lists_of_images(root, tmp_path, line):
    """As PaddleDetection, PaddleX, and VOC write them; the data set's own, or those of --split."""
    for name in ("a", "b", "two words"):
        image(root / "images" / f"{name}.png")
        voc(root / "annotations" / f"{name}.xml", "dog")
    for folder in (root, tmp_path / "elsewhere"):
        text(folder / "train_list.txt" if folder == root else folder / "train.txt", line.format("a") + "\n")
        text(folder / "valid.txt", line.format("b") + "\n" + ("images/two words.png\n" if " " not in line else ""))
    for i, split in enumerate([(), (tmp_path / "elsewhere" / "train.txt", tmp_path / "elsewhere" / "valid.txt")]):
        contents, _ = convert_splits("voc", root, tmp_path / str(i), split=[str(path) for path in split])
        assert files(contents["train"]) == ["images/a.png"]
        assert files(contents["val"]) == ["images/b.png", *(["images/two words.png"] if " " not in line else [])]


def test_an_image_in_two_lists_is_said(root, tmp_path, command):
    for name in "ab":
        image(root / f"{name}.png")
        voc(root / f"{name}.xml", "dog")
    text(root / "train.txt", "a\nb\n")
    text(root / "val.txt", "b\n")
    code, said = command("voc", root, tmp_path / "out")
    assert code == 0
    assert "1 x image that is in train and val: " in said
    code, said = command("voc", root, tmp_path / "all.json")
    assert "divides its images into train, val: a folder as OUTPUT gets a file of each" in said


def test_voc_encodings(root, tmp_path):
    for i, encoding in enumerate(["gb2312", "GBK", "utf-16", "shift_jis", "iso-8859-1"]):
        image(root / f"{i}.png")
        voc(root / f"{i}.xml", "café" if encoding.startswith("iso") else "猫", encoding=encoding)
    image(root / "more.png")
    (root / "more.xml").write_bytes(b'<?xml version="1.0" encoding="gb2312"?><annotation>'  # which has no such letter
                                     + voc_object("镕", 11, 11, 30, 30).encode("gbk") + b"</annotation>")
    for name, head, encoding in (("net", "utf-16", "utf-8"), ("bom", "gbk", "utf-8-sig"), ("wrong", "utf-8", "gbk"),
                                 ("unknown", "klingon", "utf-8")):
        image(root / f"{name}.png")
        (root / f"{name}.xml").write_bytes((f'<?xml version="1.0" encoding="{head}"?><annotation>'
                                            f'{voc_object("鸟", 11, 11, 30, 30)}</annotation>').encode(encoding))
    content, rejected = convert("voc", root, tmp_path / "a.json")
    assert [(file, name) for file, name, *_ in boxes(content)] == [
        ("0.png", "猫"), ("1.png", "猫"), ("2.png", "猫"), ("3.png", "猫"), ("4.png", "café"), ("bom.png", "鸟"),
        ("more.png", "镕"), ("net.png", "鸟")]
    wrong = sorted(rejected.pop("file that cannot be used"))
    assert not rejected
    assert "unknown.xml: declares the encoding klingon" in wrong[0]
    assert "wrong.xml: is not utf-8, the encoding that its head declares" in wrong[1]


def test_what_voc_files_say_besides(root, tmp_path, command):
    for name in "abc":
        image(root / "images" / f"{name}.png")
    size = "<size><width>{}</width><height>{}</height></size>"
    text(root / "a.xml", "<annotation>" + size.format(100, 50) + voc_object("dog", 11, 11, 30, 30).replace(
        "</object>", "<difficult>1</difficult></object>") + voc_object(" ", 1, 1, 5, 5) + "</annotation>")
    voc(root / "b.xml", "dog", more=size.format(50, 100))
    text(root / "other.xml", "<project/>")
    code, said = command("voc", root, tmp_path / "a.json")
    assert code == 0
    assert "2 images, 0 of them without a box, 2 boxes" in said
    assert "1 x object marked difficult, which is kept like any other" in said
    assert "1 x object without a name" in said
    assert f"1 x file that gives another size than its image has: its boxes may be wrong: {root / 'b.xml'}" in said
    assert f"1 x file that is not voc's and was not read: {root / 'other.xml'}" in said
    assert f"1 x image without an annotation file: {root / 'images' / 'c.png'}" in said


# --- YOLO: layouts


ULTRALYTICS = "path: {}\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: dog\n  1: cat\n"


@pytest.mark.parametrize("content", [
    ULTRALYTICS.format("."), ULTRALYTICS.format("../gone"), ULTRALYTICS.format("/content/mine"),
    "train: [images/train]\nval: [images/val]\nnc: 2\nnames: ['dog', 'cat']\n",
    "train: ../images/train\nval: ../images/val\ntest: ../images/test\nnames: [dog, cat]\n",
    "train: ./images/train/\nvalid: images\\val\nnames: {'0': dog, '1': cat}\n",
    "train: train.txt\nval: val.txt\nnames: [dog, cat]\n", "train: images/train\nval: val.txt\nnames: [dog, cat]\n",
    "names: [dog, cat]\n"])
def test_yolo_halves_of_one_data_yaml(root, tmp_path, content):
    """As Ultralytics and Roboflow write it: paths from the file's own folder, or with one ../ too many, or lists."""
    yolo(root, "train/a", "train/b", "val/c")
    text(root / "data.yaml", content)
    text(root / "train.txt", "./images/train/a.png\nimages/train/b.png\n")
    text(root / "val.txt", "images/val/c.png\n")
    contents, rejected = convert_splits("yolo", root, tmp_path / "out")
    assert boxes(contents["train"]) == [(f"images/train/{name}.png", "dog", 10, 10, 20, 20) for name in "ab"]
    assert boxes(contents["val"]) == [("images/val/c.png", "dog", 10, 10, 20, 20)]
    assert not rejected
    assert counts(convert("yolo", root, tmp_path / "all.json")[0]) == (3, 3)


def test_yolo_as_roboflow_exports_it(root, tmp_path):
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        yolo(root / split, name)
    text(root / "README.roboflow.txt", "Exported\n")
    text(root / "data.yaml",
         "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: [dog]\n")
    contents, rejected = convert_splits("yolo", root, tmp_path / "out")
    assert {split: files(content) for split, content in contents.items()} == {
        "train": ["train/images/a.png"], "val": ["valid/images/b.png"], "test": ["test/images/c.png"]}
    assert not rejected


def test_a_yolo_set_that_is_not_there_is_one_line(root, command, tmp_path):
    text(root / "data.yaml", ULTRALYTICS.format("../gone"))
    code, said = command("yolo", root, tmp_path / "out")
    assert code == 2
    assert "holds nothing that looks like yolo; key `train`: images/train is not there; key `val`" in said
    assert said.count("\n") == 1


def test_yolo_data_elsewhere_and_the_yaml_itself_as_source(root, tmp_path):
    yolo(root / "datasets" / "coco8", "train/a", "val/b")
    text(root / "cfg" / "coco8.yaml", ULTRALYTICS.format("../datasets/coco8"))
    text(root / "cfg" / "other.yaml", "names: [x]\n")
    with pytest.raises(DataError, match="which of coco8.yaml, other.yaml is meant"):
        convert("yolo", root / "cfg", tmp_path / "a.json")
    contents, _ = convert_splits("yolo", root / "cfg" / "coco8.yaml", tmp_path / "out")
    assert (files(contents["train"]), files(contents["val"])) == (["train/a.png"], ["val/b.png"])  # in coco8/images


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("half", ["labels/train", "images/train", "labels", "images", "train/images", "train/labels",
                                  "train"])
def test_one_half_of_a_yolo_set(root, tmp_path, half, classes):
    """The other folder is found, and data.yaml is looked for above; file_name starts from the folder of the images."""
    if half.startswith("train"):
        yolo(root / "train", "a", "b")
        yolo(root / "val", "c")
        text(root / "data.yaml", "train: ../train/images\nval: ../val/images\nnames: [dog]\n")
    else:
        yolo(root, "train/a", "train/b", *(["val/c"] if "/" in half else []))
        text(root / "data.yaml", ULTRALYTICS.format("."))
    text(tmp_path / "names.txt", "dog\ncat\n")
    content, rejected = convert("yolo", root / half, tmp_path / "a.json",
                                classes=tmp_path / "names.txt" if classes else None)
    assert counts(content) == (2, 2)
    assert {one["name"] for one in content["categories"]} <= {"dog", "cat"}
    assert not any(".." in name for name in files(content))
    assert not rejected


def test_a_data_yaml_above_counts_only_when_it_is_about_the_folder(root, tmp_path):
    yolo(root / "mine" / "train", "a")
    text(root / "other.yaml", "train: elsewhere\nnames: [wrong]\n")
    (root / "elsewhere").mkdir()
    with pytest.raises(DataError, match="has neither a data.yaml"):
        convert("yolo", root / "mine" / "train", tmp_path / "a.json")


def test_only_the_last_folder_called_labels_is_the_labels(tmp_path):
    root = tmp_path / "labels" / "images" / "set"
    yolo(root, "train/a")
    text(root / "data.yaml", "names: [dog]\n")
    image(tmp_path / "images" / "images" / "set" / "images" / "train" / "a.png", 10, 10)
    content, _ = convert("yolo", root, tmp_path / "a.json")
    assert boxes(content) == [("images/train/a.png", "dog", 10, 10, 20, 20)]
    yolo(tmp_path / "images" / "flat", "b", images=".", labels=".")  # beside each other, below a folder called images
    text(tmp_path / "images" / "flat" / "classes.txt", "dog\n")
    content, rejected = convert("yolo", tmp_path / "images" / "flat", tmp_path / "b.json")
    assert counts(content) == (1, 1)
    assert not rejected


def test_texts_that_are_no_labels(root, tmp_path, command):
    yolo(root, "a")
    text(root / "labels" / "gone.txt", "0 0.5 0.5 0.1 0.1")
    text(root / "README.txt", "All rights")
    text(root / "labels" / "classes.txt", "dog\n")
    (root / "labels" / "link.txt").symlink_to("nowhere.txt")
    image(root / "images" / "link.png")
    code, said = command("yolo", root, tmp_path / "a.json")
    assert code == 0
    assert "2 x file that cannot be used: " in said
    assert "gone.txt: its image was not found" in said
    assert "link.txt: No such file or directory" in said
    assert f"1 x text that belongs to no image and was not read: {root / 'README.txt'}" in said
    text(root / "more" / "labels" / "classes.txt", "cat\n")
    with pytest.raises(DataError, match="list different classes; give --classes"):
        convert("yolo", root, tmp_path / "b.json")


# --- YOLO: lines


def lines_of(root, tmp_path, lines, content="names: [dog]\n"):
    """{reason: number} and boxes of one text with these lines."""
    image(root / "images" / "a.png")
    (root / "labels").mkdir(parents=True)
    (root / "labels" / "a.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    text(root / "data.yaml", content)
    content, rejected = convert("yolo", root, tmp_path / "a.json")
    return [tuple(one["bbox"]) for one in content["annotations"]], {
        reason: len(examples) for reason, examples in rejected.items()}


def test_class_numbers_as_numpy_writes_them(root, tmp_path):
    found, rejected = lines_of(root, tmp_path, ["0.0 0.2 0.4 0.2 0.4", "0.000000e+00 0.2 0.4 0.2 0.4",
                                                "0.5 0.2 0.4 0.2 0.4", "-1.0 0.2 0.4 0.2 0.4"])
    assert found == [(10, 10, 20, 20)] * 2
    assert rejected == {"line that is not five numbers": 1, "object of a class that is not listed (-1)": 1}


POSE = "0 0.2 0.4 0.2 0.4 0.15 0.3 0.25 0.5"  # a box and two key points, or four corners


@pytest.mark.parametrize("content, line, wanted", [
    ("kpt_shape: [2, 2]", POSE, (10, 10, 20, 20)),
    ("kpt_shape: [2, 3]", "0 0.2 0.4 0.2 0.4 0.15 0.3 2 0.25 0.5 0", (10, 10, 20, 20)),
    ("kpt_shape: [2, 3]", "0 0.2 0.4 0.2 0.4", (10, 10, 20, 20)),
    ("kpt_shape: [2, 3]", POSE, "line of 9 numbers, while kpt_shape makes it 11"),
    ("task: pose", POSE, (10, 10, 20, 20)),
    ("task: obb", "0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6", (10, 10, 20, 20)),
    ("task: segment", "0 0.1 0.4 0.2 0.2 0.3 0.6", (10, 10, 20, 20)),
    ("task: segment", "0 0.1 0.4 0.2 0.2 0.3", "line that is not five numbers"),
    ("task: detect", POSE, "line that is not five numbers"),
    ("", "0 0.9 0.2 0.8 0.6 0.85 0.3", (80, 10, 10, 20)),  # whose box would leave the image: an outline
    ("", POSE, "line of more than five numbers, an outline or key points? write `task: segment`"),
    ("", "0 0.2 0.4 0.2 0.4 0.87", "line that is not five numbers"),  # of a prediction, with its score
    ("", "0 64 48 20 20", "line whose numbers are not shares of the image's width and height")])
def test_lines_are_what_data_yaml_says(root, tmp_path, content, line, wanted):
    found, rejected = lines_of(root, tmp_path, [line], f"{content}\nnames: [dog]\n")
    if isinstance(wanted, tuple):
        assert (found, rejected) == ([wanted], {})
    else:
        assert found == []
        (reason, number), = rejected.items()
        assert reason.startswith(wanted)
        assert number == 1


def test_one_outline_tells_what_all_lines_are(root, tmp_path, command):
    yolo(root, "a", line=POSE)
    yolo(root, "b", line="0 0.9 0.2 0.8 0.6 0.85 0.3")
    text(root / "data.yaml", "names: [dog]\n")
    code, said = command("yolo", root, tmp_path / "a.json")
    assert code == 0
    assert "2 images, 0 of them without a box, 2 boxes" in said
    assert "2 x outline or oriented box, of which the upright box around it is kept" in said


@pytest.mark.parametrize("content, words", [
    ("names: {0: dog, x: box}", "data.yaml: key 'x' of names is no number of a class"),
    ("names: {0: dog, -1: box}", "data.yaml: key '-1' of names"), ("names: {true: dog}", "key 'true' of names"),
    ("names: {0: dog, 1: }", "class 1 of names is ''; give it a name"), ("names: [dog, [cat]]", "class 1 of names"),
    ("names: [dog, dog]", "the class 'dog' stands there twice"), ("names: []", "lists no class"),
    ("names:", "key names is ''"), ("names: dog", "key names is 'dog'"), ("names: [dog", "data.yaml: is not YAML"),
    ("names: [dog]\nkpt_shape: 17", "key kpt_shape is '17'; it is [NUMBER OF KEY POINTS, 2 or 3]"),
    ("names: [dog]\nkpt_shape: [17, 4]", "key kpt_shape is ['17', '4']"), ('names: ["\\ud800"]', "written as UTF-8"),
    ("nc: 1", "has neither a data.yaml with `names` nor a classes.txt")])
def test_a_data_yaml_that_cannot_be_used_is_one_line(root, tmp_path, command, content, words):
    yolo(root, "a")
    text(root / "data.yaml", content + "\n")
    code, said = command("yolo", root, tmp_path / "a.json")
    assert code == 2
    assert words in said
    assert said.count("\n") == 1


def test_names_are_taken_as_they_are_written(root, tmp_path):
    """`no` and 2024-01-01 are names, and a number that is missing is no class."""
    yolo(root, "a", line="0 0.2 0.4 0.2 0.4\n1 0.2 0.4 0.2 0.4\n2 0.2 0.4 0.2 0.4\n3 0.2 0.4 0.2 0.4")
    text(root / "data.yaml", "names: {3: 007, 0: no, 2: 2024-01-01}\n")
    content, rejected = convert("yolo", root, tmp_path / "a.json")
    assert [one["name"] for one in content["categories"]] == ["no", "2024-01-01", "007"]
    assert [one["category_id"] for one in content["annotations"]] == [1, 2, 3]
    assert list(rejected) == ["object of a class that is not listed (1)"]


# --- labelme


@pytest.mark.parametrize("path", ["../images/a.png", "..\\images\\a.png", "..\\..\\set\\images\\a.png", "gone/a.png",
                                  "C:\\Users\\me\\a.png", "a.png", None])
@pytest.mark.parametrize("whole", [True, False])
def test_labelme_follows_the_path_of_the_image(tmp_path, path, whole):
    """With either slash; a path of another machine counts by its last part, below the folder that was given."""
    root = tmp_path / "set"
    image(root / "images" / "a.png")
    labelme(root / "json" / "a.json", path)
    if whole or ".." in (path or ""):
        content, rejected = convert("labelme", root if whole else root / "json", tmp_path / "a.json")
        assert boxes(content) == [("images/a.png" if whole else "a.png", "dog", 10, 20, 20, 20)]
        assert not rejected
    else:
        _, rejected = convert("labelme", root / "json", tmp_path / "a.json")
        assert "its image was not found" in rejected["file that cannot be used"][0]


def test_labelme_paths_beat_names_and_links(tmp_path):
    """Two images of one name: the path tells which; seen from a folder that is a link, too."""
    for folder in ("one", "two"):
        image(tmp_path / "set" / folder / "a.png")
        labelme(tmp_path / "set" / folder / "json" / "a.json", "../a.png", [(folder, "rectangle", [[1, 1], [9, 9]])])
    content, _ = convert("labelme", tmp_path / "set", tmp_path / "a.json")
    assert [box[:2] for box in boxes(content)] == [("one/a.png", "one"), ("two/a.png", "two")]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "json").symlink_to(tmp_path / "set" / "two" / "json")
    content, _ = convert("labelme", tmp_path / "work", tmp_path / "b.json")
    assert [box[:2] for box in boxes(content)] == [("a.png", "two")]


def test_labelme_shapes(root, tmp_path):
    image(root / "a.png")
    square = [[10, 10], [30, 10], [30, 30], [10, 30]]
    labelme(root / "a.json", "a.png", [
        ("dog", "rectangle", square), ("dog", None, square), ("dog", "mask", square[::2]), ("dog", "rotation", square),
        ("dog", "oriented_rectangle", square), ("dog", "line", square[:2]), ("dog", "linestrip", square),
        ("dog", "points", square), ("dog", "circle", square), ("dog", "cuboid", square), (None, "polygon", square),
        ("", "polygon", square), ("dog", "polygon", [[1, 2, 3]]), ("dog", "polygon", [[1e400, 2], [3, 4]]),
        ("dog", "polygon", [[10 ** 400, 2], [3, 4]]), ("\ud800", "polygon", square), ("dog", "polygon", square[:1])])
    content, rejected = convert("labelme", root, tmp_path / "a.json")
    assert [one["bbox"] for one in content["annotations"]] == [[10, 10, 20, 20]] * 5
    assert [one["name"] for one in content["categories"]] == ["dog"]
    assert {reason.encode("ascii", "replace").decode(): len(examples) for reason, examples in rejected.items()} == {
        "shape that has no box (line)": 1, "shape that has no box (linestrip)": 1, "shape that has no box (points)": 1,
        "shape that has no box (circle)": 1, "shape that has no box (cuboid)": 1, "shape that has no box (polygon)": 1,
        "shape without a label": 2, "shape without points": 3, "object of a class that is not listed (?)": 1}


def test_what_labelme_files_say_besides(root, tmp_path, command):
    image(root / "a.png")
    labelme(root / "a.json", "a.png", imageHeight=100, imageWidth=50)
    text(root / "coco.json", '{"images": []}')
    (root / "gbk.json").write_bytes('{"shapes": [], "imagePath": "圆盘.png"}'.encode("gbk"))
    text(root / "half.json", '{"shapes": [')
    text(root / "deep.json", '{"shapes": ' + "[" * 100_000)
    code, said = command("labelme", root, tmp_path / "a.json")
    assert code == 0
    assert "1 x file that gives another size than its image has" in said
    assert f"1 x file that is not labelme's and was not read: {root / 'coco.json'}" in said
    assert "3 x file that cannot be used" in said
    assert f"{root / 'gbk.json'}: is not UTF-8" in said
    assert "half.json: is not JSON" in said


# --- all of them


def test_two_annotation_files_of_one_image_are_put_together(root, tmp_path, command):
    image(root / "images" / "a.png")
    dog, cat = (("dog", "rectangle", [[1, 1], [9, 9]]), ("cat", "rectangle", [[1, 1], [9, 9]]))
    labelme(root / "one" / "a.json", "../images/a.png", [dog, dog])
    labelme(root / "two" / "a.json", "../images/a.png", [dog, cat])
    code, said = command("labelme", root, tmp_path / "a.json")
    assert code == 0
    assert "1 images, 0 of them without a box, 3 boxes" in said  # those of one file stay as they are
    assert "1 x file about an image that has another one: their objects are put together" in said


def test_names_with_a_dot_at_the_front_are_left_out(root, tmp_path, command):
    """What notebooks and macOS leave behind, also for infer --infer_dir."""
    yolo(root, "a", "b")
    image(root / "images" / ".ipynb_checkpoints" / "a-checkpoint.png")
    text(root / "labels" / ".ipynb_checkpoints" / "a-checkpoint.txt", "0 0.5 0.5 0.1 0.1")
    for name in ("images/._a.png", "labels/._a.txt", "._data.yaml", ".DS_Store"):
        (root / name).write_bytes(b"\x00\x05\x16\x07\xff")
    text(root / "data.yaml", "names: [dog]\n")
    code, said = command("yolo", root, tmp_path / "a.json")
    assert code == 0
    assert "2 images, 0 of them without a box, 2 boxes" in said
    assert "6 x name with a dot at the front, which was not read" in said
    assert "left out" not in said
    assert [Path(record["im_file"]).name for record in ImageFolder(image_dir=root).records] == ["a.png", "b.png"]
    for kind, write in (("voc", lambda path: voc(path, "dog")), ("labelme", lambda path: labelme(path, "a.png"))):
        image(tmp_path / kind / "a.png")
        for name in ("a", ".ipynb_checkpoints/a-checkpoint"):
            write(tmp_path / kind / f"{name}.{'xml' if kind == 'voc' else 'json'}")
        assert counts(convert(kind, tmp_path / kind, tmp_path / f"{kind}.json")[0]) == (1, 1)


def test_links_to_folders_are_followed_once_each(root, tmp_path):
    yolo(tmp_path / "store", "a", "b", images="pictures", labels="texts")
    root.mkdir()
    (root / "images").symlink_to(tmp_path / "store" / "pictures")
    (root / "labels").symlink_to(tmp_path / "store" / "texts")
    (root / "again").symlink_to(root)  # goes round in circles
    (root / "twice").symlink_to(tmp_path / "store" / "pictures")
    text(root / "data.yaml", "names: [dog]\n")
    content, rejected = convert("yolo", root, tmp_path / "a.json")
    assert boxes(content) == [(f"images/{name}.png", "dog", 10, 10, 20, 20) for name in "ab"]
    assert not rejected
    assert len(ImageFolder(image_dir=root).records) == 2
    for kind, write in (("voc", lambda path: voc(path, "dog")), ("labelme", lambda path: labelme(path, "a.png"))):
        image(tmp_path / f"{kind}store" / "a.png")
        write(tmp_path / f"{kind}store" / f"a.{'xml' if kind == 'voc' else 'json'}")
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "set").symlink_to(tmp_path / f"{kind}store")
        assert files(convert(kind, tmp_path / kind, tmp_path / f"{kind}.json")[0]) == ["set/a.png"]


def test_a_folder_counts_by_its_own_name_rather_than_by_a_link(root, tmp_path):
    yolo(root, "train/a", "val/b")
    (root / "images" / "all").symlink_to(root / "images" / "train")
    (root / "images" / "test").symlink_to(root / "images" / "val")
    text(root / "data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: [dog]\n")
    contents, rejected = convert_splits("yolo", root, tmp_path / "out")
    assert {split: files(content) for split, content in contents.items()} == {
        "train": ["images/train/a.png"], "val": ["images/val/b.png"], "test": ["images/val/b.png"]}
    assert not rejected


def test_folders_called_train_and_val_divide_the_images(root, tmp_path):
    for i, name in enumerate(("train/a", "Valid/b", "test/sub/c")):
        image(root / f"{name}.png")
        labelme(root / f"{name}.json", f"{name[-1]}.png", [(f"class{i}", "rectangle", [[1, 1], [9, 9]])])
    image(root / "d.png")
    labelme(root / "d.json", "d.png")
    contents, rejected = convert_splits("labelme", root, tmp_path / "out")
    assert {split: files(content) for split, content in contents.items()} == {
        "train": ["train/a.png"], "val": ["Valid/b.png"], "test": ["test/sub/c.png"]}
    assert rejected == {"image that is in none of test, train, val": [str(root / "d.png")]}


def test_a_share_for_training_holds_for_every_class(root, tmp_path):
    for i in range(40):
        image(root / f"{i:02}.png", 20, 20)
        voc(root / f"{i:02}.xml", *(["dog"] if i < 30 else ["rare", "dog"] if i < 35 else []))
    first, rejected = convert_splits("voc", root, tmp_path / "a", split=["0.8"])
    assert first == convert_splits("voc", root, tmp_path / "b", split=["0.8"])[0]
    assert not rejected
    assert sorted(files(first["train"]) + files(first["val"])) == [f"{i:02}.png" for i in range(40)]
    assert (len(first["train"]["images"]), len(first["val"]["images"])) == (32, 8)
    for numbers, wanted in ((range(30, 35), 1), (range(35, 40), 1), (range(30), 6)):
        assert sum(int(name[:2]) in numbers for name in files(first["val"])) == wanted
    assert files(first["val"]) != [f"{i:02}.png" for i in range(4, 40, 5)]  # drawn, not every fifth
    tiny, _ = convert_splits("voc", root, tmp_path / "c", split=["0.999"])
    assert len(tiny["val"]["images"]) == 1
