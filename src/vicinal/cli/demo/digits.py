"""Scikit-learn's handwritten digits: 1,797 images of 8x8."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """`images` `[count, 8, 8, 1]`, float32 from 0 to 1; `labels` `[count]`, int64."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """Images to learn from, and a quarter held out, as many of each digit."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = pixels.astype(np.float32).reshape(-1, 8, 8, 1) / 16
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(np.asarray, split)
    return Digits(train_images, train_labels), Digits(test_images, test_labels)
