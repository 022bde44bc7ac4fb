"""NATTEN's counters of operations, and the handles through which fvcore counts ours.

Until 0.15 a count is in multiply-adds, as fvcore's are; from 0.17 on there are formulas, which ask.
Every window counts in full, also where causality hides keys.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from vicinal.compat.eras.counts import fna_flop_count, na_av_flop_count, na_qk_flop_count

__all__ = [
    "add_natten_handle",
    "av_1d_flop",
    "av_2d_flop",
    "av_3d_flop",
    "av_flop",
    "fna_flop_count",
    "get_flops",
    "na_av_flop_count",
    "na_qk_flop_count",
    "qk_1d_rpb_flop",
    "qk_2d_rpb_flop",
    "qk_3d_rpb_flop",
    "qk_rpb_flop",
]


def _shape(value: Any) -> list[int]:
    """Shape of a value of a traced graph."""
    return value.type().sizes()


def _numbers(value: Any) -> list[int]:
    """What a traced graph holds as a list of constants."""
    constant = value.toIValue()
    return [entry.toIValue() for entry in value.node().inputs()] if constant is None else constant


def _given(values: Sequence[Any], place: int) -> bool:
    return len(values) > place and values[place].type().kind() != "NoneType"


def _qk(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of scores: one a score and element of a head, and one a score for a bias."""
    return prod(_shape(outputs[0])) * (_shape(inputs[0])[-1] + _given(inputs, 2))


def _av(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of weighted sums: one a weight and element of a value."""
    return prod(_shape(inputs[0])) * _shape(inputs[1])[-1]


def _attend(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of the fused operation, whose inputs are the operator's."""
    query, value = _shape(inputs[0]), _shape(inputs[2])
    keys = prod(_numbers(inputs[6])) + (_shape(inputs[4])[1] if _given(inputs, 4) else 0)
    return prod(query[:-1]) * keys * (query[-1] + value[-1] + _given(inputs, 3))


_HANDLES = {"vicinal::dot": _qk, "vicinal::mix": _av, "vicinal::attend": _attend}

qk_rpb_flop, qk_1d_rpb_flop, qk_2d_rpb_flop, qk_3d_rpb_flop = [_qk] * 4
av_flop, av_1d_flop, av_2d_flop, av_3d_flop = [_av] * 4


def add_natten_handle(flop_ctr: Any) -> Any:
    """Teach an `fvcore.nn.FlopCountAnalysis` the operations of this library; returns it."""
    return flop_ctr.set_op_handle(**_HANDLES)


def get_flops(model: Any, input: Any, disable_warnings: bool = False) -> int:  # noqa: A002
    """Multiply-adds of `model(input)`, counted by fvcore."""
    from fvcore.nn import FlopCountAnalysis

    counter = add_natten_handle(FlopCountAnalysis(model, input))
    if disable_warnings:
        counter = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return counter.total()
