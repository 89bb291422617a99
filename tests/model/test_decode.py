import warnings

import numpy as np
import paddle
import pytest
from paddle import inference
from paddle.static import InputSpec

from ppgfl import ConfigError
from ppgfl.inference.detections import split_batch
from ppgfl.inference.export import formats_for
from ppgfl.model import decode, operators
from ppgfl.model.decode import Decoder, MultiClassNMS
from ppgfl.model.gfl import Features
from ppgfl.model.head import Integral


def naive_nms(boxes, scores, score_threshold, nms_top_k, keep_top_k, nms_threshold):
    """[A, 4], [C, A] -> rows (class, score, box), by the definition."""
    kept = []
    for c in range(len(scores)):
        order = [i for i in np.argsort(-scores[c], kind="stable") if scores[c, i] > score_threshold][:nms_top_k]
        chosen = []
        for i in order:
            if all(naive_iou(boxes[i], boxes[j]) <= nms_threshold for j in chosen):
                chosen.append(i)
        kept += [(c, scores[c, i], *boxes[i]) for i in chosen]
    kept = sorted(kept, key=lambda row: -row[1])[:keep_top_k]
    return np.array(sorted(kept, key=lambda row: (row[0], -row[1])), np.float32).reshape(-1, 6)


def naive_iou(a, b):
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


@pytest.mark.parametrize("seed", range(5))
def test_nms_equals_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (2, 40, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 40, (2, 40, 2))], -1).astype("float32")
    scores = rng.uniform(0, 1, (2, 3, 40)).astype("float32")
    settings = dict(score_threshold=0.3, nms_top_k=15, keep_top_k=20, nms_threshold=0.4)
    bbox, bbox_num = MultiClassNMS(**settings)(paddle.to_tensor(boxes), paddle.to_tensor(scores))
    expected = [naive_nms(b, s, **settings) for b, s in zip(boxes, scores)]
    np.testing.assert_array_equal(bbox_num.numpy(), [len(e) for e in expected])
    np.testing.assert_allclose(bbox.numpy(), np.concatenate(expected), atol=1e-6)


def test_nothing_above_the_threshold_gives_no_rows():
    bbox, bbox_num = MultiClassNMS(score_threshold=0.9)(paddle.zeros([2, 5, 4]), paddle.zeros([2, 3, 5]))
    assert list(bbox.shape) == [0, 6]
    assert bbox_num.numpy().tolist() == [0, 0]


def one_cell(logit, im_shape=None, **options):
    """One level of one cell at stride 8 with a sharp box of 1, 2, 3, 4 strides."""
    reg = np.full((1, 4 * 17, 1, 1), -50.0, np.float32)
    reg[0, [1, 17 + 2, 34 + 3, 51 + 4]] = 50.0
    decoder = Decoder(strides=(8,), num_classes=2, nms=MultiClassNMS(score_threshold=0.025), **options)
    maps = Features([], [paddle.to_tensor(np.array(logit, np.float32).reshape(1, -1, 1, 1))], [paddle.to_tensor(reg)])
    return decoder(maps, Integral(16), paddle.to_tensor([[2.0, 4.0]]), im_shape)["bbox"].numpy()


def test_a_box_by_pencil_in_pixels_of_the_original_image():
    rows = one_cell([0.0, -9.0])
    # cell centre 0, 0: x from -8 to 24, y from -16 to 32; the input is 4 times as wide and twice as high
    np.testing.assert_allclose(rows, [[0, 0.5, -2, -8, 6, 16]], atol=1e-4)


def test_boxes_are_cut_at_the_borders_of_the_image_on_request():
    rows = one_cell([0.0, -9.0], im_shape=paddle.to_tensor([[20.0, 12.0]]), clip_boxes=True)
    np.testing.assert_allclose(rows, [[0, 0.5, 0, 0, 3, 10]], atol=1e-4)


