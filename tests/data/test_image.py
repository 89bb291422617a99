"""Which images there are: below a folder, and in a list."""
import codecs
import os
import sys

import cv2
import numpy as np
import pytest

from ppgfl import DataError
from ppgfl.data.image import find_images, read_image, read_list, read_size


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("data", [
    "a.png\nü b.png\n".encode(), "a.png\r\nü b.png".encode(), codecs.BOM_UTF8 + "a.png\r\nü b.png\r\n".encode(),
    "a.png\nü b.png\n".encode("utf-16"), codecs.BOM_UTF16_BE + "a.png\r\nü b.png".encode("utf-16-be"),
    "# photos\n\n a.png \n  #b.png\n\t\nü b.png\t\n#".encode(),
])
def test_a_list_in_the_encodings_of_editors(here, data):
    (here / "list.txt").write_bytes(data)
    assert read_list("list.txt") == ["a.png", "ü b.png"]
    assert read_list("list.txt", "photos") == [os.path.join("photos", name) for name in ("a.png", "ü b.png")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take any bytes as a name")
def test_a_list_of_names_that_look_like_something_else(here):
    names = ["#7.png", " a.png", "b.png ", "return\r", os.fsdecode(b"caf\xe9.png"), "two\u2028lines.png", "~c.png"]
    for name in names:
        (here / name).touch()
    (here / "list.txt").write_bytes(b"\n".join(map(os.fsencode, names)))
    assert read_list("list.txt") == names


@pytest.mark.parametrize(("data", "words"), [
    (b"", "the list is empty"), (b" \n# a.png\n", "the list is empty"),
    ("a.png".encode("utf-16-le"), "save it as UTF-8"),
    (codecs.BOM_UTF16_LE + b"a", "save it as UTF-8"), ("a.png".encode("utf-32"), "save it as UTF-8")])
def test_a_list_that_cannot_be_read(here, data, words):
    (here / "list.txt").write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_list("list.txt")


def test_the_home_folder_and_names_that_begin_like_it(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "home" / "a.png").touch()
    assert find_images("~/a.png") == [str(here / "home" / "a.png")]
    (here / "~a.png").touch()
    assert find_images("~a.png") == ["~a.png"]
    with pytest.raises(DataError, match="~b.png: no such image or folder"):
        find_images("~b.png")


@pytest.mark.parametrize("place", ["https://example.com/a.png", "*.png", "-", "none.png", "a\0b.png"])
def test_what_is_not_there_is_named_as_it_was_given(here, place):
    with pytest.raises(DataError) as caught:
        find_images(place)
    assert f"{place}: no such image or folder" in str(caught.value)


def test_a_folder_that_holds_only_results(here):
    (here / "out").mkdir()
    (here / "out" / "a.png").touch()
    with pytest.raises(DataError, match="holds no image; looked for .* outside of out"):
        find_images(".", "out")
    assert find_images("out", "out") == [os.path.join("out", "a.png")]  # which infer refuses to write over


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("turned", [1, 3, 6])
def test_the_size_is_that_of_the_decoded_image(here, suffix, turned):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = turned
    path = here / f"a{suffix}"
    Image.new("RGB", (30, 20)).save(path, **({} if suffix == ".bmp" else {"exif": exif}))
    assert read_size(path) == read_image(path).shape[:2]


def test_the_size_is_told_by_the_head_alone(here):
    data = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))[1].tobytes()
    (here / "cut.png").write_bytes(data[:500])
    assert read_size(here / "cut.png") == (20, 30)
    (here / "no.png").write_text("no picture")
    for name in ("no.png", "lost.png"):
        with pytest.raises(DataError, match=name):
            read_size(here / name)
