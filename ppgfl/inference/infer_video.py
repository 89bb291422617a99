"""Detect on videos, cameras and streams: drawn videos, and JSON lines with frame and time."""
from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from ..checked import check
from ..config.keys import setting
from ..errors import ConfigError, DataError
from ..system import dist
from ..system.log import logger
from ..system.progress import progress
from ..system.text import shown
from .detections import Detections
from .detector import Rows, open_detector
from .infer import check_scores, images_to_look_at
from .runner import ahead
from .slicing import Slicing
from .video import RECONNECTS, Frame, Source, Video, expand, in_thread, is_address, is_camera, is_video


def infer_videos(cfg: dict[str, Any], sources: Sequence[Source], *, output_dir: str = "output", every: int = 1,
                 reconnects: int = RECONNECTS, draw_threshold: float = 0.5, save_results: str | None = None,
                 save_threshold: float = 0.0, slicing: Slicing | None = None, pictures: bool = True,
                 tta: str | None = None, sigma: bool = False, draw_sigma: bool = False,
                 calibrated: bool = False, exported: str | os.PathLike[str] | None = None,
                 runner: dict[str, Any] | None = None) -> None:
    """Detect on videos, files, cameras or addresses: for each NAME.mp4 or NAME.webm (see `video.drawn_ending`) with its
    boxes, of its size, rate and number of frames, and NAME.jsonl with one line per frame, in constant memory.

    Args:
        every: take every n-th frame; the drawn video has the n-th part of the rate.
        save_results: None, "json" or "jsonl", which all give NAME.jsonl. Other arguments as of `infer.infer`.

    Raises: ConfigError, DataError, CheckpointError.
    """
    if save_results not in (None, "json", "jsonl"):
        raise ConfigError(f"--save_results {save_results}: of a video there are JSON lines; give jsonl")
    check_scores(draw_threshold=draw_threshold, save_threshold=save_threshold)
    if every < 1:
        raise ConfigError(f"--every: {every}; it must be at least 1")
    check(cfg)
    dist.start()
    folder = Path(output_dir)
    targets = target_names(sources, folder, drawn_ending())
    detector = open_detector(cfg, slicing=slicing, tta=tta, sigma=sigma or draw_sigma, calibrated=calibrated,
                             exported=exported, runner=runner)
    names, _ = images_to_look_at(cfg, [], folder).classes_of(detector.class_names,
                                                             by_place=setting(cfg, "match_classes") == "place")
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in list(zip(sources, targets))[dist.rank()::dist.world_size()]:
        video = Video(source, every, reconnects)
        count = boxes = 0

        def draw(pair: tuple[Frame, Rows]) -> tuple[Detections, np.ndarray | None]:
            one = pair[0].detections(pair[1], names)
            return one, one.draw(draw_threshold, with_sigma=draw_sigma) if pictures else None

        with closing(in_thread(video)) as found, \
                open(target.with_suffix(".jsonl"), "w", encoding="utf-8") as lines, \
                video_writer(target, video.rate) as write, \
                closing(ahead(draw, detector.stream((frame, frame.image) for frame in found))) as drawn:
            for one, picture in progress(drawn, total=video.promised, unit="frame", what=shown(video.shown)):
                lines.write(one.above(save_threshold).to_json() + "\n")
                lines.flush()  # for whoever reads along
                if picture is not None:
                    write(picture)
                count, boxes = count + 1, boxes + len(one.above(draw_threshold))
        logger.info("%d frames of %s in %s%s", count, video.shown, target.with_suffix(".jsonl").resolve(),
                    f", drawn in {target.name}: {boxes} boxes" if pictures else "")


def split_inputs(places: Sequence[str], leave_out: str) -> tuple[list[str], list[Source]]:
    """The images, and the videos, that are at files, folders, patterns and addresses; see `video.expand`. Folders stay
    as they are, and so do files: whoever reads them finds the images in them."""
    images: list[str] = []
    videos: list[Source] = []
    for place in places:
        for source in [place] if os.path.isdir(place) else expand(place, leave_out=leave_out):
            if is_video(source) and not os.path.isdir(source):
                videos.append(source)
            else:
                images.append(str(source))
    return images, videos


def drawn_ending() -> str:
    """Of a drawn video: .mp4 (H.264) where PyAV is installed, else .webm (VP8), which OpenCV writes by itself. Browsers
    play both; the MPEG-4 of OpenCV's "mp4v" they do not."""
    return ".mp4" if importlib.util.find_spec("av") else ".webm"


@contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A call that appends an image [H, W, 3] uint8 BGR to a video in the format of the path's ending (`drawn_ending`).
    All get the size of the first; an odd number of rows or columns is made even by repeating the last, since neither
    format has them. Raises DataError: it cannot be written."""
    opened: list[tuple[Callable[[np.ndarray], Any], Callable[[], Any], tuple[int, int]]] = []

    def write(image: np.ndarray) -> None:
        if not opened:
            height, width = image.shape[0] + image.shape[0] % 2, image.shape[1] + image.shape[1] % 2
            start = _start_h264 if path.suffix == ".mp4" else _start_vp8
            opened.append((*start(path, rate, width, height), image.shape[:2]))
        append, _, (height, width) = opened[0]
        if image.shape[:2] != (height, width):  # of a stream that changed
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        append(cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))

    try:
        yield write
    finally:
        for _, close, _ in opened:
            close()


Writer = tuple[Callable[[np.ndarray], Any], Callable[[], Any]]


def _start_h264(path: Path, rate: float, width: int, height: int) -> Writer:
    import av

    container = av.open(str(path), "w", options={"movflags": "+faststart"})  # plays before all of it has arrived
    stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001),
                                  options={"crf": "20", "preset": "veryfast"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"

    def append(image: np.ndarray) -> None:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))

    def close() -> None:
        container.mux(stream.encode())
        container.close()

    return append, close


def _start_vp8(path: Path, rate: float, width: int, height: int) -> Writer:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"VP80"), rate, (width, height))
    if not writer.isOpened():
        raise DataError(f"{path}: this OpenCV writes no VP8; pip install \"ppgfl[video]\", which writes H.264")
    return writer.write, writer.release


def target_names(sources: Sequence[Source], folder: Path, ending: str) -> list[Path]:
    """For each video where its drawn one goes: its name with the ending, below the folder; -2, -3, ... behind equal
    ones. Raises a DataError rather than write over a source."""
    real = {os.path.realpath(str(source)) for source in sources if not is_camera(source) and not is_address(source)}
    taken: dict[str, Source] = {}
    for source in sources:
        parts = urlsplit(str(source))
        place = unquote(parts.path).strip("/") or parts.hostname or "stream" if is_address(source) else str(source)
        stem = f"camera_{source}" if is_camera(source) else os.path.splitext(os.path.basename(place))[0][:100]
        names = (f"{stem}{'' if number == 1 else f'-{number}'}{ending}" for number in range(1, len(sources) + 1))
        taken[next(name for name in names if name not in taken)] = source
    for name in taken:
        if os.path.realpath(folder / name) in real:
            raise DataError(f"{folder / name}: the drawn video would replace its source; give another --output_dir")
    return [folder / name for name in taken]