def test_clipping_comes_before_nms_and_each_image_has_its_own_borders():
    """Two boxes that overlap little, but are the same inside of the first image, of 8 x 8 pixels."""
    reg = np.full((2, 4 * 17, 1, 2), -50.0, np.float32)
    for cell, sides in enumerate([(1, 1, 1, 9), (9, 1, 0, 1)]):  # in strides; the second cell is at 8, 0
        reg[:, [17 * i + side for i, side in enumerate(sides)], 0, cell] = 50.0
    maps = Features([], [paddle.to_tensor(np.full((2, 1, 1, 2), 2.0, np.float32))], [paddle.to_tensor(reg)])
    shapes = paddle.to_tensor([[8.0, 8.0], [100.0, 100.0]])
    for clip_boxes, kept in ((True, [1, 2]), (False, [2, 2])):
        decoder = Decoder((8,), 1, MultiClassNMS(nms_threshold=0.6), clip_boxes=clip_boxes)
        found = decoder(maps, Integral(16), paddle.ones([2, 2]), shapes)
        assert found["bbox_num"].numpy().tolist() == kept
    decoder = Decoder((8,), 1, MultiClassNMS(), clip_boxes=True)
    boxes, _ = decoder.decode(maps, Integral(16), paddle.ones([2, 2]), shapes)
    np.testing.assert_allclose(boxes.numpy(), [[[0, 0, 8, 8]] * 2, [[0, 0, 8, 72], [0, 0, 8, 8]]], atol=1e-4)


def test_each_level_may_have_an_offset_of_its_own():
    offsets = [(s - 1) / 2 / s for s in (8, 16)]  # GFocal v1: the cells' centres are those of their pixels
    decoder = Decoder(strides=(8, 16), num_classes=1, nms=MultiClassNMS(), cell_offset=offsets)
    maps = Features([], [paddle.zeros([1, 1, 1, 2]), paddle.zeros([1, 1, 1, 1])],
                    [paddle.zeros([1, 68, 1, 2]), paddle.zeros([1, 68, 1, 1])])
    boxes, _ = decoder.decode(maps, Integral(16), paddle.ones([1, 2]))
    centers = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    np.testing.assert_allclose(centers.numpy(), [[3.5, 3.5], [11.5, 3.5], [7.5, 7.5]], atol=1e-5)


@pytest.mark.parametrize("offsets", [[0.5], [0.1] * 3, []])
def test_a_list_of_offsets_has_one_for_each_level(offsets):
    with pytest.raises(ConfigError, match=f"of {len(offsets)}, but there are 2 levels"):
        Decoder(strides=(8, 16), num_classes=1, nms=MultiClassNMS(), cell_offset=offsets)


def test_gflv2_scores_are_the_joint_score_and_the_last_channel_is_no_class():
    rows = one_cell([0.001, 0.6, 0.9], joint_scores=True)
    np.testing.assert_allclose(rows[:, :2], [[0, 0.001], [1, 0.6]], atol=1e-6)  # sigmoid(0.001) > 0.025: kept
    rows = one_cell([0.001, 0.6, 0.9], joint_scores=True, upstream_scores=True)
    np.testing.assert_allclose(rows[:, :2], [[0, 0.50025], [1, 0.645656], [2, 0.71095]], atol=1e-5)


def test_a_separate_quality_is_a_factor_of_each_class():
    decoder = Decoder((8,), 2, MultiClassNMS(), separate_quality=True)
    scores = decoder.scores([paddle.to_tensor(np.log([[[[1.0]], [[3.0]], [[1 / 3]]]]).astype("float32"))]).numpy()
    np.testing.assert_allclose(scores[0, :, 0], [0.5 * 0.25, 0.75 * 0.25], rtol=1e-6)


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 2), (0.5, 1), (0.6, 1), (0.65, 0), (1.0, 0)])
def test_gflv2_reads_the_threshold_as_paddledetection_does(threshold, kept):
    # sigmoid(0.6) = 0.6457; sigmoid(0) = 0.5 is not above 0.5
    decoder = Decoder(strides=(8,), num_classes=2, joint_scores=True, nms=MultiClassNMS(score_threshold=threshold))
    maps = Features([], [paddle.to_tensor(np.array([0.0, 0.6, 0.9], np.float32).reshape(1, 3, 1, 1))],
                    [paddle.zeros([1, 68, 1, 1])])
    assert len(decoder(maps, Integral(16), paddle.ones([1, 2]))["bbox"]) == kept


@pytest.mark.parametrize("clusters", [400, 20], ids=["the first look is enough", "it is not"])
def test_nms_of_very_many_candidates_is_that_of_all(clusters, monkeypatch):
    rng = np.random.default_rng(clusters)
    # Boxes of a cluster suppress each other, so 3 classes of 20 clusters leave 60 detections.
    corners = rng.integers(0, clusters, (2, 9000, 1)) * 50.0 + rng.uniform(0, 2, (2, 9000, 2))
    boxes = paddle.to_tensor(np.concatenate([corners, corners + 30], axis=2).astype("float32"))
    scores = paddle.to_tensor(rng.uniform(0, 1, (2, 3, 9000)).round(3).astype("float32"))  # with ties
    calls, plain = [], decode.MultiClassNMS._suppress
    monkeypatch.setattr(decode.MultiClassNMS, "_suppress", lambda *a: calls.append(0) or plain(*a))
    nms = MultiClassNMS(score_threshold=-0.5, keep_top_k=100, nms_threshold=0.4)
    found = nms(boxes, scores)
    assert len(calls) == (1 if clusters == 400 else 2)
    for ours, all_of_them in zip(found, plain(nms, boxes, scores, -0.5)):
        np.testing.assert_array_equal(ours.numpy(), all_of_them.numpy())


