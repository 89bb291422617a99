"""What the report says about scores and sigmas: charts and lines, before and after their calibration."""
from __future__ import annotations

import numpy as np

from . import calibration
from .calibration import ONE_SIGMA, SIDES, TWO_SIGMA, Judged
from .charts import draw_reliability, draw_sigma

LOW = 0.3  # most detections score less and are wrong, which makes the error over all of them small
LEAST_MATCHES = 10  # detections that are right; of fewer, nothing is said about sigma


def trust(judged: Judged) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Charts {name of `page.CAPTIONS`: picture} and facts {what: line} of detections, of those there is something to
    say about. What is said to be "after" has been fitted on the other half of the images."""
    charts, facts = {}, {}
    after = calibration.cross_fitted(judged)
    if judged.hits.any():
        charts["reliability"] = draw_reliability(judged, None if after is None else after[0])
        facts["Scores"] = _about_scores(judged, after)
    if judged.sigma is not None and judged.hits.sum() >= LEAST_MATCHES:
        fitted = calibration.fit(judged)
        charts["sigma"] = draw_sigma(judged, None if fitted is None else fitted.sigma_scale)
        facts["Sigma"] = _about_sigma(judged, after)
    return charts, facts


def _about_scores(judged: Judged, after: tuple[np.ndarray, np.ndarray] | None) -> str:
    parts = []
    for what, chosen in (("", judged.scores >= 0), (f" that score at least {LOW}", judged.scores >= LOW)):
        scores, hits = (values[chosen] for values in (judged.scores, judged.hits))
        line = f"of {len(hits)} detections{what} {hits.sum()} are right, expected calibration error "
        line += f"{calibration.calibration_error(scores, hits):.3f}"
        if after:
            line += f", {calibration.calibration_error(after[0][chosen], hits):.3f} after calibration"
        parts.append(line)
    return "; ".join(parts)


def _about_sigma(judged: Judged, after: tuple[np.ndarray, np.ndarray] | None) -> str:
    assert judged.sigma is not None
    errors, sigma = np.abs(judged.errors[judged.hits]), judged.sigma[judged.hits]
    ranks = ", ".join(f"{side} {calibration.rank_correlation(errors[:, i], sigma[:, i]):.2f}"
                      for i, side in enumerate(SIDES))
    ratios = calibration.ratios(judged)
    line = (f"of {len(errors)} detections that are right; rank correlation with the error: {ranks}; within ±1 sigma "
            f"{(ratios <= 1).mean():.1%} of the sides, within ±2 sigma {(ratios <= 2).mean():.1%}")
    if after:
        ratios = ratios / after[1][judged.hits][:, None]
        line += f"; after calibration {(ratios <= 1).mean():.1%} and {(ratios <= 2).mean():.1%}"
    return f"{line} (normal: {ONE_SIGMA:.1%} and {TWO_SIGMA:.1%})"
