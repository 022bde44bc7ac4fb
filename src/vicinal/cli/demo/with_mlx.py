"""The demo's work in MLX."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn, optimizers
from mlx.nn.losses import cross_entropy
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from tqdm import tqdm

import vicinal.mlx as na

from .digits import BATCH, BLOCKS, CHANNELS, DECAY, HEADS, RATE, SMOOTHING, Digits, Learned


class Block(nn.Module):
    """Attention over a neighborhood, then each pixel by itself."""

    def __init__(self, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(CHANNELS)
        self.attention = na.NeighborhoodAttention2D(
            CHANNELS, HEADS, kernel_size, dilation=dilation, rel_pos_bias=True
        )
        self.apart = nn.Sequential(
            nn.LayerNorm(CHANNELS),
            nn.Linear(CHANNELS, 2 * CHANNELS),
            nn.GELU(),
            nn.Linear(2 * CHANNELS, CHANNELS),
        )

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.before(x))
        return x + self.apart(x)


class Reader(nn.Module):
    """`[batch, 8, 8, 1]` images to `[batch, 10]` scores of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.strokes = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.places = 0.02 * mx.random.normal((8, 8, CHANNELS))
        self.blocks = nn.Sequential(*(Block(size, apart) for size, apart in BLOCKS))
        self.after = nn.LayerNorm(CHANNELS)
        self.digits = nn.Linear(64 * CHANNELS, 10)

    def __call__(self, images: mx.array) -> mx.array:
        return self.digits(self.after(self.blocks(self.strokes(images) + self.places)).flatten(1))


def learn(train: Digits, test: Digits, epochs: int, device: str) -> Learned:
    """Train a `Reader`, always the same one, and read the held-out images."""
    _use(device)
    mx.random.seed(0)
    reader = Reader()
    images, labels = map(mx.array, train)
    steps = len(train.labels) // BATCH
    total = epochs * steps
    optimizer = optimizers.AdamW(_schedule(total), weight_decay=DECAY, bias_correction=True)

    def loss_of(chosen: mx.array) -> mx.array:
        scores = reader(images[chosen])
        return cross_entropy(scores, labels[chosen], label_smoothing=SMOOTHING, reduction="mean")

    step = value_and_grad(reader, loss_of)
    with tqdm(total=total, desc="  learning", unit="step", mininterval=0.5) as bar:
        for _ in range(epochs):
            order = mx.random.permutation(len(train.labels))
            for first in range(0, steps * BATCH, BATCH):
                loss, grads = step(order[first : first + BATCH])
                optimizer.update(reader, grads)
                mx.eval(reader.parameters(), optimizer.state)
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    read = np.array(mx.argmax(reader(mx.array(test.images)), -1))
    leaves: Any = tree_flatten(reader.parameters())
    return Learned(float((read == test.labels).mean()), sum(leaf.size for _, leaf in leaves))


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of one attention over images `[height, width, dim]`."""
    _use(device)
    q, k, v = map(_batch, (query, key, value))
    out, lse = na.na2d(q, k, v, window, scale=1.0, return_lse=True)
    return np.array(out[0, :, :, 0]), np.array(lse[0, :, :, 0])


def look(query: np.ndarray, key: np.ndarray, window: int, step: int, device: str) -> np.ndarray:
    """Attention weights `[rows, columns, window * window]` of pixels `step` apart."""
    _use(device)
    scores = na.na2d_qk(_batch(query), _batch(key), window, scale=1.0, output_stride=step)
    return np.array(mx.softmax(scores, -1)[0, :, :, 0])


def _use(device: str) -> None:
    mx.set_default_device(mx.cpu if device == "cpu" else mx.gpu)


def _batch(image: np.ndarray) -> mx.array:
    """`[height, width, dim]` as a batch of one with one head."""
    return mx.array(image)[None, :, :, None]


def _schedule(total: int) -> Callable[[mx.array], mx.array]:
    """Rise to the full learning rate in a quarter of the steps, and fall to nothing."""
    rise = max(total // 4, 1)
    parts = [optimizers.linear_schedule(RATE / 25, RATE, rise), optimizers.cosine_decay(RATE, total - rise)]
    return optimizers.join_schedules(parts, [rise])
