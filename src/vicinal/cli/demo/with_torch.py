"""The demo's work in PyTorch."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import vicinal.torch as na

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

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.apart(x)


class Reader(nn.Module):
    """`[batch, 8, 8, 1]` images to `[batch, 10]` scores of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.strokes = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.places = nn.Parameter(0.02 * torch.randn(8, 8, CHANNELS))
        self.blocks = nn.Sequential(*(Block(size, apart) for size, apart in BLOCKS))
        self.digits = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Flatten(), nn.Linear(64 * CHANNELS, 10))

    def forward(self, images: Tensor) -> Tensor:
        strokes = self.strokes(images.movedim(-1, 1)).movedim(1, -1)
        return self.digits(self.blocks(strokes + self.places))


def learn(train: Digits, test: Digits, epochs: int, device: str) -> Learned:
    """Train a `Reader`, always the same one, and read the held-out images."""
    torch.manual_seed(0)
    # Images this small keep one thread busy; more would wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reader = Reader().to(device)
    images, labels = (torch.from_numpy(x).to(device) for x in train)
    steps = len(labels) // BATCH
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * steps)
    with tqdm(total=epochs * steps, desc="  learning", unit="step", mininterval=0.5) as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels))[: steps * BATCH].split(BATCH):
                scores = reader(images[chosen])
                loss = cross_entropy(scores, labels[chosen], label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with torch.no_grad():
        read = reader.eval()(torch.from_numpy(test.images).to(device)).argmax(-1).cpu().numpy()
    torch.set_num_threads(threads)
    parameters = sum(parameter.numel() for parameter in reader.parameters())
    return Learned(float((read == test.labels).mean()), parameters)


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of one attention over images `[height, width, dim]`."""
    with torch.no_grad():
        q, k, v = (_tensor(x, device) for x in (query, key, value))
        out, lse = na.na2d(q, k, v, window, scale=1.0, return_lse=True)
    return out[0, :, :, 0].cpu().numpy(), lse[0, :, :, 0].cpu().numpy()


def look(query: np.ndarray, key: np.ndarray, window: int, step: int, device: str) -> np.ndarray:
    """Attention weights `[rows, columns, window * window]` of pixels `step` apart."""
    with torch.no_grad():
        q, k = _tensor(query, device), _tensor(key, device)
        scores = na.na2d_qk(q, k, window, scale=1.0, output_stride=step)
    return scores.softmax(-1)[0, :, :, 0].cpu().numpy()


def _tensor(image: np.ndarray, device: str) -> Tensor:
    """`[height, width, dim]` as a batch of one with one head."""
    return torch.from_numpy(image)[None, :, :, None].to(device)
