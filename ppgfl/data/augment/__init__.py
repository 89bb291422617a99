"""Augmentation, with PaddleDetection's names, arguments and arithmetic: colours, erased parts, geometry, crops, mixtures
of several images, and AutoAugment. `base` says how they are made."""
