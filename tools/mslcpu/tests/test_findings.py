"""Every kind of mistake, planted in a correct kernel, is found and named at its line."""

import numpy as np
import pytest

import mslcpu

# The body starts at line 9, one statement a line.
KERNEL = """#include <metal_stdlib>
using namespace metal;
kernel void k(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
              constant int& n [[buffer(2)]],
              uint t [[thread_index_in_threadgroup]], uint g [[threadgroup_position_in_grid]],
              uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float s[128];
  const uint i = g * 128 + t;
"""
FIRST = 9
FENCE = "threadgroup_barrier(mem_flags::mem_threadgroup);"
CORRECT = ["s[t] = x[i];", FENCE, "y[i] = s[127 - t];"]


def source(*body):
    return KERNEL + "\n".join(body) + "\n}\n"


def launch(*body, **options):
    x, y = np.random.default_rng(0).standard_normal(512).astype("f"), np.zeros(512, "f")
    result = mslcpu.Library(source(*body), "planted.metal").run(
        "k", {0: x, 1: y, 2: np.array([512], "i")}, grid=(512,), group=(128,), unwritten=[1], **options
    )
    return x, y, result.findings


def instead(old, new):
    return [line.replace(old, new) for line in CORRECT]


@pytest.mark.parametrize("order", mslcpu.ORDERS)
def test_correct_kernel_is_clean(order):
    x, y, findings = launch(*CORRECT, order=order)
    assert not findings
    assert (y == x.reshape(4, 128)[:, ::-1].ravel()).all()


SECOND_USE = [*CORRECT, "s[t] = 2.0f;", FENCE, "y[i] += s[t ^ 1];"]
PLANTED = [
    ("missing_barrier", [CORRECT[0], CORRECT[2]], "race in threadgroup memory", 1),
    ("simdgroup_barrier", instead("threadgroup_barrier", "simdgroup_barrier"),
     "race in threadgroup memory", 2),
    ("barrier_without_fence", instead("mem_threadgroup", "mem_none"), "race in threadgroup memory", 2),
    ("barrier_with_other_fence", instead("mem_threadgroup", "mem_device"), "race in threadgroup memory", 2),
    ("overwritten_too_early", SECOND_USE, "race in threadgroup memory", 3),
    ("exchange_without_fence", ["s[t] = x[i];", "float v = simd_sum(x[i]);", "y[i] = v + s[t ^ 1];"],
     "race in threadgroup memory", 2),
    ("device_race", ["y[i] = x[i];", "y[i] += y[g * 128 + (t + 1) % 128];"], "race in device memory", 1),
    ("threadgroup_overflow", instead("127 - t", "128 - t"), "out-of-bounds read", 2),
    ("device_overflow", instead("x[i]", "x[i + 1]"), "out-of-bounds read", 0),
    ("device_underflow", instead("y[i]", "y[int(i) - 1]"), "out-of-bounds write", 2),
    ("wrapped_index", ["int far = 1500000000 + int(t) * 100000000;", "y[i] = x[far];"],
     "out-of-bounds read", 1),
    ("constant_overflow", ["y[i] = float((&n)[1]);"], "out-of-bounds read", 0),
    ("two_groups", instead("y[i]", "y[t]"), "race between threadgroups", 2),
    ("unwritten_threadgroup", ["if (t < 100)", *CORRECT], "read of unwritten threadgroup memory", 3),
    ("unwritten_device", ["y[i] += x[i];"], "read of unwritten device memory", 0),
    ("divergent_barrier", ["if (t < 64)", FENCE, "else", FENCE, "y[i] = 0;"], "divergent barrier", (1, 3)),
    ("barrier_in_branch", ["if (t < 64)", FENCE, "y[i] = 0;"], "barrier that not all threads reach", 1),
    ("barrier_after_return", ["y[i] = 0;", "if (t > 99) return;", FENCE],
     "barrier that not all threads reach", 2),
    ("divergent_collective",
     ["float v = x[i];", "if (lane < 8)", "v = simd_sum(v);", "v = simd_max(v);", "y[i] = v;"],
     "divergent SIMD-group operation", 2),
    ("inactive_lane", ["float v = x[i];", "if (lane < 8)", "v = simd_shuffle(v, 20);", "y[i] = v;"],
     "shuffle from an inactive lane", 2),
    ("partial_matrix", ["simdgroup_float8x8 m(1.0f);", "if (lane < 8)", "simdgroup_multiply(m, m, m);",
                        "y[i] = m.thread_elements()[0];"], "divergent SIMD-group operation", 2),
    ("misaligned_vector", ["y[i] = (*reinterpret_cast<device const float4*>(x + i / 8 + 1)).x;"],
     "misaligned access", 0),
    ("misaligned_struct", ["struct alignas(16) V { float v[4]; };",
                           "V v = *reinterpret_cast<device const V*>(x + i / 8 + 1);", "y[i] = v.v[2];"],
     "misaligned access", 1),
    ("misaligned_copy", ["struct alignas(16) V { float v[4]; };",
                         "*reinterpret_cast<device V*>(y + i / 8) = *reinterpret_cast<device const V*>(x);"],
     "misaligned access", 1),
    ("too_much_memory", ["threadgroup float big[8200];", "big[t] = 1;", "y[i] = big[t];"],
     "threadgroup memory over the limit", 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "line"), [case[1:] for case in PLANTED], ids=[case[0] for case in PLANTED]
)
@pytest.mark.parametrize("order", mslcpu.ORDERS)
def test_planted_mistake_is_named(body, kind, line, order):
    found = {(finding.kind, finding.location.rsplit(":", 1)[0]) for finding in launch(*body, order=order)[2]}
    lines = line if isinstance(line, tuple) else (line,)
    assert found.intersection((kind, f"planted.metal:{FIRST + place}") for place in lines), found


