"""What was recorded from NATTEN, where it lies beside the checkout."""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


@cache
def recordings(name):
    path, groups = DATA / name, {}
    if path.exists():
        with np.load(path) as file:
            for key in file.files:
                group, _, field = key.partition("/")
                if field:
                    groups.setdefault(group, {})[field] = file[key]
    return groups


def cases(name, keep=lambda meta: True):
    found = [(ast.literal_eval(str(x["meta"])), x, group) for group, x in recordings(name).items()]
    return [pytest.param(meta, fields, id=group) for meta, fields, group in found if keep(meta)]


def of_0_14(meta):
    """Whether 0.14 has it: one odd size, one dilation, no causality, no third axis."""
    odd = meta["kernel_size"][0] % 2 == 1
    same = len(set(meta["kernel_size"])) == len(set(meta["dilation"])) == 1
    return odd and same and not any(meta["is_causal"]) and meta["rank"] < 3


recorded = pytest.mark.skipif(not DATA.exists(), reason="the recordings are not beside this checkout")
