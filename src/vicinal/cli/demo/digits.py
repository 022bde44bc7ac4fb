"""Scikit-learn's handwritten digits, 1,797 images of 8x8, and the network that reads them."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ... import Axis, Problem


class Digits(NamedTuple):
    """`images` `[count, 8, 8, 1]`, float32 from 0 to 1; `labels` `[count]`, int64."""

    images: np.ndarray
    labels: np.ndarray


class Learned(NamedTuple):
    """What training came to; `accuracy` is the part of the held-out images that are read right."""

    accuracy: float
    parameters: int


CHANNELS, HEADS, BATCH = 32, 2, 64
# Kernel size and dilation of each block.
BLOCKS = ((3, 1), (3, 2), (5, 1))
RATE, DECAY, SMOOTHING = 6e-3, 0.05, 0.1
# What the first block asks for.
PROBLEM = Problem(
    (Axis(8, BLOCKS[0][0]),) * 2,
    BATCH,
    HEADS,
    HEADS,
    CHANNELS // HEADS,
    CHANNELS // HEADS,
    bias=True,
    gradients=True,
)


def load() -> tuple[Digits, Digits]:
    """Images to learn from, and a quarter held out, as many of each digit."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = pixels.astype(np.float32).reshape(-1, 8, 8, 1) / 16
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(np.asarray, split)
    return Digits(train_images, train_labels), Digits(test_images, test_labels)
