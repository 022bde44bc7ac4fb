"""How far a result may be from the float64 oracle: a small multiple of what rounding alone does in its dtype.

A result is a sum of products that may cancel, so its error scales with the terms, not with each value. Two
parts add up. Accumulation happens in float32, or float64 for float64, over terms of order one, as inputs are
of unit scale. Rounding to the dtype happens once at the end and scales with the largest exact value; matrix
units also want the weights rounded before they multiply them with values: `rounded_weights`. A log-sum-exp is
off by as much as its exponentials are, relatively, where these are approximated: `powers`.
"""

import numpy as np

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ACCUMULATION = 2.0**6


def allowed(exact: np.ndarray, dtype: str, rounded_weights: bool = False, powers: float = 0.0) -> float:
    """Largest absolute error of a result whose exact value is `exact`."""
    largest = float(np.max(np.abs(exact), initial=0.0))
    accumulated = EPSILON["float64" if dtype == "float64" else "float32"] * ACCUMULATION * max(largest, 1.0)
    rounded = EPSILON[dtype] * (4.0 if rounded_weights else 1.0) * max(largest, 2.0**-6)
    return accumulated + rounded + powers


def check(
    name: str,
    actual: np.ndarray,
    exact: np.ndarray,
    dtype: str,
    rounded_weights: bool = False,
    powers: float = 0.0,
) -> None:
    """Assert that `actual` has the shape of `exact` and is within the budget; NaN never is."""
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    finite = np.isfinite(exact)
    same = np.array_equal(actual[~finite], exact[~finite])
    assert same, f"{name}: infinities are not where they belong"
    error = float(np.max(np.abs(actual[finite] - exact[finite]), initial=0.0))
    limit = allowed(exact[finite], dtype, rounded_weights, powers)
    assert error <= limit, f"{name}: error {error:.3g} is over {limit:.3g}"
