"""Bad input is refused by a message."""

import re

import pytest


def fails(error, message, function, *args, **kwargs):
    """Assert that `function` raises `error` with `message` in it."""
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)
