"""Windows to look at: as text, and as a picture with matplotlib."""

from collections.abc import Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from .window import Axis

HERE, SEEN, BOTH, HIDDEN = "o", "#", "@", "."
LEGEND = f"{HERE} the token itself, {SEEN} in the window, {BOTH} both, {HIDDEN} outside"


def text(axes: Sequence[Axis], place: Sequence[int], *, inverse: bool = False) -> str:
    """The keys that the output at `place` sees, or with `inverse` the outputs that see the key there.

    Args:
        axes: one to three axes; the last runs along a line, the one before it down, the first over blocks.
        place: one index per axis.
    """
    here, seen, extents = _scene(axes, place, inverse)
    marks = {(False, False): HIDDEN, (False, True): SEEN, (True, False): HERE, (True, True): BOTH}

    def line(front: tuple[int, ...]) -> str:
        row = ((*front, last) for last in range(extents[-1]))
        return " ".join(marks[cell == here, _holds(seen, cell)] for cell in row)

    down = range(extents[-2]) if len(extents) > 1 else (None,)
    blocks: list[str] = []
    for front in product(*map(range, extents[:-2])):
        rows = [line(front if at is None else (*front, at)) for at in down]
        title = [f"[{front[0]}]"] if front else []
        blocks.append("\n".join([*title, *rows]))
    what = f"outputs that see key {_at(place)}" if inverse else f"keys that output {_at(place)} sees"
    return "\n\n".join([what, *blocks, LEGEND])


def picture(axes: Sequence[Axis], place: Sequence[int], path: Path, *, inverse: bool = False) -> None:
    """What `text` draws, as an image file; needs matplotlib."""
    here, seen, extents = _scene(axes, place, inverse)
    plt: Any = import_module("matplotlib.pyplot")
    tall, wide = (1, *extents)[-2:]
    fronts = list(product(*map(range, extents[:-2])))
    figure, panels = plt.subplots(
        1, len(fronts), squeeze=False, figsize=(0.3 * wide * len(fronts) + 1, 0.3 * tall + 1)
    )
    for panel, front in zip(panels[0], fronts, strict=True):
        cells = product(range(tall), range(wide))
        shades = [_shade((*front, *cell)[-len(extents) :], here, seen) for cell in cells]
        panel.imshow(
            [shades[row * wide : (row + 1) * wide] for row in range(tall)], cmap="Blues", vmin=0, vmax=2
        )
        panel.set(xticks=[], yticks=[], title=f"[{front[0]}]" if front else "")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


Scene = tuple[tuple[int, ...], tuple[range, ...], tuple[int, ...]]


def _scene(axes: Sequence[Axis], place: Sequence[int], inverse: bool) -> Scene:
    """The token of `place`, what it sees or is seen by, per axis, and the extents of the drawing."""
    if not inverse:
        here = tuple(at * axis.output_stride for axis, at in zip(axes, place, strict=True))
        seen = tuple(axis.keys(at) for axis, at in zip(axes, place, strict=True))
        return here, seen, tuple(axis.length for axis in axes)
    # Outputs are drawn where their tokens are.
    steps = [axis.output_stride for axis in axes]
    found = (axis.queries(at) for axis, at in zip(axes, place, strict=True))
    seen = tuple(range(q.start * s, q.stop * s, q.step * s) for q, s in zip(found, steps, strict=True))
    return tuple(place), seen, tuple(axis.length for axis in axes)


def _holds(seen: Sequence[range], cell: Sequence[int]) -> bool:
    return all(at in along for at, along in zip(cell, seen, strict=True))


def _shade(cell: tuple[int, ...], here: tuple[int, ...], seen: Sequence[range]) -> int:
    return 2 if cell == here else int(_holds(seen, cell))


def _at(place: Sequence[int]) -> str:
    return str(place[0]) if len(place) == 1 else f"({', '.join(map(str, place))})"
