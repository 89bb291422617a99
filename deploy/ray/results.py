"""Where the images of the Ray recipe come from and its results go: folders and stores, the formats, what is done."""
from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

import infer  # noqa: E402  deploy/python/infer.py
from infer import RunnerError, end_of  # noqa: E402

ENDINGS = {"json": ".jsonl", "parquet": ".parquet"}
SETTINGS = "results-settings.json"  # beside the shards: how their results came about
SIDES = ("x1", "y1", "x2", "y2")


class Storage:
    """A folder of this machine, or one with an address, as s3://bucket/folder, in a store that fsspec knows.

    Raises: RunnerError, in all methods: the store does not answer, refuses, or has not what is asked for.
    """

    def __init__(self, place: str, options: dict[str, Any]) -> None:
        self.place, self.root, self.store = place, place, None
        if "://" in place:
            fsspec = infer.needed("fsspec", '"ppgfl[ray]"')
            self.store, self.root = self.ask(lambda: fsspec.core.url_to_fs(place, **options))

    def ask(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:  # each store has errors of its own
            raise RunnerError(f"{self.place}: {end_of(error) or type(error).__name__}") from error

    def images(self, output: Storage) -> list[str]:
        """As `find_images` of the runner has them: sorted, without hidden ones and those where results go."""
        if self.store is None:
            return [os.path.abspath(file) for file in infer.find_images(self.place, leave_out=output.place)]
        root, own = (storage.root.rstrip("/") + "/" for storage in (self, output))
        leave_out = own if type(output.store) is type(self.store) and own != root else "\0"
        found = [self.store.unstrip_protocol(path) for path in self.ask(lambda: self.store.find(self.root))
                 if infer.has_image_ending(path) and not path.startswith(leave_out)
                 and not any(part.startswith(".") for part in path[len(root):].split("/"))]
        if not found:
            raise RunnerError(f"{self.place}: no image there")
        return sorted(found, key=lambda file: file.split("/"))

    def read_image(self, file: str) -> Any:
        """[H, W, 3] uint8 BGR."""
        if self.store is None:
            return infer.read_image(file)
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "image")
            Path(copy).write_bytes(self.ask(lambda: self.store.cat_file(file)))
            try:
                return infer.read_image(copy)
            except RunnerError as error:
                raise RunnerError(str(error).replace(copy, file)) from error

    def names(self) -> list[str]:
        """Of the files right in the folder; of none that is not there."""
        if self.store is None:
            return sorted(os.listdir(self.place)) if os.path.isdir(self.place) else []
        there = self.ask(lambda: self.store.ls(self.root, detail=False) if self.store.exists(self.root) else [])
        return sorted(path.rsplit("/", 1)[-1] for path in there)

    def read(self, name: str) -> bytes:
        path = os.path.join(self.place, name)
        return Path(path).read_bytes() if self.store is None else self.ask(lambda: self.store.cat_file(path))

    def write(self, name: str, data: bytes) -> None:
        """All of a file or nothing."""
        path = os.path.join(self.place, name)
        infer.write(path, data) if self.store is None else self.ask(lambda: self.store.pipe_file(path, data))


def encode(records: list[dict[str, Any]], form: str, sigma: bool) -> bytes:
    """The content of a shard."""
    if form == "parquet":
        return to_parquet(records, sigma)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    return "".join(lines).encode("utf-8", "backslashreplace")


def to_parquet(records: list[dict[str, Any]], sigma: bool) -> bytes:
    """The file that `ppgfl infer --save_results parquet` makes of these records."""
    import pyarrow
    import pyarrow.parquet

    spreads = [(f"{key}_{side}", key, i) for key in ("sigma", "top2") if sigma for i, side in enumerate(SIDES)]
    schema = pyarrow.schema([("file", pyarrow.string()), ("label", pyarrow.int32()), ("name", pyarrow.string()),
                             *((name, pyarrow.float32()) for name in ("score", *SIDES, *(one[0] for one in spreads)))],
                            {"images": str(len(records)),
                             "detections": str(sum(len(record["detections"]) for record in records))})
    rows = [{"file": text(record["file"]), "label": one["label"], "name": text(one["name"]), "score": one["score"],
             **dict(zip(SIDES, one["box"])), **{name: one[key][i] for name, key, i in spreads}} if one else
            {"file": text(record["file"])} for record in records for one in record["detections"] or [None]]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()


def text(name: str) -> str:
    """Bytes of a name that are no UTF-8 as they stand in results."""
    return name.encode("utf-8", "backslashreplace").decode()


@functools.lru_cache(maxsize=1 << 16)
def real_folder(folder: str) -> str:
    return folder if "://" in folder else os.path.realpath(folder)


def place_of(file: str) -> str:
    """One spelling of an image, by which it is known whether it is done."""
    folder, name = os.path.split(file)
    return text(os.path.join(real_folder(folder), name))


def done_by_earlier(output: Storage, args: argparse.Namespace) -> set[str]:
    """The places of the images that have a row; writes down by which settings they come about. Raises RunnerError."""
    there = output.names()
    shards = [name for name in there if name.startswith("results-") and name.endswith(tuple(ENDINGS.values()))]
    if shards and not args.resume:
        raise RunnerError(f"{args.output_dir}: results of an earlier run are there; --resume goes on with them, "
                                "or give another --output_dir")
    model = Path(args.model_dir)
    files = [model] if model.suffix.lower() == ".onnx" else infer.find_model(model)
    content = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    settings = {"model": f"{model.name} (SHA-256 {content[:8]})", "format": args.format, "threshold": args.threshold,
                "calibrated": args.calibrated}
    before = json.loads(output.read(SETTINGS)) if shards and SETTINGS in there else settings
    for key, value in settings.items():
        if before.get(key) != value:
            raise RunnerError(f"{args.output_dir}: the results that are there were made with {key} "
                                    f"{before.get(key)}, and now it is {value}; resume with the same, or give another "
                                    "--output_dir")
    output.write(SETTINGS, json.dumps(settings).encode())

    def files_of(name: str) -> Iterable[str]:
        data = output.read(name)
        try:
            if name.endswith(".jsonl"):
                return {json.loads(line)["file"] for line in data.decode("utf-8").split("\n") if line}
            import pyarrow.parquet

            return set(pyarrow.parquet.read_table(io.BytesIO(data), columns=["file"])["file"].to_pylist())
        except (ValueError, KeyError, TypeError) as error:  # pyarrow's are ValueErrors
            raise RunnerError(f"{args.output_dir}/{name}: not a file of results ({end_of(error)}); move it "
                                    "away") from error

    with ThreadPoolExecutor(16) as pool:
        return {place_of(file) for files in pool.map(files_of, shards) for file in files}