def test_without_nms_every_cell_comes_out():
    decoder = Decoder(strides=(8, 16), num_classes=3, nms=MultiClassNMS())
    maps = Features([], [paddle.zeros([2, 3, 2, 4]), paddle.zeros([2, 3, 1, 2])],
                    [paddle.zeros([2, 68, 2, 4]), paddle.zeros([2, 68, 1, 2])])
    boxes, scores = decoder.decode(maps, Integral(16), paddle.ones([2, 2]))
    assert list(boxes.shape) == [2, 10, 4]
    assert list(scores.shape) == [2, 10, 3]
    np.testing.assert_allclose(boxes.numpy()[0, 9], [16 - 128, -128, 16 + 128, 128], rtol=1e-5)


# --- the kernel for GPUs, in numpy: what it demands, and the order of its rows (paddle/phi/kernels/gpu)


CPU_NMS = operators.multiclass_nms


def gpu_nms(boxes, scores, settings):
    """multiclass_nms3 as on a GPU: settings that its kernel does not know go to the CPU's; others may be refused."""
    nms_top_k, keep_top_k, cells = settings["nms_top_k"], settings["keep_top_k"], boxes.shape[1]
    bbox, bbox_num = CPU_NMS(boxes, scores, settings)
    if not 0 <= nms_top_k <= 4096 or keep_top_k < 0 or settings["nms_eta"] != 1.0:
        return bbox, bbox_num
    if nms_top_k > cells:
        raise ValueError(f"(InvalidArgument) Expect nms_top_k ({nms_top_k}) <= num of boxes per batch ({cells}).")
    if keep_top_k > nms_top_k:
        raise ValueError(f"(InvalidArgument) Expect keep_top_k ({keep_top_k}) <= nms_top_k ({nms_top_k}).")
    images = np.split(bbox.numpy(), np.cumsum(bbox_num.numpy())[:-1])
    rows = np.concatenate([rows[np.argsort(-rows[:, 1], kind="stable")] for rows in images])
    return paddle.to_tensor(rows.reshape(-1, 6)), bbox_num


