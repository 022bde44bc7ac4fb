"""Where the tiles of Hopper's kernels lie, by their own geometry, run by Python on numbers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType

import pytest

import vicinal
from vicinal.triton import hopper_plan

FOLDER = Path(vicinal.__file__).parent / "triton"


@contextmanager
def gluon() -> Iterator[list[ModuleType]]:
    """Modules of Gluon without Triton: windows, tiles, and where slopes lie."""
    modules = {
        name: ModuleType(name) for name in ("triton", "triton.experimental", "triton.experimental.gluon")
    }
    language = ModuleType("triton.experimental.gluon.language")
    language.minimum, language.maximum, language.constexpr = min, max, lambda x: x
    language.DistributedLinearLayout = lambda *_: None
    language.where = lambda condition, yes, no: yes if condition else no
    language.to_tensor = lambda number: number
    hopper = ModuleType("triton.experimental.gluon.language.nvidia.hopper")
    hopper.fence_async_shared = hopper.mbarrier = hopper.tma = None
    modules["triton.experimental.gluon"].jit = lambda function: function
    modules["triton.experimental.gluon"].language = language
    modules["triton.experimental"].gluon = modules["triton.experimental.gluon"]
    nvidia = ModuleType("triton.experimental.gluon.language.nvidia")
    for module in (language, nvidia, hopper):
        modules[module.__name__] = module
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        loaded = []
        for name in ("hopper_window", "hopper_tile", "hopper_kept"):
            spec = util.spec_from_file_location(f"vicinal.triton.{name}", FOLDER / f"{name}.py")
            module = util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
            loaded.append(module)
        yield loaded


def visits(kernels, spec, programs, whole, inverse):
    """Tiles, boxes of rows in them, and boxes of columns that these visit: where both start."""
    _, tile_module, _ = kernels
    rows_of = tile_module.key_tile if inverse else tile_module.query_tile
    own = tile_module.own_queries if inverse else tile_module.own_keys
    for program in range(programs):
        tile = rows_of(program, *whole, 1, spec)
        for place in range(prod(spec.tile) // prod(spec.rows)):
            start = tile_module.corner(tile.start, place, spec)
            slow, begin, end = own(start, tile, spec)
            box = tile_module.box_of(slow, spec)
            for _ in range(begin, end):
                yield tile, start, tile_module.box_at(tile.first, box, spec)
                box = tile_module.step(box, tile.boxes, spec)


def walked(kernels, case, plan, inverse):
    """Visible pairs of (output, key) in the order that the programs of a plan compute them."""
    window = kernels[0]
    spec, programs = plan
    ones = (1,) * (3 - case.rank)
    whole = ones + case.outputs, ones + case.lengths
    seen_by = window.viewers if inverse else window.windows
    shared_by = window.shared_viewers if inverse else window.shared_window
    for tile, start, at in visits(kernels, spec, programs, whole, inverse):
        shared = shared_by(start, tile, spec)
        for row in _rows(window, spec, start, tile.lengths if inverse else tile.outputs):
            columns = _columns(spec, at, shared, *seen_by(row, tile.lengths, spec))
            for column in product(*columns):
                output, key = (column, row) if inverse else (row, column)
                yield _token(output, tile, spec), _token(key, tile, spec)


def _rows(window, spec, start, extents):
    """Rows of a warpgroup that lie in the tensor."""
    rows = (window.coordinates(index, start, spec.rows) for index in range(hopper_plan.ROWS))
    return [row for row in rows if window.inside(row, extents)]


def _columns(spec, at, shared, first, stop):
    """Columns of a box that a row does not hide, per axis: all of them where no mask is applied."""
    for axis in range(3):
        box = range(at[axis], at[axis] + spec.columns[axis])
        crosses = box.start < shared[0][axis] or box.stop > shared[1][axis]
        masked = spec.masked[axis] and crosses
        yield [column for column in box if not masked or first[axis] <= column < stop[axis]]


def _token(at, tile, spec):
    return tuple(x * apart + r for x, apart, r in zip(at, spec.dilation, tile.residue, strict=True))
