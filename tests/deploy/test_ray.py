"""The Ray recipe: its worker without Ray; with it (drills) workers and jobs that are killed, and a bucket."""
import collections
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, UNREADABLE, lines_of

from ppgfl import Detector
from ppgfl.inference.detections import Detections
from ppgfl.inference.json_lines import JsonLines
from ppgfl.inference.parquet import ParquetFile

SCRIPT = ROOT / "deploy" / "ray" / "infer.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("ray_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(recipe):
    return recipe.load_results()


@pytest.fixture
def photos(small_coco, tmp_path):
    """A folder of 60 images, three of them damaged."""
    folder = tmp_path / "photos"
    sources = sorted((small_coco / "val2017").iterdir())
    for i in range(60):
        file = folder / f"part {i % 3}" / f"bild {i:02d} ü.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"text" if i % 20 == 7 else sources[i % 5].read_bytes())
    return folder


def arguments(exported, images, output, *more, model="model.onnx"):
    return ["--model_dir", str(exported[0] / model), "--image_dir", str(images), "--output_dir", str(output),
            "--threshold", "0.03", "--shard", "4", *more]


def work(recipe, argv, files):
    """What a worker makes of one shard, and the worker."""
    worker = recipe.Detect(recipe.parse_arguments(argv))
    shard = os.fsencode("\0".join(map(str, files)))
    answer = {key: value[0] for key, value in worker({"files": [shard]}).items()}
    assert answer.pop("files") == shard
    return {**answer, "failed": json.loads(answer["failed"])}, worker


def as_ppgfl_writes(recipe, worker, files, writer):
    """The files that ppgfl's own writer makes of the rows of the worker's model."""
    for file in files:
        rows = worker.runner([recipe.load_results().infer.read_image(file)])[0]
        writer.write(Detections.from_rows(rows, worker.runner.class_names, str(file)).above(0.03).to_dict())
    writer.close()
    return next(path for path in writer.folder.iterdir()) if isinstance(writer, JsonLines) else writer.path


@pytest.mark.parametrize("model", [".", "model.onnx"])
def test_lines_are_those_of_ppgfl(recipe, exported, small_coco, tmp_path, model):
    files = sorted((small_coco / "val2017").iterdir())
    answer, worker = work(recipe, arguments(exported, small_coco, tmp_path / "found", model=model), files)
    assert answer == {"images": 5, "failed": [], "fatal": ""}
    wanted = as_ppgfl_writes(recipe, worker, files, JsonLines(tmp_path / "wanted"))
    shard, = (tmp_path / "found").iterdir()
    assert shard.read_bytes() == wanted.read_bytes()
    assert [line["name"] for line in lines_of(tmp_path / "found")[1]["detections"]] == list(
        Detector(exported[0] / model)(str(files[1])).above(0.03).names)


