"""Bad input is refused by a message."""

import re

import pytest


def fails(error, message, function, *args, **kwargs):
    """Assert that `function` raises `error` with `message` in it."""
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


def fails_without_an_operand(na, query, key, place, wanted):
    """Assert that None in place of query, key or value is refused by every function of `[2, 8, 6, ...]`."""
    name = ("query", "key", "value")[place]
    given = [None if other == place else x for other, x in enumerate((query, key, key))]
    message = f"{name} is of type NoneType; pass {wanted}"
    fails(TypeError, message, na.na2d, *given, 3)
    fails(TypeError, message, na.na2d_varlen, *given, [(8, 6)] * 2, 3)
    fails(TypeError, message, na.neighborhood_attention_packed, *given, na.VarlenLayout([4, 6]), 3)
    fails(TypeError, message, na.attention, *given)
    if place < 2:
        fails(TypeError, message, na.na2d_qk, *given[:2], 3)
        message = message.replace("query", "attention_weights").replace("key", "value")
        fails(TypeError, message, na.na2d_av, *given[:2], 3)
