"""Non-local means on a photograph, as one neighborhood attention.

A pixel becomes the mean of the pixels around it, weighted by how alike their patches `p` and `q` are:
`exp(-|p - q|^2 / h^2)`. With `(2 p, -1) / h^2` for a query and `(q, |q|^2)` for a key, their product is the
exponent but for `|p|^2`, which softmax ignores.

Source: Buades, Coll and Morel, "A non-local algorithm for image denoising" (2005).
"""

import numpy as np
from skimage import data

WINDOW = 15
NOISE = 0.1
# Distance between the pixels whose weights are looked at.
STEP = 50
_PATCH = 2
_STRENGTH = 0.8


def load() -> tuple[np.ndarray, np.ndarray]:
    """A photograph of a cat `[height, width, 3]`, from 0 to 1, and the same with noise; float32."""
    clean = data.chelsea().astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(0, NOISE, clean.shape)
    return clean, (clean + noise).astype(np.float32)


def similarity(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys `[height, width, dim]` whose product says how alike two patches are."""
    height, width, _ = image.shape
    padded = np.pad(image, ((_PATCH, _PATCH), (_PATCH, _PATCH), (0, 0)), mode="reflect")
    offsets = range(2 * _PATCH + 1)
    patches = np.concatenate([padded[y : y + height, x : x + width] for y in offsets for x in offsets], -1)
    # Centered, because squares of large numbers that nearly cancel lose digits.
    patches -= patches.mean((0, 1))
    sharpness = 1 / (_STRENGTH * NOISE) ** 2 / patches.shape[-1]
    square = (patches**2).sum(-1, keepdims=True)
    query = np.concatenate([2 * patches, -np.ones_like(square)], -1) * sharpness
    return query, np.concatenate([patches, square], -1)


def alike(query: np.ndarray, key: np.ndarray, lse: np.ndarray) -> np.ndarray:
    """`[height, width]` log of how many pixels of its window a pixel is like, itself among them."""
    return lse - (query * key).sum(-1)


def decibels(clean: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio."""
    return float(-10 * np.log10(np.mean((np.clip(image, 0, 1) - clean) ** 2)))
