"""The proof of an export with NMS: ties may be decided either way, all else has to be the same."""
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from ppgfl import ExportError
from ppgfl.inference.verify import _largest_differences
from ppgfl.model.decode import MultiClassNMS

# Three overlap: two with scores that are equal but for rounding, one worse. One stands alone, one is of class 1.
CELLS = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]], np.float32)
SHARES = np.array([[0.8, 0], [0.8000002, 0], [0.7, 0], [0.6, 0], [0, 0.5]], np.float32)
FIRST = [[0, 0.8, 0, 0, 10, 10], [0, 0.6, 50, 50, 60, 60], [1, 0.5, 0, 0, 10, 10]]
SECOND = [[0, 0.8, 2, 0, 12, 10], *FIRST[1:]]


def differences(rows, **nms):
    """Of an export that gives these rows."""
    decoder = SimpleNamespace(decode=lambda *_: (paddle.to_tensor(CELLS[None]), paddle.to_tensor(SHARES[None])),
                              nms=MultiClassNMS(nms_threshold=0.5, **nms), threshold=lambda: 0.05)
    model = SimpleNamespace(decoder=decoder, features=np.shape, head=SimpleNamespace(distribution_project=None))
    graph = SimpleNamespace(nms=True, bare=False, inputs=["image"], model=model)
    wanted = decoder.nms(paddle.to_tensor(CELLS[None]), paddle.to_tensor(SHARES.T[None]), 0.05)
    got = [np.asarray(rows, np.float32).reshape(-1, 6), np.array([len(rows)], np.int32)]
    return _largest_differences(graph, lambda arrays: got, [{"image": np.zeros([1, 3, 8, 8], np.float32)}],
                                [[each.numpy() for each in wanted]])


@pytest.mark.parametrize("rows", [FIRST, SECOND])
def test_either_of_two_equal_boxes(rows):
    box, score = differences(rows)
    assert box == 0 and score < 2e-5


@pytest.mark.parametrize("rows", [FIRST[:1], SECOND[:1]])
def test_either_is_the_best(rows):
    assert differences(rows, keep_top_k=1)[0] == 0


@pytest.mark.parametrize("rows, off", [
    ([[0, 0.8, 1, 0, 11, 10], *FIRST[1:]], "another box with the score of the best"),
    ([[0, 0.8, 0, 0, 10, 12], *FIRST[1:]], "a side is off by two"),
    ([[0, 0.81, 0, 0, 10, 10], *FIRST[1:]], "a score is off"),
    ([[1, 0.8, 0, 0, 10, 10], *FIRST[1:]], "another class"),
    ([[0, 0.7, 1, 0, 11, 10], *FIRST[1:]], "the worse one stayed"),
    ([FIRST[0], [0, 0.6, 0, 0, 10, 10], FIRST[2]], "a box of another cell"),
])
def test_what_no_tie_explains(rows, off):
    try:
        box, score = differences(rows)
    except ExportError:
        return
    assert box > 0.01 or score > 1e-4, off


@pytest.mark.parametrize("rows", [FIRST[:2], [*FIRST, SECOND[0]], []])
def test_other_numbers_of_rows(rows):
    with pytest.raises(ExportError, match="the exported graph gives .* where the model gives"):
        differences(rows)
