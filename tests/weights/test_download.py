"""Downloads from a server on this machine that does all that servers do."""
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import CONTENT, start_fetch, whole

from ppgfl import CheckpointError
from ppgfl.weights import checkpoint, download, safe_pickle, zoo


def files(tmp_path):
    """What the cache holds, but for locks."""
    return sorted(p.name for p in (tmp_path / "home").rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_file_is_fetched_once(server, tmp_path):
    path = download.fetch(f"{server.url}/models/w.pdparams")
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["w.pdparams", "w.pdparams.sha256"]
    assert download.fetch(f"{server.url}/models/w.pdparams") == path
    assert server.requests == {"/models/w.pdparams": 1}


@pytest.mark.parametrize("bad", [
    (200, len(CONTENT), CONTENT[:1000], 0), (200, len(CONTENT) + 5, CONTENT, 0), (503, 0, b"", 0), (500, None, b"x", 0),
])
def test_a_failure_is_tried_again(server, tmp_path, bad):
    server.behave = lambda path, count: bad if count < 3 else whole(path, count)
    assert download.fetch(f"{server.url}/w.pdparams").read_bytes() == CONTENT
    assert server.requests == {"/w.pdparams": 3}

    server.behave = lambda path, count: bad
    with pytest.raises(CheckpointError, match="cannot be downloaded: .* put the file at .*other.pdparams, or set weig"):
        download.fetch(f"{server.url}/other.pdparams")
    assert server.requests["/other.pdparams"] == 3
    assert files(tmp_path) == ["w.pdparams", "w.pdparams.sha256"]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_file_that_is_not_there_is_asked_for_once(server, tmp_path, status):
    server.behave = lambda path, count: (status, 4, b"gone", 0)
    with pytest.raises(CheckpointError, match=f"w.pdparams: cannot be downloaded: {status} "):
        download.fetch(f"{server.url}/w.pdparams")
    assert server.requests == {"/w.pdparams": 1}
    assert files(tmp_path) == []


def test_a_cut_file_whose_length_nobody_promised(server, tmp_path):
    server.behave = lambda path, count: (200, None, CONTENT[:1000], 0)
    with pytest.raises(CheckpointError, match=r"w\.pdparams"):
        checkpoint.read(f"{server.url}/w.pdparams")
    assert files(tmp_path) == []


def test_a_page_instead_of_weights(server, tmp_path):
    server.behave = lambda path, count: (200, 6, b"<html>", 0)
    with pytest.raises(CheckpointError):
        checkpoint.read(f"{server.url}/w.pdparams")
    assert files(tmp_path) == []


def test_a_damaged_copy_is_fetched_again(server):
    path = download.fetch(f"{server.url}/w.pdparams")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert download.fetch(f"{server.url}/w.pdparams").read_bytes() == CONTENT
    assert server.requests == {"/w.pdparams": 2}


def test_a_file_that_changed_on_the_server_is_refused(server):
    path = download.fetch(f"{server.url}/w.pdparams")
    path.unlink()
    server.behave = lambda path, count: (200, 4, b"evil", 0)
    with pytest.raises(CheckpointError, match=r"is not the file .* delete .*w\.pdparams\.sha256 and try again"):
        download.fetch(f"{server.url}/w.pdparams")
    assert not path.exists()


@pytest.mark.parametrize("promised", [len(CONTENT), None])
def test_more_than_weights_hold_is_refused(server, tmp_path, monkeypatch, promised):
    monkeypatch.setattr(download, "MOST_BYTES", len(CONTENT) - 1)
    server.behave = lambda path, count: (200, promised, CONTENT, 0)
    with pytest.raises(CheckpointError, match=r"w\.pdparams: is larger than .* put the file at"):
        download.fetch(f"{server.url}/w.pdparams")
    assert server.requests == {"/w.pdparams": 1}
    assert files(tmp_path) == []


def test_a_server_that_sends_hardly_a_byte_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 0.2)
    monkeypatch.setattr(download, "LEAST_BYTES", 1 << 20)
    server.behave = lambda path, count: (200, len(CONTENT), CONTENT, 0.1)
    with pytest.raises(CheckpointError, match="cannot be downloaded: Timeout"):
        download.fetch(f"{server.url}/w.pdparams")
    assert files(tmp_path) == []


