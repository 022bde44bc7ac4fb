"""Blocks and scalars of Gluon on numpy: dtypes as Triton promotes and rounds them, integers divided as in C.

Elements of every floating dtype are held as float32, rounded to their dtype.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np


@dataclass(frozen=True)
class DType:
    name: str
    bits: int
    held: type

    @property
    def is_floating(self):
        return self.held is np.float32

    def __call__(self, value):
        return Block(np.asarray(value), self)


float32 = DType("float32", 32, np.float32)
float16 = DType("float16", 16, np.float32)
bfloat16 = DType("bfloat16", 16, np.float32)
float8_e4m3fn = DType("float8_e4m3fn", 8, np.float32)
int32 = DType("int32", 32, np.int32)
int64 = DType("int64", 64, np.int64)
uint32 = DType("uint32", 32, np.uint32)
int1 = DType("bool", 1, np.bool_)
DTYPES = {d.name: d for d in (float32, float16, bfloat16, float8_e4m3fn, int32, int64, uint32, int1)}


def rounded(values, dtype):
    """`values` as an array that holds `dtype`."""
    if dtype is bfloat16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        even = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
        found = (even & np.uint32(0xFFFF0000)).view(np.float32).reshape(np.shape(values))
        return np.where(np.isnan(values), np.float32(np.nan), found)
    if dtype is float16:
        return np.asarray(values, np.float16).astype(np.float32)
    assert dtype is not float8_e4m3fn, "nothing is rounded to float8"
    return np.asarray(values).astype(dtype.held)


def block(x):
    """A number as Triton types it."""
    if isinstance(x, Block):
        return x
    if isinstance(x, (bool, np.bool_)):
        return Block(np.bool_(x), int1)
    if isinstance(x, (int, np.integer)):
        return Block(np.int64(x), int32 if -(2**31) <= x < 2**31 else int64)
    return Block(np.float32(x), float32)


def number(x):
    """What a scalar holds, for Python."""
    return x.held.item() if isinstance(x, Block) else x


def _common(x, y):
    """Two operands in one dtype: a plain number takes that of a block it can be held in."""
    if isinstance(x, Block) and isinstance(y, Block):
        if x.dtype is y.dtype:
            return x, y
        floating = [one.dtype for one in (x, y) if one.dtype.is_floating]
        assert len(floating) < 2 or floating[0] is floating[1], "two floating dtypes meet"
        wide = floating[0] if floating else max(x.dtype, y.dtype, key=lambda d: (d.bits, d is uint32))
        return x.to(wide), y.to(wide)
    if isinstance(x, Block):
        is_float = isinstance(y, float) and not x.dtype.is_floating
        return (x.to(float32), block(y)) if is_float else (_lifted(x, y), _typed(y, _lifted(x, y)))
    y, x = _common(y, x)
    return x, y


def _lifted(x, y):
    """A truth value is an integer beside an integer."""
    return x.to(int32) if x.dtype is int1 and not isinstance(y, bool) else x


def _typed(value, like):
    return Block(np.asarray(value, like.dtype.held), like.dtype)


def _divided(x, y):
    """Quotients towards zero."""
    with np.errstate(divide="ignore"):
        found = np.abs(x) // np.abs(y)
    return np.where((x < 0) != (y < 0), -found, found).astype(x.dtype)


def _operator(function, swapped=False, result=None):
    def call(self, other):
        if isinstance(other, Pointer):
            return NotImplemented
        x, y = _common(other, self) if swapped else _common(self, other)
        dtype = result or x.dtype
        assert not dtype.is_floating or dtype is float32, f"arithmetic on {dtype.name}"
        with np.errstate(all="ignore"):
            return Block(function(x.held, y.held).astype(dtype.held), dtype)

    return call


class Block:
    """A tensor or a scalar; layouts vanish."""

    __array_ufunc__ = None
    __hash__ = None
    type = SimpleNamespace(layout=None)

    def __init__(self, held, dtype):
        self.held, self.dtype = np.asarray(held, dtype.held), dtype

    @property
    def shape(self):
        return list(self.held.shape)

    def to(self, dtype, bitcast=False):
        if bitcast:
            assert dtype.bits == self.dtype.bits
            return Block(self.held.view(dtype.held), dtype)
        return self if dtype is self.dtype else Block(rounded(self.held, dtype), dtype)

    def reshape(self, shape):
        return Block(self.held.reshape(shape), self.dtype)

    def permute(self, order):
        return Block(self.held.transpose(order), self.dtype)

    def __getitem__(self, where):
        return Block(self.held[where], self.dtype)

    def __bool__(self):
        return bool(self.held)

    def __index__(self):
        assert not self.dtype.is_floating
        return int(self.held)

    def __neg__(self):
        return Block(-self.held, self.dtype)

    __add__, __radd__ = _operator(np.add), _operator(np.add, True)
    __sub__, __rsub__ = _operator(np.subtract), _operator(np.subtract, True)
    __mul__, __rmul__ = _operator(np.multiply), _operator(np.multiply, True)
    __truediv__, __rtruediv__ = _operator(np.divide), _operator(np.divide, True)
    __floordiv__, __rfloordiv__ = _operator(_divided), _operator(_divided, True)
    __mod__ = _operator(lambda x, y: x - _divided(x, y) * y)
    __rmod__ = _operator(lambda x, y: x - _divided(x, y) * y, True)
    __and__, __rand__ = _operator(np.bitwise_and), _operator(np.bitwise_and, True)
    __or__, __ror__ = _operator(np.bitwise_or), _operator(np.bitwise_or, True)
    __xor__, __rxor__ = _operator(np.bitwise_xor), _operator(np.bitwise_xor, True)
    __lshift__, __rlshift__ = _operator(np.left_shift), _operator(np.left_shift, True)
    __rshift__, __rrshift__ = _operator(np.right_shift), _operator(np.right_shift, True)
    __lt__, __le__ = _operator(np.less, result=int1), _operator(np.less_equal, result=int1)
    __gt__, __ge__ = _operator(np.greater, result=int1), _operator(np.greater_equal, result=int1)
    __eq__, __ne__ = _operator(np.equal, result=int1), _operator(np.not_equal, result=int1)


class Pointer:
    """Addresses of elements of a tensor in global memory."""

    def __init__(self, memory, offset):
        self.memory, self.offset = memory, offset

    @property
    def dtype(self):
        return self.memory.dtype

    def __add__(self, elements):
        return Pointer(self.memory, self.offset + block(elements).held.astype(np.int64))

    __radd__ = __add__


def full(shape, value, dtype, layout=None):
    return Block(np.broadcast_to(rounded(block(value).held, dtype), tuple(map(number, shape))), dtype)


def arange(start, stop, layout=None):
    return Block(np.arange(start, stop), int32)


def where(condition, yes, no):
    yes, no = (
        _common(*(x if isinstance(x, Block) else number(x) for x in (yes, no)))
        if isinstance(yes, Block) or isinstance(no, Block)
        else (block(yes), block(no))
    )
    return Block(np.where(block(condition).held, yes.held, no.held), yes.dtype)


def minimum(x, y):
    return _operator(np.minimum)(block(x), y)


def maximum(x, y):
    return _operator(np.maximum)(block(x), y)


def highest(x, axis):
    return Block(x.held.max(axis), x.dtype)


def total(x, axis):
    assert x.dtype in (float32, int32)
    return Block(x.held.sum(axis, dtype=x.dtype.held), x.dtype)


def _function(function):
    def call(x):
        assert x.dtype is float32
        with np.errstate(all="ignore"):
            return Block(function(x.held), float32)

    return call


exp2, log2 = _function(np.exp2), _function(np.log2)


def expand_dims(x, axis):
    return Block(np.expand_dims(x.held, axis), x.dtype)


def broadcast(x, y):
    return tuple(
        Block(held, one.dtype) for held, one in zip(np.broadcast_arrays(x.held, y.held), (x, y), strict=True)
    )


def product(x, y, acc):
    """`acc + x @ y` with sums in float32."""
    return Block(np.matmul(x, y) if acc is None else acc + np.matmul(x, y), float32)
