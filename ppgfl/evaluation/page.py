"""The page of a run: one file that opens without a network, on a phone and on a wide screen, light and dark."""
from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

from ..system.text import shown

MEANINGS = {
    "AP": "mean over classes of the area under precision over recall, averaged over IoU 0.50 to 0.95",
    "AP50": "the same at IoU 0.50: found, roughly in place",
    "AP75": "the same at IoU 0.75: found, closely in place",
    "APs": "AP of small objects, below 32² pixels", "APm": "AP of medium objects, 32² to 96² pixels",
    "APl": "AP of large objects, above 96² pixels",
    "AR1": "share of objects found with one detection per image and class, averaged over IoU 0.50 to 0.95",
    "AR10": "the same with 10 detections", "AR100": "the same with 100 detections",
    "mAP": "mean over classes of VOC's AP: an object is found when IoU exceeds 0.50",
    "ARs": "AR100 of small objects", "ARm": "AR100 of medium objects", "ARl": "AR100 of large objects"}
CAPTIONS = {
    "precision_recall": ("Precision over recall", "Of what is kept, how much is right (precision); of what is there, "
                                                  "how much is found (recall)."),
    "f1_over_score": ("F1 over the minimum score", "F1 is the harmonic mean of precision and recall."),
    "confusion": ("Confusion", "Rows: what is there. Columns: what it was found as. The last of either: nothing."),
    "ap_by_size": ("AP by size", "“None” where the images have no object of that size."),
    "reliability": ("Scores", "Of the detections with a score, how many are right; calibrated with what was fitted on "
                              "the other half of the images."),
    "sigma": ("Sigma", "Whether sides with a larger sigma lie further off."),
    "training": ("Training", "Losses and AP after each epoch.")}

Photos = Sequence[tuple[str, np.ndarray]]  # file name, picture


def page(title: str, *, verdict: str, metrics: Mapping[str, Any], interval: tuple[float, float] | None,
         facts: Mapping[str, str], rows: Sequence[Mapping[str, Any]], charts: Mapping[str, np.ndarray],
         photos: Mapping[str, tuple[str, Photos]]) -> str:
    """The HTML of a report.

    Args:
        title: plain text, as all below but `verdict`.
        verdict: HTML of the paragraph below the title.
        metrics: some of MEANINGS, 0 to 1, -1 where there is nothing to find.
        interval: of the AP, 95 %.
        facts: {what: value}, as date and weights; those without a value are left out.
        rows: of the table of classes.
        charts: {name of CAPTIONS: picture}.
        photos: {headline: (sentence, [(caption, picture)])}.
    """
    template = Template(Path(__file__).with_name("report_page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=_text(title), verdict=verdict, numbers=_numbers(metrics, interval), classes=_table(rows),
        facts="".join(f"<dt>{_text(what)}</dt><dd>{_text(value)}</dd>" for what, value in facts.items() if value),
        charts="".join(_chart(name, picture) for name, picture in charts.items()),
        photos="".join(f"<h2>{_text(headline)}</h2><p>{_text(sentence)}</p><div class='photos'>"
                       + "".join(_photo(sentence, *photo) for photo in group) + "</div>"
                       for headline, (sentence, group) in photos.items() if group))


def _text(text: object) -> str:
    return html.escape(shown(text))


def _numbers(metrics: Mapping[str, Any], interval: tuple[float, float] | None) -> str:
    items = []
    for name, meaning in ((name, meaning) for name, meaning in MEANINGS.items() if name in metrics):
        value = "none" if metrics[name] < 0 else f"{metrics[name]:.3f}"
        if name == "AP" and interval:
            meaning = f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}; {meaning}"
        items.append(f"<li>{name}<b>{value}</b><span>{meaning}</span></li>")
    return "".join(items)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{_text(key)}</th>' for key in rows[0])
    body = []
    for row in rows:
        name, *values = row.values()
        cells = "".join(f"<td>{f'{value:.3f}' if isinstance(value, float) else _text(value)}</td>" for value in values)
        body.append(f'<tr><th scope="row" title="{_text(name)}"><bdi>{_text(name)}</bdi></th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _chart(name: str, picture: np.ndarray) -> str:
    headline, sentence = CAPTIONS[name]
    return (f"<figure><h2>{headline}</h2>{_picture(picture, '.png', f'{headline}. {sentence}')}"
            f"<figcaption>{_text(sentence)}</figcaption></figure>")


def _photo(sentence: str, caption: str, picture: np.ndarray) -> str:
    return (f"<figure>{_picture(picture, '.jpg', f'{caption}. {sentence}')}"
            f'<figcaption title="{_text(caption)}">{_text(caption)}</figcaption></figure>')


def _picture(picture: np.ndarray, suffix: str, alt: str) -> str:
    """A picture that a click shows at its size."""
    data = base64.b64encode(cv2.imencode(suffix, picture)[1].tobytes()).decode()
    (height, width), kind = picture.shape[:2], {".png": "png", ".jpg": "jpeg"}[suffix]
    chart = ' class="chart"' if suffix == ".png" else ""
    return (f'<button class="zoom" title="Show at its size"><img{chart} alt="{_text(alt)}" width="{width}" '
            f'height="{height}" src="data:image/{kind};base64,{data}"></button>')