def test_random_order_mixes_threadgroups():
    """The last to write wins, which no order of threads within a threadgroup decides."""
    last = {order: launch("y[0] = float(g);", order=order)[1][0] for order in mslcpu.ORDERS}
    assert (last[mslcpu.ORDERS[0]], last[mslcpu.ORDERS[1]]) == (3, 0)
    seeds = {launch("y[0] = float(g);", order=mslcpu.ORDERS[2], seed=seed)[1][0] for seed in range(1, 20)}
    assert seeds == {0, 1, 2, 3}


def test_a_finding_names_the_memory():
    finding = launch(*instead("127 - t", "128 - t"))[2][0]
    assert (finding.memory, finding.offset, finding.size, finding.count) == ("s", 512, 4, 4)
    assert str(finding).startswith("planted.metal:11:")


def test_outputs_that_nobody_writes_stay_poisoned():
    _, y, findings = launch("if (t != 5) y[i] = 0;")
    assert not findings
    assert np.isnan(y).sum() == 4


def test_exchange_inside_a_simdgroup_needs_only_its_fence():
    body = ["s[t] = x[i];", "simdgroup_barrier(mem_flags::mem_threadgroup);", "y[i] = s[t ^ 1];"]
    x, y, findings = launch(*body)
    assert not findings
    assert (y == x.reshape(-1, 2)[:, ::-1].ravel()).all()


REFUSED = {
    "no_address_space": "auto f = [](threadgroup float* p) { return p[0]; }; y[i] = f(x);",
    "double": "double d = x[i]; y[i] = d;",
    "write_to_const": "x[i] = 1.0f;",
    "threadgroup_from_device": "threadgroup float* p = y; p[0] = 1;",
    "constant_from_device": "constant const float* p = x; y[i] = p[0];",
    "vector_of_three_from_four": "float4 v = float4(1.0f, 2.0f, 3.0f); y[i] = v.x;",
    "ambiguous_max": "y[i] = max(int(t), t);",
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED)
def test_refused_at_compile_time(line):
    with pytest.raises(mslcpu.MSLError, match=r"error(.|\n)*planted\.metal:9:|planted\.metal:9:\d+: error"):
        mslcpu.Library(source(line), "planted.metal")


def test_too_many_threads_are_refused():
    limited = "[[max_total_threads_per_threadgroup(64)]] kernel void"
    library = mslcpu.Library(source(*CORRECT).replace("kernel void", limited))
    x = np.zeros(512, "f")
    with pytest.raises(mslcpu.MSLError, match="128 threads"):
        library.run("k", {0: x, 1: x, 2: np.array([512], "i")}, grid=(512,), group=(128,))


def test_lint_names_pointers_without_space_and_foreign_letters():
    lines = [
        "// caf\u00e9",
        "float a[2] = {x[i], 1}; float* p = a; y[i] = p[1];",
        "bfloat b = x[i]; y[i] = b;",
    ]
    text = source(*lines)
    found = "\n".join(mslcpu.lint(text, "planted.metal"))
    assert "planted.metal:9: non-ASCII" in found
    assert "planted.metal:10: pointer or reference without address space: p" in found
    assert "planted.metal:11: implicit conversion" in found
    assert not mslcpu.lint(source(*CORRECT))
    copied = "struct V { float v[4]; }; V v = {}; v = *reinterpret_cast<device const V*>(x); y[i] = v.v[1];"
    assert not mslcpu.lint(source(copied))
