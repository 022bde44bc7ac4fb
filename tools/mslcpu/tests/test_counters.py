"""Counters on kernels whose costs are counted by hand."""

import numpy as np

import mslcpu

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


def test_traffic_and_arithmetic():
    library = mslcpu.Library(
        HEAD
        + "kernel void c(device const float4* x [[buffer(0)]], device float* y [[buffer(1)]],\n"
        + "              uint i [[thread_position_in_grid]]) {\n"
        + "  float4 v = x[i]; y[i] = v.x * v.y + exp2(v.z * v.w);\n}\n"
    )
    x, y = np.random.default_rng(0).standard_normal((256, 4)).astype("f"), np.zeros(256, "f")
    result = library.run("c", {0: x, 1: y}, grid=(256,), group=(64,), unwritten=[1], traffic=True)
    np.testing.assert_allclose(y, x[:, 0] * x[:, 1] + np.exp2(x[:, 2] * x[:, 3]), rtol=1e-6, atol=1e-6)
    counted = {name: count for name, count in result.counters.items() if count}
    assert counted == {
        "device_read_bytes": 256 * 16,
        "device_write_bytes": 256 * 4,
        "device_reads": 256,
        "device_writes": 256,
        "device_instructions": 16,
        "read_lines": 32,
        "write_lines": 8,
        "read_sectors": 128,
        "write_sectors": 32,
        "threads": 256,
        "groups": 4,
        "simdgroups": 8,
    }
    operations = result.operations
    assert [operations[name] for name in ("fma32", "mul32", "exp", "add32", "divide")] == [
        256,
        256,
        256,
        0,
        0,
    ]
    assert result.buffers["x"]["distinct_read"] == 4096


def test_threadgroup_memory_and_collectives():
    library = mslcpu.Library(
        HEAD
        + "kernel void c(device float* y [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {\n"
        + "  threadgroup float s[64 * 32]; s[t * 32] = 1;\n"
        + "  threadgroup_barrier(mem_flags::mem_threadgroup);\n"
        + "  simdgroup_float8x8 a(1.0f), b; simdgroup_multiply(b, a, a);\n"
        + "  y[t] = simd_sum(s[t * 32]) + simd_shuffle_xor(b.thread_elements()[0], 1);\n}\n"
    )
    y = np.zeros(64, "f")
    result = library.run("c", {0: y}, grid=(64,), group=(64,), unwritten=[0], traffic=True)
    counted = result.counters
    assert not result.findings
    assert (counted["threadgroup_write_bytes"], counted["threadgroup_read_bytes"]) == (256, 256)
    # All lanes in one bank, twice in each of two SIMD-groups.
    assert counted["bank_cycles"] == 4 * 32
    assert (counted["barriers"], counted["reductions"], counted["shuffles"]) == (1, 2, 2)
    assert (counted["matrix_multiplies_32"], counted["threadgroup_memory"]) == (2, 8192)


def test_division_by_a_constant_is_no_division():
    library = mslcpu.Library(
        HEAD
        + "kernel void c(device int* y [[buffer(0)]], constant int& n [[buffer(1)]],\n"
        + "              uint i [[thread_position_in_grid]]) { y[i] = int(i / 7) + int(i) / n; }\n"
    )
    y = np.zeros(32, "i")
    result = library.run("c", {0: y, 1: np.array([3], "i")}, grid=(32,), group=(32,))
    assert (y == np.arange(32) // 7 + np.arange(32) // 3).all()
    assert result.operations["integer_divide"] == 32
