"""Images that are damaged, lie about themselves or are merely unusual: each is read, or is one DataError that names it,
and the policies `error` and `skip` do what they say."""
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from helpers import ROOT

from ppgfl import DataError
from ppgfl.data.batch import Reader
from ppgfl.data.image import read_image, read_images
from ppgfl.data.loader import Batches, BatchMaker, Loader
from ppgfl.data.transforms import Decode

FORMATS = (".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif")

DECODE = Reader([Decode()], [])


@pytest.fixture(scope="module")
def originals():
    """{ending: bytes} of one picture in every format."""
    pil = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), (100, 80))
    import io

    made = {}
    for ending in FORMATS:
        file = io.BytesIO()
        pil.fromarray(picture).save(file, format={".jpg": "JPEG", ".tiff": "TIFF"}.get(ending, ending[1:].upper()))
        made[ending] = file.getvalue()
    return made


def mutations(originals):
    """Yield (name, bytes): cut, flipped, with parts doubled or changed, under a wrong name, empty.

    PPGFL_MUTATIONS sets how many of each format.
    """
    per_format = int(os.environ.get("PPGFL_MUTATIONS", "50"))
    rng = np.random.default_rng(1)
    for ending, data in originals.items():
        for number in range(per_format):
            changed = bytearray(data)
            kind = number % 4
            where = int(rng.integers(0, len(changed)))
            if kind == 0:
                del changed[where:]
            elif kind == 1:
                for place in rng.integers(0, len(changed), 8):
                    changed[place] ^= 1 << int(rng.integers(0, 8))
            elif kind == 2:
                changed[where:where] = changed[where:where + 40]
            else:  # the header, where sizes stand
                for place in rng.integers(0, min(64, len(changed)), 2):
                    changed[place] = int(rng.integers(0, 256))
            yield f"{number}{ending}", bytes(changed)
        yield f"wrong name {ending}.txt.png", data
    yield "empty.jpg", b""
    yield "one byte.png", b"\x89"
    yield "text.jpg", b"this is no image"
    yield "page.jpg", b"<html><body>404</body></html>"
    yield "svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def png(width, height, rows=b""):
    """A PNG that claims a size."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_mutated_images_are_read_or_named(originals, tmp_path):
    outcomes = {"read": 0, "named": 0}
    for name, data in mutations(originals):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            image = read_image(str(path))
        except DataError as error:
            assert name in str(error)
            assert "\n" not in str(error)
            outcomes["named"] += 1
        else:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.size
            outcomes["read"] += 1
    print(outcomes)
    assert min(outcomes.values()) > 20
    assert sum(outcomes.values()) > 300


def test_bombs_are_refused_before_they_take_memory(tmp_path):
    """Small files that claim 100,000 x 100,000 and 20,000 x 20,000 pixels, in a process that may take 3 GiB."""
    (tmp_path / "huge.png").write_bytes(png(100_000, 100_000))
    (tmp_path / "large.png").write_bytes(png(20_000, 20_000, b"\0" * 1_000_000))
    script = (f"import resource, sys; sys.path.insert(0, {str(ROOT)!r})\n"
              "from ppgfl.data.image import read_image; from ppgfl import DataError\n"
              "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
              "for path in sys.argv[1:]:\n"
              "    try: read_image(path)\n"
              "    except DataError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "huge.png"), str(tmp_path / "large.png")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2, done.stdout
    assert "OPENCV_IO_MAX_IMAGE_PIXELS" in done.stdout


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 60_000), (60_000, 1), (3, 5)])
def test_unusual_sizes_are_read(tmp_path, height, width):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((height, width, 3), 7, np.uint8))
    assert read_image(str(tmp_path / "a.png")).shape == (height, width, 3)


def test_unusual_pixels_become_8_bit_colour(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    color = pil.new("RGB", (6, 4), (200, 100, 50))
    made = {"cmyk.jpg": color.convert("CMYK"), "grey.jpg": color.convert("L"), "palette.png": color.convert("P"),
            "alpha.png": color.convert("RGBA"), "grey alpha.png": color.convert("LA"), "bits.png": color.convert("1"),
            "alpha.webp": color.convert("RGBA"), "16.png": pil.fromarray(np.full((4, 6), 40_000, np.uint16))}
    for name, image in made.items():
        image.save(tmp_path / name)
        assert read_image(str(tmp_path / name)).shape == (4, 6, 3), name
        assert read_image(str(tmp_path / name)).dtype == np.uint8, name
    assert abs(read_image(str(tmp_path / "alpha.png"))[0, 0].astype(int) - [50, 100, 200]).max() == 0
    for name in ("animated.gif", "animated.webp"):
        color.save(tmp_path / name, save_all=True, append_images=[color.rotate(180)] * 2)
        if cv2.haveImageReader(str(tmp_path / name)):  # GIF since OpenCV 4.11
            assert read_image(str(tmp_path / name)).shape == (4, 6, 3), name


def test_exif_turns_the_image_and_broken_exif_does_not_stop_it(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # top left
    corner_of = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    for orientation, corner in corner_of.items():
        exif = pil.Exif()
        exif[0x0112] = orientation
        pil.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
        image = read_image(str(tmp_path / "a.jpg"))
        assert image.shape[:2] == ((16, 32) if orientation < 5 else (32, 16)), orientation
        rows = slice(0, 4) if corner[0] == "t" else slice(-4, None)
        columns = slice(0, 4) if corner[1] == "l" else slice(-4, None)
        assert image[rows, columns].mean() > 200, orientation
        assert image.mean() < 90
    for broken in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 200):
        pil.fromarray(pixels).save(tmp_path / "b.jpg", exif=broken)
        assert read_image(str(tmp_path / "b.jpg")).shape == (16, 32, 3)


# --- the policies

@pytest.fixture
def folder(originals, tmp_path):
    """Records of images, every third of them unreadable, and the names of those."""
    records, bad = [], []
    for i in range(12):
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(originals[".jpg"][:300] if i % 3 == 1 else originals[".jpg"])
        records.append({"im_id": i, "im_file": str(path)})
        bad += [path.name] if i % 3 == 1 else []
    return records, bad


@pytest.mark.parametrize("workers", [0, 2])
def test_error_stops_and_names_the_image(folder, workers):
    records, bad = folder
    loader = Loader(BatchMaker(records, DECODE), Batches(12, 2), workers)
    with pytest.raises(DataError, match=bad[0]):
        list(loader.epoch())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_skip_leaves_out_and_counts(folder, workers, batch_size, caplog):
    records, bad = folder
    loader = Loader(BatchMaker(records, DECODE, skip=True), Batches(12, batch_size), workers)
    with caplog.at_level("WARNING"):
        ids = [int(i) for batch in loader.epoch() for i in batch["im_id"].numpy().ravel()]
    assert ids == [i for i in range(12) if i % 3 != 1]
    assert all(sum(name in line for line in caplog.messages) == 1 for name in bad)
    assert caplog.messages[-1] == "4 images could not be read and were left out"


def test_skip_keeps_training_batches_full(folder, caplog):
    records, _ = folder
    loader = Loader(BatchMaker(records, DECODE, skip=True, replace=True), Batches(12, 4))
    assert [batch["im_id"].numpy().ravel().tolist() for batch in loader.epoch()] == [
        [0, 2, 2, 3], [5, 5, 6, 8], [8, 9, 11, 11]]
    nothing = [record for record in records if record["im_id"] % 3 == 1]
    loader = Loader(BatchMaker(nothing, DECODE, skip=True, replace=True), Batches(4, 4))
    with pytest.raises(DataError, match="not one of the 4 images"):
        list(loader.epoch())


def test_skip_without_a_loader(folder, caplog):
    records, _ = folder
    assert [record["im_id"] for record, _ in read_images(records, skip=True)] == [0, 2, 3, 5, 6, 8, 9, 11]
    assert caplog.messages[-1] == "4 images could not be read and were left out"
    os.remove(records[0]["im_file"])
    with pytest.raises(DataError, match="0.jpg"):
        list(read_images(records))