def test_tables_are_those_of_ppgfl(recipe, exported, small_coco, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    files = sorted((small_coco / "val2017").iterdir())
    _, worker = work(recipe, arguments(exported, small_coco, tmp_path / "found", "--format", "parquet"), files)
    wanted = as_ppgfl_writes(recipe, worker, files, ParquetFile(tmp_path / "wanted"))
    shard, = (tmp_path / "found").iterdir()
    assert parquet.read_table(shard).equals(parquet.read_table(wanted))
    made, reference = (parquet.read_metadata(path).metadata for path in (shard, wanted))
    assert all(made[key] == reference[key] for key in (b"images", b"detections"))


def test_tables_have_the_columns_of_sigma(results, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    spreads = {"sigma": [1.0, 2.0, 3.0, 4.0], "top2": [0.1, 0.2, 0.3, 0.4]}
    records = [{"file": "b.jpg", "detections": []},
               {"file": os.fsdecode(b"\xff.jpg"),
                "detections": [{"label": 1, "name": "cat", "score": 0.5, "box": [1.0, 2.0, 3.5, 4.5], **spreads}]}]
    writer = ParquetFile(tmp_path, sigma=True)
    for record in records:
        writer.write(record)
    writer.close()
    (tmp_path / "made").write_bytes(results.to_parquet(records, sigma=True))
    made = parquet.read_table(tmp_path / "made")
    assert made.equals(parquet.read_table(writer.path))
    assert made.column_names[-8:-6] == ["sigma_x1", "sigma_y1"]


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_an_image_that_cannot_be_read_is_told_and_has_no_row(recipe, exported, picture, tmp_path, batch_size):
    bad = {tmp_path / f"{name}.jpg": content for name, content in UNREADABLE.items()}
    for path, content in bad.items():
        path.write_bytes(content)
    argv = arguments(exported, tmp_path, tmp_path / "found", "--batch_size", batch_size)
    answer, _ = work(recipe, argv, [*bad, tmp_path / "not there.jpg", picture])
    assert {one["file"] for one in answer["failed"]} == {*map(str, bad), str(tmp_path / "not there.jpg")}
    assert all(one["file"] in one["error"] for one in answer["failed"])
    assert (answer["images"], answer["fatal"]) == (1, "")
    assert [line["file"] for line in lines_of(tmp_path / "found")] == [str(picture)]


def test_a_shard_done_again_takes_its_own_place(recipe, exported, small_coco, tmp_path):
    files = sorted((small_coco / "val2017").iterdir())
    argv = arguments(exported, small_coco, tmp_path / "found")
    for _ in range(2):
        work(recipe, argv, files[:2])
    work(recipe, argv, files[2:3])
    assert [line["file"] for line in sorted(lines_of(tmp_path / "found"), key=lambda line: line["file"])] == [
        str(file) for file in files[:3]]


def test_what_has_a_row_is_done_however_it_is_spelled(recipe, results, exported, small_coco, tmp_path):
    files = sorted((small_coco / "val2017").iterdir())
    (tmp_path / "link").symlink_to(small_coco)
    argv = arguments(exported, tmp_path / "link", tmp_path / "found")
    work(recipe, argv, files[:2])
    args = recipe.parse_arguments([*argv, "--resume"])
    done = results.done_by_earlier(results.Storage(args.output_dir, {}), args)
    images = results.Storage(args.image_dir, {}).images(results.Storage(args.output_dir, {}))
    assert [results.place_of(file) in done for file in images] == [True, True, False, False, False]


@pytest.mark.parametrize(("before", "more", "wanted"), [
    (None, ["--workers", "0"], "--workers: 0: it must be at least 1"),
    (None, ["--gpus", "2"], "--gpus: 2.0: allowed: 0 to 1"),
    (None, ["--storage_options", "[]"], "it is a JSON object"),
    (None, ["--image_dir", "nowhere"], "nowhere: no image there"),
    (None, ["--model_dir", "nowhere"], "nowhere: no such folder"),
    (None, ["--model_dir", "no.onnx"], "no.onnx: No such file"),
    ("results-a.jsonl", [], "--resume goes on with them"),
    ("results-a.jsonl", ["--resume", "--threshold", "0.5"], "made with threshold 0.03, and now it is 0.5"),
    ("results-b.jsonl", ["--resume"], "results-b.jsonl: not a file of results"),
])
def test_a_mistake_is_one_line(recipe, results, exported, small_coco, tmp_path, monkeypatch, capsys, before, more,
                               wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found").mkdir()
    argv = arguments(exported, small_coco, tmp_path / "found")
    if before:
        results.done_by_earlier(results.Storage(str(tmp_path / "found"), {}), recipe.parse_arguments(argv))
        (tmp_path / "found" / before).write_text("no JSON\n" if "b" in before else "")
    try:
        code = recipe.main([*argv, *more])
    except SystemExit as done:
        code = done.code
    assert code == 2
    assert wanted in capsys.readouterr().err.splitlines()[-1]


def test_a_model_that_cannot_be_opened_ends_the_run(recipe, exported, small_coco, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    argv = [*arguments(exported, small_coco, tmp_path / "found"), "--model_dir", str(tmp_path / "broken.onnx")]
    answer, _ = work(recipe, argv, sorted((small_coco / "val2017").iterdir()))
    assert "broken.onnx" in answer["fatal"]
    assert not (tmp_path / "found").exists()


def test_a_store_is_a_folder_like_another(recipe, results, exported, small_coco, picture, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("a ü.jpg", "sub/b.jpg", "sub/.c.jpg", "notes.txt", "found/d.jpg"):
        store.pipe_file(f"/photos/{name}", picture.read_bytes())
    store.pipe_file("/photos/bad.jpg", b"text")
    argv = arguments(exported, "memory://photos", "memory://photos/found")
    files = results.Storage("memory://photos", {}).images(results.Storage("memory://photos/found", {}))
    assert files == ["memory:///photos/a ü.jpg", "memory:///photos/bad.jpg", "memory:///photos/sub/b.jpg"]
    answer, _ = work(recipe, argv, files)
    assert answer["images"] == 2
    assert "memory:///photos/bad.jpg: not an image" in answer["failed"][0]["error"]
    args = recipe.parse_arguments([*argv, "--resume"])
    assert results.done_by_earlier(results.Storage(args.output_dir, {}), args) == {files[0], files[2]}
    with pytest.raises(results.RunnerError, match="memory://none: no image there"):
        results.Storage("memory://none", {}).images(results.Storage("found", {}))


@pytest.fixture
def start():
    """A call, argv, environment -> the recipe in a process of its own, which has ended when the test has."""
    pytest.importorskip("ray.data")
    started = []

    def run(argv, **environment):
        started.append(subprocess.Popen([sys.executable, str(SCRIPT), *argv], stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.STDOUT, env={**os.environ, **environment}))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for_shards(folder, count, process):
    end = time.monotonic() + 300
    while len(list(folder.glob("results-*.jsonl"))) < count:
        assert time.monotonic() < end, "no shards"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def workers_of(process):
    """The processes of Ray's actors below a process, by /proc."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid = int(stat.parent.name)
            parents[pid] = int(stat.read_text().rpartition(")")[2].split()[1])
            names[pid] = (stat.parent / "cmdline").read_text()
        except OSError:  # it has ended
            continue

    def is_below(pid):
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid in parents if "Detect" in names.get(pid, "") and is_below(pid)]


def check_results(folder, photos, expected):
    """Every image once: in the rows, which are the expected ones, or in the list of those that failed."""
    rows = lines_of(folder)
    failed = [json.loads(line)["file"] for line in (folder / "failed.jsonl").read_text().splitlines()]
    assert collections.Counter([row["file"] for row in rows] + failed) == collections.Counter(
        map(str, photos.glob("*/*.jpg")))
    assert len(failed) == 3
    assert {row["file"]: row for row in rows} == expected


@pytest.fixture
def expected(recipe, exported, photos, tmp_path):
    """{file: row} by one worker without Ray."""
    work(recipe, arguments(exported, photos, tmp_path / "expected"), photos.glob("*/*.jpg"))
    return {row["file"]: row for row in lines_of(tmp_path / "expected")}


@pytest.mark.drill
def test_a_killed_worker_is_replaced(start, exported, photos, expected, tmp_path):
    process = start(arguments(exported, photos, tmp_path / "found", "--workers", "2"))
    wait_for_shards(tmp_path / "found", 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 2, output
    assert "3 of 60 images have no row" in output
    check_results(tmp_path / "found", photos, expected)


@pytest.mark.drill
def test_a_killed_job_goes_on(start, exported, photos, expected, tmp_path):
    argv = arguments(exported, photos, tmp_path / "found", "--workers", "2")
    process = start(argv)
    wait_for_shards(tmp_path / "found", 2, process)
    process.kill()
    process.wait()
    before = len(lines_of(tmp_path / "found"))
    assert before < 57
    process = start([*argv, "--resume"])
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 2, output
    check_results(tmp_path / "found", photos, expected)


@pytest.mark.drill
def test_an_image_that_kills_its_workers_is_given_up(start, exported, picture, tmp_path):
    for name in ("a.jpg", "poison.jpg", "z.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(picture.read_bytes())
    (tmp_path / "sitecustomize.py").write_text(  # as a library that crashes
        "import os, numpy\nread = numpy.fromfile\ndef fromfile(path, *more):\n"
        "    return os.kill(os.getpid(), 9) if 'poison' in str(path) else read(path, *more)\n"
        "numpy.fromfile = fromfile\n")
    process = start([*arguments(exported, tmp_path / "photos", tmp_path / "found"), "--shard", "1"],
                    PYTHONPATH=str(tmp_path))
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 2, output
    assert "poison.jpg: its shard was given up, after 5 deaths" in output
    assert {Path(line["file"]).name for line in lines_of(tmp_path / "found")} == {"a.jpg", "z.jpg"}


@pytest.mark.drill
def test_a_bucket_in_and_out(start, exported, photos, expected, tmp_path):
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    parquet, s3fs = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("s3fs")
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "a", "secret": "b", "endpoint_url": f"http://{host}:{port}"}
        bucket = s3fs.S3FileSystem(**options)
        bucket.mkdir("bucket")
        bucket.put(f"{photos}/", "bucket/photos/", recursive=True)
        argv = arguments(exported, "s3://bucket/photos", "s3://bucket/found", "--format", "parquet", "--resume")
        environment = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"), options.values()))
        for settings, of in ((environment, 60), ({}, 3)):
            process = start(argv if settings else [*argv, "--storage_options", json.dumps(options)], **settings)
            output = process.communicate(timeout=400)[0]
            assert process.returncode == 2, output
            assert f"3 of {of} images have no row" in output.splitlines()[-1]
        tables = [parquet.read_table(bucket.open(path)) for path in bucket.glob("bucket/found/results-*.parquet")]
        found = collections.Counter(file for table in tables for file in set(table["file"].to_pylist()))
        assert found == collections.Counter(file.replace(str(photos), "s3://bucket/photos") for file in expected)
        assert sum(table.num_rows for table in tables) == sum(len(row["detections"]) or 1 for row in expected.values())
    finally:
        server.stop()
