"""What compute-sanitizer runs where there is a GPU has every form that kernels come in; needs no GPU."""

from dataclasses import replace

import pytest

from vicinal.triton import hopper_plan, plan, ring_plan

pytest.importorskip("triton", reason="Triton is not installed")

from tests.triton import keeping, sanitize
from vicinal.triton import launches


def loops(p):
    """Kernels of `triton`: how they read columns."""
    for name, shape in (("forward", plan.forward(p)), ("query gradient", plan.query_gradient(p))):
        ahead = " ahead" if launches._ahead(p, shape) else ""
        yield f"{name}: one box" if shape.single else f"{name}: loop{ahead}"
    yield f"{'exact' if p.dtype == 'float32' else 'short'} products"


def sweeps(p):
    """Kernels of rings: whether programs go on from tile to tile, and columns share lanes."""
    dot = replace(p, operation="dot", extra=0)
    mix = replace(dot, operation="mix", bias=False, dim=p.value_dim)
    found = {
        "forward": ring_plan.forward(p),
        "query gradient": ring_plan.query_gradient(p),
        "key gradient": ring_plan.key_gradient(p),
        **{walk.operation: ring_plan.walk(walk) for walk in (dot, mix, replace(mix, operation="mix_back"))},
    }
    for name, sweep in found.items():
        if sweep is not None:
            spec = sweep.spec
            yield f"{name}: {'several tiles' if spec.steps > 1 else 'one tile'}"
            if spec.lanes < spec.width:
                yield f"{name}: shared lanes"
            if spec.group > 1:
                yield f"{name}: groups"


def tiles(p):
    """Kernels of `hopper`: who shares a tile, and what is multiplied in parts."""
    spec, programs = hopper_plan.forward(p)
    yield f"forward: {spec.warpgroups} warpgroups"
    yield f"forward: {'parts' if len(spec.cuts) > 1 else 'whole'}"
    yield f"forward: {'groups' if spec.described else 'several tiles' if programs > 2 else 'one tile'}"
    yield f"forward: {'in turns' if spec.turns else 'as they like'}"
    yield f"forward: queries {'in registers' if spec.held else 'in shared memory'}"
    spec, _ = hopper_plan.query_gradient(p, True, True)
    yield f"query gradient: {spec.warpgroups} warpgroups"
    yield f"query gradient: {'parts' if len(spec.cuts) > 1 else 'whole'}"
    yield f"query gradient: {'next tile early' if spec.depth > 1 else 'tile by tile'}"
    key_specs = [spec for spec, _ in hopper_plan.key_gradients(p, True, True)]
    yield f"key gradient: {len(key_specs)} kernels"
    yield f"key gradient: {'parts' if len(key_specs[0].cuts) > 1 else 'whole'}"
    masks = " and masks" if key_specs[0].at_once else ""
    yield f"key gradient: sums {'beside scores' + masks if key_specs[0].lags else 'of a box in it'}"
    yield f"key gradient: {'next tile early' if key_specs[0].depth > 1 else 'tile by tile'}"
    for name, held in (("keys", key_specs[0].held), ("values", key_specs[0].value_held)):
        yield f"key gradient: {name} {'in registers' if held else 'in shared memory'}"


def keeps(p):
    """Kernels that keep slopes: one head of keys at a time, by two programs."""
    found = keeping.planned(p, 1)
    spec, programs = found.keys
    turns = p.batch * p.kv_heads
    yield "one turn" if turns == 1 else "two turns" if turns == 2 else "a room again"
    for name, (each, count) in (("keys", (spec, programs)), ("queries", found.queries)):
        yield f"{name}: {'several tiles' if count // turns > 2 else 'one tile'}"
        yield f"{name}: {'parts' if len(each.cuts) > 1 else 'whole'}"
    yield f"keys: {'masked' if spec.masks else 'without a mask'}"
    yield f"keys: {'ragged' if spec.ragged else 'whole tiles'}"
    yield f"keys: {'in registers' if spec.held else 'in shared memory'}"
    yield f"keys: {'shared by heads' if p.heads > p.kv_heads else 'of a head'}"


WALKS = ("dot", "mix", "mix_back")
GRADIENTS = ("query gradient", "key gradient")


def each(names, *forms):
    return {f"{name}: {form}" for name in names for form in forms}


FORMS = {
    "triton": (
        loops,
        {"exact products", "short products"}
        | each(("forward", "query gradient"), "loop", "loop ahead")
        | each(("forward",), "one box"),
    ),
    "rings": (
        sweeps,
        each(("forward", *GRADIENTS, *WALKS), "one tile", "several tiles")
        | each(WALKS, "groups")
        | each(WALKS[:2], "shared lanes"),
    ),
    "hopper": (
        tiles,
        each(("forward",), "groups", "several tiles")
        | each(("forward", "query gradient"), "2 warpgroups", "3 warpgroups")
        | each(("forward", *GRADIENTS), "parts", "whole")
        | each(("forward",), "in turns", "as they like", "queries in registers", "queries in shared memory")
        | each(GRADIENTS, "next tile early", "tile by tile")
        | each(GRADIENTS[1:], "1 kernels", "2 kernels", "keys in registers", "keys in shared memory")
        | each(GRADIENTS[1:], "values in registers", "values in shared memory")
        | each(GRADIENTS[1:], "sums beside scores", "sums beside scores and masks", "sums of a box in it"),
    ),
    "kept slopes": (
        keeps,
        {"two turns", "a room again"}
        | each(("keys", "queries"), "several tiles", "one tile", "parts", "whole")
        | each(("keys",), "masked", "without a mask", "ragged", "whole tiles")
        | each(("keys",), "in registers", "in shared memory", "shared by heads", "of a head"),
    ),
}


@pytest.mark.parametrize("family", FORMS)
def test_every_form_of_kernel_is_there(family, monkeypatch):
    # As `sanitize.keep_few` does.
    monkeypatch.setattr(ring_plan, "MULTIPROCESSORS", 1)
    monkeypatch.setattr(ring_plan, "PLACES", 1)
    for planned in (ring_plan.forward, ring_plan.query_gradient, ring_plan.key_gradient, ring_plan.walk):
        monkeypatch.setattr(ring_plan, planned.__name__, planned.__wrapped__)
    forms, wanted = FORMS[family]
    found = {form for p in sanitize.PROBLEMS[family] for form in forms(p)}
    assert found >= wanted, wanted - found
