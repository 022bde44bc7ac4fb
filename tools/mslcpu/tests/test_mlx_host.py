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


LAUNCH = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1), "output_shapes": [(4,)], "output_dtypes": [mx.float32]}


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_outputs_start_with_a_value(kind):
    with mlx_host.installed() as session:
        kernel = mx.fast.metal_kernel(
            "k", ["x"], ["y"], "if (thread_position_in_grid.x < 2) y[thread_position_in_grid.x] = x[0];"
        )
        (y,) = kernel(
            inputs=[mx.zeros(9)], init_value=-7.0, **LAUNCH | {"output_dtypes": [getattr(mx, kind)]}
        )
    assert not session.findings
    assert y.tolist() == [0, 0, -7, -7]


@pytest.mark.parametrize("moved", [(), ("x",)])
def test_inputs_may_start_anywhere(moved):
    source = "uint i = thread_position_in_grid.x; y[i] = reinterpret_cast<const device float4*>(x)[i].y;"
    with mlx_host.installed(moved=frozenset(moved)) as session:
        kernel = mx.fast.metal_kernel("k", ["x"], ["y"], source)
        (y,) = kernel(inputs=[mx.arange(16.0)], **LAUNCH)
    assert y.tolist() == [1, 5, 9, 13]
    assert bool(session.findings) == bool(moved)
    assert all("misaligned access of 'x'" in found for found in session.findings)


def test_results_have_no_derivatives_but_what_is_given():
    with mlx_host.installed():
        kernel = mx.fast.metal_kernel(
            "k", ["x"], ["y"], "y[thread_position_in_grid.x] = 2 * x[thread_position_in_grid.x];"
        )
        x = mx.arange(9.0)
        twice = lambda x: kernel(inputs=[x], **LAUNCH)[0]  # noqa: E731
        assert twice(x).tolist() == [0, 2, 4, 6]
        with pytest.raises(ValueError, match="jvp"):
            mx.eval(mx.jvp(twice, [x], [x])[1])
        with pytest.raises((ValueError, RuntimeError)):
            mx.eval(mx.vmap(twice)(x[None]))


def test_reading_an_output_is_found():
    with mlx_host.installed() as session:
        kernel = mx.fast.metal_kernel("k", ["x"], ["y"], "y[thread_position_in_grid.x] += x[0];")
        kernel(inputs=[mx.zeros(9)], **LAUNCH)
        assert "read of unwritten device memory of 'y'" in session.findings[0]
        session.launches.clear()
        kernel(inputs=[mx.zeros(9)], init_value=1, **LAUNCH)
        assert not session.findings
