"""What is left to a GPU gives the very values that the host makes; tried on the CPU, by saying that there is one."""
import numpy as np
import paddle
import pytest
from helpers import draw_image, tiny_config

from ppgfl.build import build_dataset, build_loader, build_reader
from ppgfl.data.batch import PadBatch, Reader
from ppgfl.data.device import for_device, normalized, to_device
from ppgfl.data.transforms import Decode, NormalizeImage, Permute, Resize
from ppgfl.evaluation.report import draw_batch
from ppgfl.system import framework, runtime

SIZES = [(64, 96), (96, 64), (33, 40)]


@pytest.fixture
def images():
    rng = np.random.default_rng(5)
    return [draw_image(rng, *size)[0] for size in SIZES]


def bits(tensor):
    return np.asarray(tensor).view(np.int32)  # so that -0 is not 0


def test_pencil_numbers():
    table = np.arange(768, dtype=np.float32).reshape(3, 256).T[None]  # 0, 1, ... of red, 256, ... of green
    image = paddle.to_tensor(np.array([[[[0, 255]], [[1, 2]], [[7, 9]]]], np.uint8))
    assert normalized(image, None, table).numpy().tolist() == [[[[0, 255]], [[257, 258]], [[519, 521]]]]
    assert normalized(image, paddle.to_tensor([[1, 1]], "int32"), table).numpy().tolist() == \
        [[[[0, 0]], [[257, 0]], [[519, 0]]]]


@pytest.mark.parametrize("normalize", [{}, {"is_scale": False}, {"norm_type": "none"},
                                       {"mean": [0.5, 0.4, 0.3], "std": [1, 2, 3]}])
def test_values_are_those_of_the_host_bit_for_bit(images, normalize):
    reader = Reader([Decode(), Resize([70, 90], True), NormalizeImage(**normalize), Permute()], [PadBatch(32)])
    left = for_device(reader, on_gpu=True)
    assert left.left_out is reader.sample_transforms[2]
    batch, wanted = left(images), reader(images)
    assert batch["image"].dtype == np.uint8
    assert batch["image"].nbytes * 4 == wanted["image"].nbytes
    tensors = to_device(batch, left)
    assert set(tensors) == set(wanted)
    for key, value in wanted.items():
        assert tensors[key].numpy().dtype == value.dtype
        np.testing.assert_array_equal(bits(tensors[key].numpy().astype(np.float32)), bits(value.astype(np.float32)))


def test_the_host_waits_for_nothing(monkeypatch):
    image, sizes = paddle.zeros([2, 3, 8, 9], "uint8"), paddle.full([2, 2], 5, "int32")
    for name in ("numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__array__", "__index__"):
        monkeypatch.setattr(paddle.Tensor, name, lambda self, *_: pytest.fail("the host reads from the device"))
    normalized(image, sizes, NormalizeImage().table)


def test_one_size_needs_no_padding(images):
    reader = Reader([Decode(), Resize([64, 64], False), NormalizeImage(), Permute()], [])
    left = for_device(reader, on_gpu=True)
    np.testing.assert_array_equal(bits(to_device(left(images), left)["image"].numpy()), bits(reader(images)["image"]))


class Brighter:
    def __call__(self, sample, rng=None):
        sample["image"] = sample["image"] * np.float32(2)


@pytest.mark.parametrize(("sample_transforms", "batch_transforms"), [
    ([Decode(), Permute()], []), ([Decode(), NormalizeImage(), Brighter(), Permute()], []),
    ([Decode(), NormalizeImage(), Permute(), Brighter()], []), ([NormalizeImage(), NormalizeImage(), Permute()], []),
    ([Decode(), NormalizeImage(), Permute()], [lambda samples: samples]),
])
def test_another_order_stays_on_the_host(sample_transforms, batch_transforms):
    reader = Reader(sample_transforms, batch_transforms)
    assert for_device(reader, on_gpu=True) is reader


def test_nothing_is_left_out_on_a_cpu():
    reader = build_reader(tiny_config(), "TrainReader")
    assert for_device(reader) is reader is for_device(reader, on_gpu=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_the_same_and_can_be_drawn(small_coco, monkeypatch, workers):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"TrainDataset.dataset_dir={small_coco}", "TrainDataset.image_dir=val2017",
                      "TrainReader.batch_size=2", f"worker_num={workers}")
    dataset = build_dataset(cfg, "TrainDataset")
    monkeypatch.setattr(runtime, "physical_cores", lambda: 3)
    made = []
    for on_gpu in (False, True):
        monkeypatch.setattr(framework, "on_gpu", lambda on_gpu=on_gpu: on_gpu)
        loader = build_loader(cfg, "TrainReader", dataset.records)
        assert (loader.maker.reader.left_out is not None) == on_gpu
        assert loader.threads == (3 if on_gpu else 1)
        made.append(list(loader.epoch()))
    assert len(made[0]) == len(made[1]) > 1
    for a, b in zip(*made):
        assert list(a) == list(b)
        assert all(np.array_equal(a[key].numpy(), b[key].numpy()) for key in a)
    pictures = [draw_batch(batches[0], loader.maker.reader, dataset.class_names) for batches in made]
    np.testing.assert_array_equal(*pictures)
