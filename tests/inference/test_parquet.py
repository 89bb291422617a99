"""results.parquet: every detection, every image, whole or not at all."""
import errno
import sys

import numpy as np
import pytest

from ppgfl import ConfigError, Detections
from ppgfl.inference import parquet
from ppgfl.inference.parquet import ParquetFile

SIDES = ["x1", "y1", "x2", "y2"]


def detections(count, path, seed=0):
    rows = np.random.default_rng(seed).uniform(0, 1, (count, 6)).astype(np.float32) * [3, 1, 90, 90, 90, 90]
    return Detections.from_rows(rows.astype(np.float32), ["a", "行人"], path=path)


@pytest.mark.parametrize("rows_together", [3, 1000])
def test_every_detection_and_every_image(rows_together, tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "ROWS", rows_together)
    found = [detections(5, "b.jpg"), detections(0, "empty\udcff.jpg"), detections(4, "a.jpg", 1)]
    file = ParquetFile(tmp_path / "out")
    for one in found:
        file.write(one.to_dict())
    assert not (tmp_path / "out" / "results.parquet").exists()
    file.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.parquet"]
    table = pq.read_table(tmp_path / "out" / "results.parquet")
    assert table.schema.names == ["file", "label", "name", "score", *SIDES]
    metadata = pq.read_metadata(tmp_path / "out" / "results.parquet").metadata
    assert {key: metadata[key] for key in (b"images", b"detections")} == {b"images": b"3", b"detections": b"9"}
    rows = table.to_pylist()
    assert [row["file"] for row in rows] == ["b.jpg"] * 5 + ["empty\\udcff.jpg"] + ["a.jpg"] * 4
    assert set(rows[5].values()) == {"empty\\udcff.jpg", None}
    wanted = [(d["label"], d["name"], d["score"], d["box"]) for one in found for d in one.to_dict()["detections"]]
    for row, (label, name, score, box) in zip(rows[:5] + rows[6:], wanted):
        assert (row["label"], row["name"]) == (label, name)
        np.testing.assert_allclose([row["score"], *(row[side] for side in SIDES)], [score, *box], rtol=1e-6)


def test_sigma_has_columns_of_its_own(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    rows = np.random.default_rng(0).uniform(0, 1, (3, 14)).astype(np.float32)
    found = Detections.from_rows(rows, ["a"], path="a.jpg")
    file = ParquetFile(tmp_path, sigma=True)
    for one in (found, found.above(2)):
        file.write(one.to_dict())
    file.close()
    table = pq.read_table(tmp_path / "results.parquet").to_pydict()
    for key, wanted in (("sigma", found.sigma), ("top2", found.top2)):
        got = np.array([table[f"{key}_{side}"][:3] for side in SIDES]).T
        np.testing.assert_allclose(got, wanted, atol=5e-5)
        assert table[f"{key}_x1"][3] is None


def test_no_image_at_all(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    ParquetFile(tmp_path).close()
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 0


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "results.parquet").write_bytes(b"old")
    file = ParquetFile(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file.arrow.parquet.ParquetWriter, "write_table", full)
    file.write(detections(2, "a.jpg").to_dict())
    with pytest.raises(OSError, match="No space left") as caught:
        file.close()
    assert caught.value.filename == str(tmp_path / "results.parquet")
    assert (tmp_path / "results.parquet").read_bytes() == b"old"


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "ppgfl\[parquet\]"'):
        ParquetFile(tmp_path)