def random_maps(height, width, classes=3, seed=0):
    """Features of 2 images of height x width at strides 8, 16, 32."""
    rng = np.random.default_rng(seed)
    maps = [[paddle.to_tensor(rng.normal(mean, 1.5, (2, channels, -(-height // s), -(-width // s))).astype("float32"))
             for s in (8, 16, 32)] for channels, mean in ((classes, -2.0), (68, 0.0))]
    return Features([], *maps)


SETTINGS = [dict(nms_top_k=top, keep_top_k=keep) for top, keep in
            ((1000, 100), (20, 100), (-1, 100), (5000, 30), (50, -1), (7, 7), (60, 6000), (4096, 6000))]
SETTINGS.append(dict(nms_top_k=300, keep_top_k=50, nms_eta=0.9))


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (320, 416)], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("joint_scores", [False, True], ids=["GFL", "GFLv2"])
def test_a_gpu_finds_what_a_cpu_finds_at_every_size(settings, size, joint_scores, monkeypatch):
    nms = MultiClassNMS(score_threshold=0.3, nms_threshold=0.6, **settings)
    decoder = Decoder(strides=(8, 16, 32), num_classes=3, nms=nms, joint_scores=joint_scores)
    maps = random_maps(*size)
    if joint_scores:
        maps = Features([], [operators.sigmoid(x) for x in maps.cls], maps.reg)
    wanted = [nms._suppress(*decoder._cells(maps, Integral(16), paddle.ones([2, 2])), decoder.threshold()),
              CPU_NMS(*decoder._cells(maps, Integral(16), paddle.ones([2, 2])), plain_settings(decoder))]
    for ours, of_the_kernel_alone in zip(*wanted):
        np.testing.assert_array_equal(ours.numpy(), of_the_kernel_alone.numpy())  # the CPU's, bit for bit
    monkeypatch.setattr(operators, "multiclass_nms", gpu_nms)
    found = decoder(maps, Integral(16), paddle.ones([2, 2]))
    per_image = split_batch(found)
    for rows, cpu_rows in zip(per_image, split_batch(dict(zip(("bbox", "bbox_num"), wanted[1])))):
        assert len(rows)
        np.testing.assert_array_equal(rows, cpu_rows)


def plain_settings(decoder):
    nms = decoder.nms
    return dict(score_threshold=decoder.threshold(), nms_top_k=nms.nms_top_k, keep_top_k=nms.keep_top_k,
                nms_threshold=nms.nms_threshold, normalized=nms.normalized, nms_eta=nms.nms_eta, background_label=-1)


class Tail(paddle.nn.Layer):
    """The end of an exported graph: maps -> detections."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.integral = decoder, Integral(16)

    def forward(self, cls, reg, scale_factor, im_shape=None):
        found = self.decoder(Features([], cls, reg), self.integral, scale_factor, im_shape)
        return found["bbox"], found["bbox_num"]


def predictor_of(decoder, kind, folder):
    """A graph of `Tail`, written and opened."""
    free = [[InputSpec([None, channels, None, None], "float32", f"{name}{i}") for i in range(3)]
            for name, channels in (("cls", 3), ("reg", 68))]
    with formats_for(None)[kind](), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        specs = [*free, *(InputSpec([None, 2], "float32", name) for name in decoder.inputs)]
        tail = Tail(decoder)  # Paddle keeps no reference to it
        static = paddle.jit.to_static(tail.forward, input_spec=specs, full_graph=True)
        paddle.jit.save(static, str(folder / "model"))
    return inference.create_predictor(inference.Config(str(folder / f"model.{kind}"), str(folder / "model.pdiparams")))


def run(predictor, maps, **others):
    arrays = {f"{name}{i}": x for name, each in (("cls", maps.cls), ("reg", maps.reg)) for i, x in enumerate(each)}
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu({**arrays, **others}[name].numpy())
    predictor.run()
    return [paddle.to_tensor(predictor.get_output_handle(n).copy_to_cpu()) for n in predictor.get_output_names()]


@pytest.mark.parametrize("kind", list(formats_for(None)))
def test_an_exported_graph_clips_at_the_borders_of_each_image(kind, tmp_path):
    decoder = Decoder((8, 16, 32), 3, MultiClassNMS(score_threshold=0.3, nms_threshold=0.6), clip_boxes=True,
                      cell_offset=[0.4375, 0.46875, 0.484375])
    predictor = predictor_of(decoder, kind, tmp_path)
    for height, width in ((32, 64), (96, 160)):
        maps = random_maps(height, width)
        shapes = paddle.to_tensor([[height - 7.0, width - 3.0], [height - 30.0, width - 1.0]])
        bbox, bbox_num = run(predictor, maps, scale_factor=paddle.ones([2, 2]), im_shape=shapes)
        wanted = decoder(maps, Integral(16), paddle.ones([2, 2]), shapes)
        np.testing.assert_array_equal(bbox_num.numpy(), wanted["bbox_num"].numpy())
        np.testing.assert_allclose(bbox.numpy(), wanted["bbox"].numpy(), rtol=1e-5, atol=1e-3)
        for rows, (lowest, rightmost) in zip(split_batch(wanted), shapes.numpy()):
            assert (rows[:, 2:] >= 0).all()
            np.testing.assert_array_equal(rows[:, 4:].max(axis=0), [rightmost, lowest])


@pytest.mark.parametrize("kind", list(formats_for(None)))
@pytest.mark.parametrize("settings", SETTINGS[:3], ids=lambda s: "-".join(map(str, s.values())))
def test_an_exported_graph_asks_a_gpu_for_no_more_than_it_gives(kind, settings, tmp_path, monkeypatch):
    decoder = Decoder((8, 16, 32), 3, MultiClassNMS(score_threshold=0.3, nms_threshold=0.6, **settings))
    asked = {}

    def record(boxes, scores, settings):  # the graph ends before its NMS
        asked.update(settings)
        return boxes, scores

    monkeypatch.setattr(operators, "multiclass_nms", record)
    predictor = predictor_of(decoder, kind, tmp_path)
    monkeypatch.setattr(operators, "multiclass_nms", CPU_NMS)
    for size in ((32, 32), (96, 160), (320, 416)):
        maps = random_maps(*size)
        entered = run(predictor, maps, scale_factor=paddle.ones([2, 2]))
        on_gpu = split_batch(dict(zip(("bbox", "bbox_num"), gpu_nms(*entered, asked))))
        for rows, wanted in zip(on_gpu, split_batch(decoder(maps, Integral(16), paddle.ones([2, 2])))):
            np.testing.assert_array_equal(rows[:, 0], wanted[:, 0])
            np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-3)
