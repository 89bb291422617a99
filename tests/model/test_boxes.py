import numpy as np
import paddle

from ppgfl.model import boxes


def tensor(values):
    return paddle.to_tensor(np.array(values, np.float32))


def test_cells_sit_at_multiples_of_the_stride_row_by_row():
    centers = boxes.cell_centers(2, 3, 8).numpy()
    np.testing.assert_array_equal(centers, [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]])
    np.testing.assert_array_equal(boxes.cell_centers(1, 2, 8, offset=0.5).numpy(), [[4, 4], [12, 4]])


def test_distances_and_boxes_are_inverse():
    centers, distances = tensor([[10, 20]]), tensor([[1, 2, 3, 4]])
    box = boxes.distances_to_boxes(centers, distances)
    np.testing.assert_array_equal(box.numpy(), [[9, 18, 13, 24]])
    np.testing.assert_array_equal(boxes.boxes_to_distances(centers, box).numpy(), distances.numpy())


def test_iou_and_giou_by_pencil():
    a = tensor([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1]])
    b = tensor([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 3, 1]])
    np.testing.assert_allclose(boxes.iou(a, b).numpy(), [1, 1 / 7, 0], atol=1e-6)
    # hull 9: 1/7 - 2/9; hull 3, union 2: 0 - 1/3
    np.testing.assert_allclose(boxes.giou(a, b).numpy(), [1, 1 / 7 - 2 / 9, -1 / 3], atol=1e-6)


def test_boxes_without_a_size_are_finite():
    point = tensor([[5, 5, 5, 5]])
    assert boxes.iou(point, point).numpy() == 0
    assert np.isfinite(boxes.giou(point, point).numpy()).all()
