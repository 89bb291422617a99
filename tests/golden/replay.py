"""What the comparison of augmentations with PaddleDetection and its recorded values share: the cases, the samples, and a
generator that gives numbers again which were drawn before."""
import numpy as np

EIGEN = {"eigval": [55.46, 4.794, 1.148], "eigvec": [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814],
                                                     [-0.5836, -0.6948, 0.4203]]}
HSV_GAINS = {"is_bgr": False, "hgain": 5, "sgain": 30, "vgain": 30}
SIDES = [48, 60, 72, 96]
# name: (transform, arguments); the names that begin alike are ways to use one transform
CASES = {
    "RandomDistort": ("RandomDistort", {}),
    "RandomDistort, fixed order": ("RandomDistort", {"brightness": [0.5, 1.125, 0.875], "random_apply": False,
                                                     "random_channel": True, "hue": [-40, 40, 0.2]}),
    "AugmentHSV": ("AugmentHSV", {}),
    "AugmentHSV, gains": ("AugmentHSV", HSV_GAINS),
    "Lighting": ("Lighting", EIGEN),
    **{f"AutoAugment {kind}": ("AutoAugment", {"autoaug_type": kind}) for kind in ("v0", "v1", "v2", "v3")},
    "GridMask": ("GridMask", {"upper_iter": 1, "rotate": 40}),
    "GridMask, stripes": ("GridMask", {"upper_iter": 1, "use_h": False, "mode": 0, "ratio": 0.3}),
    "RandomErasing": ("RandomErasing", {"value": [1, 2, 3]}),
    "RandomErasingCrop": ("RandomErasingCrop", {}),
    "RandomExpand": ("RandomExpand", {"fill_value": [123.675, 116.28, 103.53]}),
    "RandomCrop": ("RandomCrop", {}),
    "RandomCrop, all boxes": ("RandomCrop", {"aspect_ratio": None, "cover_all_box": True, "allow_no_crop": False,
                                             "scaling": [0.5, 0.9]}),
    "RandomSizeCrop": ("RandomSizeCrop", {"min_size": 20, "max_size": 90}),
    "RandomSizeCrop, not empty": ("RandomSizeCrop", {"min_size": 20, "max_size": 60, "keep_empty": False}),
    "RandomScaledCrop": ("RandomScaledCrop", {"target_size": [64, 80], "scale_range": [0.3, 2.0]}),
    "RandomShift": ("RandomShift", {"prob": 0.9}),
    "RandomFlip": ("RandomFlip", {}),
    "RandomShortSideResize": ("RandomShortSideResize", {"short_side_sizes": SIDES, "max_size": 110,
                                                        "random_interp": True}),
    "RandomSelect": ("RandomSelect", {
        "transforms1": [{"RandomShortSideResize": {"short_side_sizes": SIDES}}],
        "transforms2": [{"RandomSizeCrop": {"min_size": 20, "max_size": 60}}, {"RandomFlip": {}}]}),
    "RandomSelects": ("RandomSelects", {"transforms_list": [[{"RandomShift": {}}], [{"RandomCrop": {}}]],
                                        "p": [0.4, 1.0]}),
    "Pad": ("Pad", {"size": [500, 660], "pad_mode": 1}),
    "PadResize": ("PadResize", {"target_size": [64, 96]}),
    "Mixup": ("Mixup", {}),
    "Cutmix": ("Cutmix", {}),
    "Mosaic": ("Mosaic", {"input_dim": [64, 64]}),
    "Mosaic, nothing outside": ("Mosaic", {"input_dim": [64, 64], "remove_outside_box": True, "scale": [0.5, 1.5],
                                           "mixup_prob": 0.5}),
    "BatchRandomResize": ("BatchRandomResize", {"target_size": SIDES, "keep_ratio": False, "random_interp": True}),
    "NormalizeImage, fractions": ("NormalizeImage", {}),
}
OTHERS = {"Mixup": 1, "Cutmix": 1, "Mosaic": 4}
MOST = {"none": 0, "one": 1, "tiny": 6, "crowded": 60, "border": 6}


def record(seed, size=None):
    """A sample after Decode, drawn from a seed: no box, one, tiny ones, very many, or some along the border."""
    rng = np.random.default_rng([7, seed])
    height, width = (int(side) for side in rng.integers(40, 160, 2)) if size is None else size
    kind = list(MOST)[seed % len(MOST)]
    count = MOST[kind]
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1)
    if kind == "tiny":
        corners[:, 1] = corners[:, 0] + rng.uniform(0, 0.01, (count, 2))
    if kind == "border":
        corners[::2, 0], corners[1::2, 1], corners[-1:] = 0, 1, [[0, 0], [1, 1]]
    smooth = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    image = (smooth // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8)
    return {"im_id": seed, "image": image, "h": height, "w": width, "im_shape": np.array([height, width], np.float32),
            "scale_factor": np.ones(2, np.float32), "curr_iter": 10,
            "gt_bbox": (corners.clip(0, 1) * [width, height]).reshape(-1, 4).astype(np.float32),
            "gt_class": rng.integers(0, 80, count), "is_crowd": rng.integers(0, 2, count)}


def records(case, seed, size=None):
    """The samples that a case needs: one, or as many as are mixed; of NormalizeImage with fractions."""
    found = [record(seed + i, size) for i in range(1 + OTHERS.get(CASES[case][0], 0))]
    if "fractions" in case or case == "Lighting":
        found[0]["image"] = found[0]["image"].astype(np.float32) * np.float32(0.97)
    return found


class Replay:
    """A generator that gives recorded numbers, [(kind, range, value), ...], in their order, and fails where another kind
    or another range is asked for: then the distributions differ.

    Attributes:
        beyond: set where the recorded range is one number longer than the one that is asked for.
    """

    def __init__(self, drawn):
        self.drawn = list(drawn)
        self.beyond = False

    def _next(self, kind, low=None, high=None):
        was, limits, value = self.drawn.pop(0)
        if (was, limits) == ("uniform", [0, 1]):
            was, limits = "random", None
        assert was == kind, f"{kind} asked for, but {was} was drawn"
        if kind == "integers" and limits != [low, high]:
            assert limits == [low, high + 1], f"integers {low} to {high} asked for, but drawn from {limits}"
            self.beyond |= value >= high
        if kind == "uniform":
            far = max(abs(a - b) for a, b in zip(sorted((low, high)), sorted(limits)))
            assert far <= 1e-9 * max(1.0, abs(high)) or limits[1] < 0 == high, (low, high, limits)
        return value

    def random(self, size=None):
        return np.array(self._next("random")) if size is not None else self._next("random")

    def uniform(self, low, high, size=None):
        if (low, high) == (0, 1):
            return self.random(size)
        value = self._next("uniform", low, high)
        return np.array(value) if size is not None else value

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        value = self._next("integers", int(low), int(high))
        return np.array(value) if size is not None else value

    def permutation(self, count):
        value = self._next("permutation")
        assert len(value) == count
        return value

    def beta(self, alpha, beta):
        return self._next("beta")

    def normal(self, mean=0.0, deviation=1.0, size=None):
        return np.array(self._next("normal"))


def transformed(transform, samples, rng):
    """The sample that a transform of ppgfl makes of these, of one kind or the other."""
    samples = [dict(sample) for sample in samples]
    if hasattr(transform, "mix"):
        return transform.mix(samples, rng)
    if hasattr(transform, "resizes"):
        return transform(samples, rng)[0]
    transform(samples[0], rng)
    return samples[0]
