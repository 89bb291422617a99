"""Augmentation, with PaddleDetection's names, arguments and arithmetic: colours, erased parts, geometry, crops, several
images as one, and AutoAugment. `base` says how they are made."""
