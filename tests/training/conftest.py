"""Runs draw each chart of their report in a quarter of a second; what is drawn is tested with the report."""
import numpy as np
import pytest

from ppgfl.evaluation import charts


@pytest.fixture(scope="package", autouse=True)
def blank_charts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_picture", lambda figure: np.full((60, 80, 3), 255, np.uint8))
        yield
