"""One subject and one question in a process of its own: `compare.py` starts several and lets them take turns.

    python worker.py ppgfl|paddledet|mmdet|onnxruntime|openvino QUESTION SETTINGS_AS_JSON

An answer is a line that starts with `@@` and goes on as JSON: one when it is ready, then one for each line that it
reads, with the seconds of a run. It imports nothing but its subject, so that it runs in an environment of the peer's
own.
"""
import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


class Ppgfl:
    """What ppgfl does.

    Attributes:
        setting: how it really ran, where that is a matter of choice.
    """

    setting = ""

    def __init__(self, settings):
        sys.path.insert(0, str(ROOT))
        import ppgfl

        data = settings["data"]
        self.settings = settings
        self.cfg = ppgfl.load_config(config_file(settings), [
            "use_gpu=false", "worker_num=0", "TrainReader.shuffle=false", f"EvalDataset.dataset_dir={data}",
            f"TrainDataset.dataset_dir={data}", f"EvalDataset.sample_num={settings['images']}",
            *(f"{reader}.sample_transforms.1.Resize.target_size=[64, 96]" for reader in ("EvalReader", "TestReader")
              if settings["shrink"]), *settings["overrides"]],
            slim_config=settings["slim_config"])
        self.cfg["TrainReader"].update(settings["reader"])

    def export(self):
        """Nothing to measure: it writes what the subjects of `inference` run."""
        import ppgfl

        folder = exported(self.settings)
        ppgfl.export(self.cfg, weights=self.settings["weights"], output_dir=folder, verify=(),
                     onnx=self.settings["onnx"], int8=self.settings["int8"])
        return lambda: 0

    def inference(self):
        """One exported image, decoding and NMS included."""
        from ppgfl.inference.runner import make_runner

        runner = make_runner(exported(self.settings), run_mode=self.settings["run_mode"])
        self.setting = runner.description
        images = inputs(self.settings)
        return lambda: len(runner.run(images)[0])

    def folder(self):
        """Photographs from files to JSON, or only the network on what was made of them."""
        from ppgfl.inference.infer import infer
        from ppgfl.inference.runner import make_runner

        model, mode = exported(self.settings) / self.settings["file"], {"run_mode": self.settings["run_mode"]}
        files = sorted(map(str, Path(self.settings["data"], "val2017").iterdir()))[:self.settings["images"]]
        if not self.settings["bare"]:
            def run():
                infer(self.cfg, files, exported=model, runner=mode, output_dir=Path("found"),
                      save_results="json", pictures=self.settings["pictures"])
                return len(files)

            return run
        from ppgfl.data.image import read_image

        runner = make_runner(model, **mode)
        self.setting = runner.description
        images = [runner.prepare([read_image(file)]) for file in files]
        return lambda: len([runner.run(image) for image in images])

    def matmul(self):
        """The product of two square matrices in float32."""
        import paddle

        matrix = paddle.to_tensor(np.random.default_rng(0).normal(size=[self.settings["matrix"]] * 2).astype("float32"))
        return lambda: len(paddle.matmul(matrix, matrix))

    def evaluation(self):
        """All images, from the files to the twelve numbers, or only the network on their batches; the first call also
        makes the static graph."""
        from ppgfl import evaluate

        if self.settings["bare"]:
            return self._bare_evaluation()

        def run():
            evaluate(self.cfg, weights=self.settings["weights"], output_dir=self.settings["scratch"])
            return self.settings["images"]

        run()
        return run

    def _bare_evaluation(self):
        from ppgfl import build
        from ppgfl.inference.static_model import load_detection_model

        model = load_detection_model(self.cfg, self.settings["weights"], images=1000)
        records = build.build_dataset(self.cfg, "EvalDataset").records
        batches = list(build.build_loader(self.cfg, "EvalReader", records).epoch(arrays=True))

        def run():
            for batch in batches:
                model(batch)
            return len(records)

        return run

    def step(self):
        """Forward, backward and update on one batch whose targets are there already."""
        import paddle

        from ppgfl import build

        side = self.settings["step"]
        model = build.build_model(self.cfg)
        model.train()
        optimizer = build.build_optimizer(self.cfg, model, steps_per_epoch=1000)
        transforms = build.build_reader(self.cfg, "TrainReader").batch_transforms
        target, = [each for each in transforms if type(each).__name__ == "Gt2GFLTarget"]
        batch = {key: paddle.to_tensor(np.stack([s[key] for s in target(samples(2, 8, (side, side)))]))
                 for key in ("image", "labels", "label_weights", "bbox_targets", "pos_num",
                             *(["vlr_regions"] if target.compute_vlr_region else []))}
        batch.update(image=paddle.to_tensor(noise(side)), scale_factor=paddle.ones([2, 2]))

        teacher = build.build_teacher(self.cfg, model) or (lambda given: given)

        def run():
            return train(model, optimizer, teacher(batch))

        return run if not self.settings["teacher_only"] else lambda: len(teacher(batch)["image"])

    def targets(self):
        """Gt2GFLTarget of one image."""
        from ppgfl.data.targets import Gt2GFLTarget

        target = Gt2GFLTarget(num_classes=80, grid_cell_scale=8)
        return lambda: len(target(samples(1, self.settings["boxes"], self.settings["canvas"])))

    def loader(self):
        """Training transforms of all images, in one process, with targets."""
        from ppgfl import build

        dataset = build.build_dataset(self.cfg, "TrainDataset")
        dataset.records = dataset.records[:self.settings["images"]]
        loader = build.build_loader(self.cfg, "TrainReader", dataset.records)
        return lambda: sum(len(batch["image"]) for batch in loader.epoch())