@pytest.mark.parametrize("user", ["user:S3CRET", "S3CRET", "user:S3%40CRET", "a:S3CRET@b"])
def test_a_password_is_in_no_message_and_no_name(server, tmp_path, user, caplog):
    server.behave = lambda path, count: (404, 4, b"gone", 0)
    address = server.url.replace("://", f"://{user}@")
    with caplog.at_level("INFO", "ppgfl"), pytest.raises(CheckpointError, match=r"http://\*\*\*@127.*: 404 ") as caught:
        download.fetch(f"{address}/w.pdparams")
    assert "CRET" not in f"{caught.value} {caplog.text}"
    assert not [path for path in (tmp_path / "home").rglob("*") if "CRET" in path.name]
    assert download.cached_path(f"{address}/w.pdparams") == download.cached_path(f"{server.url}/w.pdparams")


def test_a_copy_put_there_by_hand_is_taken(server):
    path = download.cached_path(f"{server.url}/w.pdparams")
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert download.fetch(f"{server.url}/w.pdparams") == path
    assert server.requests == {}


def test_without_a_network(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="ConnectionError; without a network, put the file at"):
        download.fetch(f"{server.url}/w.pdparams")


def test_several_processes_fetch_once(server, tmp_path):
    server.behave = lambda path, count: (200, len(CONTENT), CONTENT, 0.02)
    processes = [start_fetch(f"{server.url}/w.pdparams") for _ in range(4)]
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(paths) == 1
    assert Path(paths.pop().strip()).read_bytes() == CONTENT
    assert server.requests == {"/w.pdparams": 1}


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot be written: .*; set PPGFL_HOME"):
        download.fetch(f"{server.url}/w.pdparams")


@pytest.mark.parametrize("url", ["http://h/a/../../../etc/passwd", "http://h/%2e%2e/%2e%2e/x", "http://h/a%2f..%2fb",
                                 "http://../x", "https://h:8/a//b?q=../.."])
def test_no_address_leads_out_of_the_cache(tmp_path, monkeypatch, url):
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path))
    assert tmp_path / "weights" in Path(os.path.normpath(download.cached_path(url))).parents


def test_addresses_with_other_queries_are_other_files():
    paths = {download.cached_path(f"http://h/w.pdparams{query}") for query in ("", "?v=1", "?v=2")}
    assert len(paths) == 3
    assert {path.suffix for path in paths} == {".pdparams"}


def test_released_models_by_name(server, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ADDRESS", server.url)
    name = "gfl_r50_fpn_1x_coco"
    monkeypatch.setitem(zoo.MODELS, name, replace(zoo.MODELS[name], weights=f"{server.url}/models/{name}.pdparams"))
    monkeypatch.chdir(tmp_path)
    assert set(checkpoint.read("gfl_r50_fpn_1x_coco")) == {"w"}
    assert set(checkpoint.read("ResNet50_cos_pretrained.pdparams")) == {"w"}
    assert set(server.requests) == {"/models/gfl_r50_fpn_1x_coco.pdparams",
                                    "/models/pretrained/ResNet50_cos_pretrained.pdparams"}
    (tmp_path / "gfl_r50_fpn_1x_coco.pdparams").write_bytes(pickle.dumps({"mine": np.ones(3)}, protocol=2))
    assert set(checkpoint.read("gfl_r50_fpn_1x_coco")) == {"mine"}  # a file of that name wins
    with pytest.raises(CheckpointError, match="no released model of that name .gfl_r50_fpn_1x_coco, "):
        checkpoint.read("gfl_r50")


def test_the_command_downloads(run_here, server, small_coco, r18vd_weights, tmp_path):
    content = r18vd_weights.read_bytes()
    server.behave = lambda path, count: (200, len(content), content, 0)
    (tmp_path / "one").mkdir()
    image = sorted((small_coco / "val2017").iterdir())[0]
    for _ in range(2):
        done = run_here("infer", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={server.url}/r18.pdparams", "use_gpu=false",
                        "TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "--infer_img", image,
                        cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert server.requests == {"/r18.pdparams": 1}
    assert safe_pickle.load(download.cached_path(f"{server.url}/r18.pdparams"))
