"""Signatures and values of `mx.fast.metal_kernel`."""

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
from mslcpu import mlx_host  # noqa: E402


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("count", [2, 20])
def test_types_spaces_and_shapes(kind, count):
    dtype = getattr(mx, kind)
    x, shift = mx.arange(count * 3).reshape(count, 3).astype(dtype), mx.arange(count)
    with mlx_host.installed() as session:
        kernel = mx.fast.metal_kernel(
            name="add",
            input_names=["x", "shift", "by"],
            output_names=["y"],
            header="template <typename T> T twice(T v) { return v + v; }",
            source="uint i = thread_position_in_grid.x;\n"
            "if (int(i) >= x_shape[0] * x_shape[1]) return;\n"
            "y[i] = twice(T(float(x[i]) * by + float(shift[i / 3]) * W));",
        )
        (y,) = kernel(
            inputs=[x, shift, mx.array(0.5)],
            template=[("T", dtype), ("W", 2)],
            grid=(64, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[x.shape],
            output_dtypes=[dtype],
        )
    assert not session.findings
    wanted = 2 * (0.5 * np.arange(count * 3).reshape(count, 3) + 2 * np.arange(count)[:, None])
    np.testing.assert_allclose(np.array(y.astype(mx.float32)), wanted, rtol=0.01)


def test_reading_an_output_is_found():
    with mlx_host.installed() as session:
        kernel = mx.fast.metal_kernel("k", ["x"], ["y"], "y[thread_position_in_grid.x] += x[0];")
        options = {
            "grid": (4, 1, 1),
            "threadgroup": (4, 1, 1),
            "output_shapes": [(4,)],
            "output_dtypes": [mx.float32],
        }
        kernel(inputs=[mx.zeros(9)], **options)
        assert "read of unwritten device memory of 'y'" in session.findings[0]
        session.launches.clear()
        kernel(inputs=[mx.zeros(9)], init_value=1, **options)
        assert not session.findings
