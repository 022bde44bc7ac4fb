"""What the demo draws."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from ... import Axis

# Rows and columns of the pixels that are looked at, in steps.
PLACES = ((1, 4), (2, 4), (5, 5), (3, 2))


def attention(image: np.ndarray, weights: np.ndarray, window: int, step: int, path: Path) -> Path:
    """A few pixels of the photograph: their windows, and their weights over them.

    `weights` `[rows, columns, window * window]` are those of pixels `step` apart.
    """
    height, width, _ = image.shape
    axes = Axis(height, window, output_stride=step), Axis(width, window, output_stride=step)
    figure = plt.figure(figsize=(10.5, 3.7))
    grid = figure.add_gridspec(2, 6, width_ratios=(2.6, 2.6, 1.5, 1.5, 1.5, 1.5))
    whole = figure.add_subplot(grid[:, :2])
    whole.imshow(np.clip(image, 0, 1))
    whole.set(xticks=[], yticks=[], title=f"{len(PLACES)} pixels, each with its {window}x{window} window")
    for number, place in enumerate(PLACES):
        rows, columns = (axis.keys(at) for axis, at in zip(axes, place, strict=True))
        corner, color = (columns[0] - 0.5, rows[0] - 0.5), f"C{number + 1}"
        whole.add_patch(Rectangle(corner, window, window, fill=False, color=color, linewidth=2))
        heat = weights[place].reshape(window, window)
        # A pixel is most like itself, by far.
        largest = np.sort(heat, axis=None)[-2]
        crop = np.clip(image[rows.start : rows.stop, columns.start : columns.stop], 0, 1)
        left = 2 + 2 * (number % 2)
        shown = (("window", crop, None), ("weights", heat, largest))
        for offset, (title, picture, limit) in enumerate(shown):
            panel = figure.add_subplot(grid[number // 2, left + offset])
            panel.imshow(picture, cmap="magma", vmin=0, vmax=limit)
            panel.set(xticks=[], yticks=[])
            panel.set_title(title, fontsize=9)
            for spine in panel.spines.values():
                spine.set(color=color, linewidth=2)
    return _save(figure, path)


def features(image: np.ndarray, cleaned: np.ndarray, alike: np.ndarray, path: Path) -> Path:
    """The photograph before and after, and how alike each pixel is to those around it."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3))
    shown = {"with noise": np.clip(image, 0, 1), "cleaned": np.clip(cleaned, 0, 1), "alike around": alike}
    for panel, (title, picture) in zip(panels, shown.items(), strict=True):
        panel.imshow(picture, cmap="viridis")
        panel.set(xticks=[], yticks=[], title=title)
    return _save(figure, path)


def _save(figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path