class PaddleDetection:
    """What paddledet 2.6.0 does, from the same config."""

    setting = ""

    def __init__(self, settings):
        os.environ["ENABLE_FALL_BACK"] = "False"  # its export fails otherwise
        from ppdet.core.workspace import load_config, merge_config

        self.settings = settings
        self.cfg = load_config(str(config_file(settings)))
        data = {"dataset_dir": settings["data"], "sample_num": settings["images"]}
        merge_config({"use_gpu": False, "worker_num": 0, "weights": settings["weights"],
                      "TrainDataset": data, "EvalDataset": data, "TrainReader": settings["reader"]})
        for override in settings["overrides"]:
            keys, value = override.split("=")
            merge_config(functools.reduce(lambda value, key: {key: value}, keys.split(".")[::-1], json.loads(value)))
        import paddle

        paddle.set_device("cpu")

    def inference(self):
        """Its export in Paddle Inference, in the fastest setting that gives boxes inside of the image, or nearly."""
        from ppdet.engine import Trainer

        folder = Path(self.settings["scratch"], f"paddledet_{self.settings['model']}")
        if not folder.is_dir():
            trainer = Trainer(self.cfg, mode="test")
            trainer.load_weights(self.cfg.weights)
            trainer.export(str(folder))
        model, images = next(folder.rglob("model.pdmodel")), inputs(self.settings)
        working = []
        for onednn in (True, False):
            for optimised in (True, False):
                run = self._predictor(model, images, onednn, optimised)
                try:
                    run()
                    start = time.perf_counter()
                    boxes = run()[0][:, 2:]
                    seconds = time.perf_counter() - start
                except Exception as error:  # Paddle raises many kinds; another setting may work
                    print(f"oneDNN {onednn}, graph optimisation {optimised}: {error}", file=sys.stderr)
                    continue
                if np.abs(boxes).max() < 1e5:
                    name = f"oneDNN {'on' if onednn else 'off'}, graph optimisation {'on' if optimised else 'off'}"
                    working.append((seconds, name, run))
        _, self.setting, fastest = min(working)
        return lambda: len(fastest()[1])

    @staticmethod
    def _predictor(model, images, onednn, optimised):
        from paddle import inference

        config = inference.Config(str(model), str(model.with_suffix(".pdiparams")))
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(2)
        config.switch_ir_optim(optimised)
        if onednn:
            config.enable_mkldnn()
        predictor = inference.create_predictor(config)

        def run():
            for name in predictor.get_input_names():
                predictor.get_input_handle(name).copy_from_cpu(images[name])
            predictor.run()
            return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]

        return run

    def evaluation(self):
        from ppdet.engine import Trainer

        self.cfg["output_eval"] = self.settings["scratch"]
        trainer = Trainer(self.cfg, mode="eval")
        trainer.load_weights(self.cfg.weights)

        def run():
            trainer.evaluate()
            return self.settings["images"]

        return run

    def step(self):
        import paddle
        from ppdet.core.workspace import create
        from ppdet.data.transform.batch_operators import Gt2GFLTarget

        side = self.settings["step"]
        model = create(self.cfg.architecture)
        model.train()
        rate = create("LearningRate")(1000)
        optimizer = create("OptimizerBuilder")(rate, model)
        target = Gt2GFLTarget(num_classes=80, downsample_ratios=[8, 16, 32, 64, 128], grid_cell_scale=8)
        made = target(samples(2, 8, (side, side)))
        # The reader stacks what the transform adds, and what training reads besides.
        batch = {key: paddle.to_tensor(np.stack([s[key] for s in made])) for key in made[0]
                 if key not in ("gt_bbox", "gt_class", "gt_score", "is_crowd")}
        batch.update(image=paddle.to_tensor(noise(side)), im_shape=paddle.full([2, 2], float(side)),
                     scale_factor=paddle.ones([2, 2]))
        return lambda: train(model, optimizer, batch)

    def targets(self):
        from ppdet.data.transform.batch_operators import Gt2GFLTarget

        target = Gt2GFLTarget(num_classes=80, downsample_ratios=[8, 16, 32, 64, 128], grid_cell_scale=8)
        return lambda: len(target(samples(1, self.settings["boxes"], self.settings["canvas"])))

    def loader(self):
        from ppdet.core.workspace import create

        loader = create("TrainReader")(create("TrainDataset")(), 0)
        # Of `loader` itself the next epoch begins when one ends: a thread would prepare it in the other subject's turn,
        # at his cost, and before the clock runs.
        return lambda: sum(len(batch["image"]) for batch in loader.dataloader)


