"""The demo's work in PyTorch."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import vicinal.torch as na

from ... import Axis, Problem
from .digits import Digits


class Learned(NamedTuple):
    """What training came to; `accuracy` is the part of the held-out images that are read right."""

    accuracy: float
    parameters: int
    backend: str


class Block(nn.Module):
    """Attention over a neighborhood, then each pixel by itself."""

    def __init__(self, channels: int, heads: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(channels)
        self.attention = na.NeighborhoodAttention2D(
            channels, heads, kernel_size, dilation=dilation, rel_pos_bias=True
        )
        self.apart = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.apart(x)


class Reader(nn.Module):
    """`[batch, 8, 8, 1]` images to `[batch, 10]` scores of the digits."""

    def __init__(self, channels: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.strokes = nn.Conv2d(1, channels, 3, padding=1)
        self.places = nn.Parameter(0.02 * torch.randn(8, 8, channels))
        windows = ((3, 1), (3, 2), (5, 1))
        self.blocks = nn.Sequential(*(Block(channels, heads, size, apart) for size, apart in windows))
        self.digits = nn.Sequential(nn.LayerNorm(channels), nn.Flatten(), nn.Linear(64 * channels, 10))

    def forward(self, images: Tensor) -> Tensor:
        strokes = self.strokes(images.movedim(-1, 1)).movedim(1, -1)
        return self.digits(self.blocks(strokes + self.places))


def learn(train: Digits, test: Digits, epochs: int, batch: int = 64) -> Learned:
    """Train a `Reader`, always the same one, and read the held-out images."""
    torch.manual_seed(0)
    # Images this small keep one thread busy; more would wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reader = Reader()
    images, labels = map(torch.from_numpy, train)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.05)
    steps = len(labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs * steps)
    with tqdm(total=epochs * steps, desc="  learning", unit="step", mininterval=0.5) as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels))[: steps * batch].split(batch):
                loss = cross_entropy(reader(images[chosen]), labels[chosen], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with torch.no_grad():
        read = reader.eval()(torch.from_numpy(test.images)).argmax(-1).numpy()
    torch.set_num_threads(threads)
    parameters = sum(parameter.numel() for parameter in reader.parameters())
    axes = (Axis(8, 3), Axis(8, 3))
    problem = Problem(axes, batch, heads=2, kv_heads=2, dim=16, value_dim=16, bias=True, gradients=True)
    return Learned(float((read == test.labels).mean()), parameters, _backend(problem))


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Output, log-sum-exp and backend of one attention over images `[height, width, dim]`."""
    with torch.no_grad():
        q, k, v = (torch.from_numpy(x)[None, :, :, None] for x in (query, key, value))
        out, lse = na.na2d(q, k, v, window, scale=1.0, return_lse=True)
    axes = tuple(Axis(length, window) for length in value.shape[:2])
    problem = Problem(axes, dim=query.shape[-1], value_dim=value.shape[-1])
    return out[0, :, :, 0].numpy(), lse[0, :, :, 0].numpy(), _backend(problem)


def look(query: np.ndarray, key: np.ndarray, window: int, step: int) -> np.ndarray:
    """Attention weights `[rows, columns, window * window]` of pixels `step` apart."""
    with torch.no_grad():
        q, k = (torch.from_numpy(x)[None, :, :, None] for x in (query, key))
        scores = na.na2d_qk(q, k, window, scale=1.0, output_stride=step)
    return scores.softmax(-1)[0, :, :, 0].numpy()


def _backend(problem: Problem) -> str:
    return next(name for name, reason in na.refusals(problem).items() if reason is None)