class MMDetection:
    """What MMDetection 3.3 does on PyTorch with the same network. Its GFL needs none of the compiled operators that
    mmcv-lite lacks, only their names."""

    setting = ""

    def __init__(self, settings):
        sys.meta_path.insert(0, NamesOnly())
        import torch
        from mmdet.registry import MODELS
        from mmengine.registry import init_default_scope
        from mmengine.structures import InstanceData

        init_default_scope("mmdet")
        torch.set_num_threads(2)
        self.settings, self.torch, self.boxes = settings, torch, InstanceData
        self.model = MODELS.build({
            "type": "GFL",
            "backbone": {"type": "ResNetV1d", "depth": 18, "frozen_stages": 0},
            "neck": {"type": "FPN", "in_channels": [64, 128, 256, 512], "out_channels": 256, "start_level": 1,
                     "add_extra_convs": "on_output", "num_outs": 5},
            "bbox_head": {
                "type": "GFLHead", "num_classes": 80, "in_channels": 256, "stacked_convs": 4, "feat_channels": 256,
                "anchor_generator": {"type": "AnchorGenerator", "ratios": [1.0], "octave_base_scale": 8,
                                     "scales_per_octave": 1, "strides": [8, 16, 32, 64, 128]},
                "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
                "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25}, "reg_max": 16,
                "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0}},
            "train_cfg": {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1}})

    def step(self):
        """Forward, targets (it makes them here), backward and update."""
        from mmdet.structures import DetDataSample

        side = self.settings["step"]
        images, given = samples(2, 8, (side, side)), []
        for sample in images:
            one = DetDataSample(metainfo={"img_shape": (side, side), "pad_shape": (side, side)})
            one.gt_instances = self.boxes(bboxes=self.torch.from_numpy(sample["gt_bbox"]),
                                          labels=self.torch.from_numpy(sample["gt_class"][:, 0]).long())
            given.append(one)
        batch = self.torch.from_numpy(noise(side))
        optimizer = self.torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=0.0001)
        self.model.train()

        def run():
            losses = self.model.loss(batch, given)
            sum(part for loss in losses.values() for part in loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            return len(images)

        return run

    def inference(self):
        """The bare network, without decoding and NMS."""
        self.model.eval()
        images = self.torch.from_numpy(inputs(self.settings)["image"])

        def run():
            with self.torch.no_grad():
                return len(self.model.forward(images)[0])

        return run


class NamesOnly(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `mmcv.ops` and all below it as modules that hold an empty class of any name."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[:2] == ["mmcv", "ops"]:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module):
        module.__getattr__ = self.any_class

    @staticmethod
    def any_class(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class OnnxRuntime:
    """ONNX Runtime with ppgfl's ONNX file, up to decoded boxes and scores."""

    setting = "no NMS"

    def __init__(self, settings):
        self.settings = settings

    def inference(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(
            str(exported(self.settings) / self.settings["file"]), options, providers=["CPUExecutionProvider"])
        given = {node.name: inputs(self.settings)[node.name] for node in session.get_inputs()}
        return lambda: len(session.run(None, given))


class OpenVino:
    """OpenVINO with ppgfl's ONNX file, up to decoded boxes and scores."""

    setting = "no NMS"

    def __init__(self, settings):
        self.settings = settings

    def inference(self):
        import openvino

        kind = {"paddle": "f32", "bf16": "bf16"}[self.settings["run_mode"]]
        model = openvino.Core().compile_model(str(exported(self.settings) / "model.onnx"), "CPU", {
            "INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"})
        given = {port.any_name: inputs(self.settings)[port.any_name] for port in model.inputs}
        return lambda: len(model(given))


def config_file(settings):
    return ROOT / "configs" / "gfl" / f"{settings['model']}.yml"


def exported(settings):
    """The folder of ppgfl's export of a model with settings of its own."""
    return Path(settings["scratch"], "_".join([settings["model"], *settings["overrides"]]))


def inputs(settings):
    """What an exported graph takes: noise."""
    count, (height, width) = settings["batch"], settings["size"]
    return {"image": np.random.default_rng(0).normal(size=(count, 3, height, width)).astype("float32"),
            "im_shape": np.float32([[height, width]] * count), "scale_factor": np.ones((count, 2), np.float32)}


def noise(side):
    """The images of a training step, for two images of side x side."""
    return np.random.default_rng(0).normal(size=(2, 3, side, side)).astype("float32")


def train(model, optimizer, batch):
    """One step of two images."""
    model(batch)["loss"].backward()
    optimizer.step()
    optimizer.clear_grad()
    return 2


def samples(count, boxes, size):
    """Black images with boxes, as they enter the targets' transform. The same for every subject."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        low = rng.uniform(0, 0.8, (boxes, 2))
        corners = np.concatenate([low, low + rng.uniform(0.02, 0.2, (boxes, 2))], axis=1) * [*size[::-1], *size[::-1]]
        made.append({"im_id": np.array([0]), "image": np.zeros((3, *size), np.float32),
                     "gt_bbox": corners.astype(np.float32),
                     "gt_class": rng.integers(0, 80, (boxes, 1)).astype(np.int32),
                     "is_crowd": np.zeros((boxes, 1), np.int32)})
    return made


SUBJECTS = {"ppgfl": Ppgfl, "paddledet": PaddleDetection, "mmdet": MMDetection, "onnxruntime": OnnxRuntime,
            "openvino": OpenVino}

if __name__ == "__main__":
    subject = SUBJECTS[sys.argv[1]](json.loads(sys.argv[3]))
    measured = getattr(subject, sys.argv[2])()
    print("\n@@" + json.dumps({"setting": subject.setting}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        count = measured()
        seconds = time.perf_counter() - start
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
        print("\n@@" + json.dumps({"seconds": seconds, "images": count, "peak_mib": peak}), flush=True)
