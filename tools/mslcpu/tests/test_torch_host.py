"""Arguments and grids of `torch.mps.compile_shader`."""

import pytest

import mslcpu

torch = pytest.importorskip("torch")
from mslcpu import torch_host  # noqa: E402

SOURCE = """#include <metal_stdlib>
using namespace metal;
template <typename T>
[[kernel]] void scale(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                      constant int* n [[buffer(2)]], constant float& by [[buffer(3)]],
                      uint2 at [[thread_position_in_grid]]) {
  const uint i = at.y * n[1] + at.x;
  y[i] = T(float(x[i]) * by);
}
template [[host_name("scale_float")]] [[kernel]] decltype(scale<float>) scale<float>;
template [[host_name("scale_half")]] [[kernel]] decltype(scale<half>) scale<half>;
template [[host_name("scale_bfloat")]] [[kernel]] decltype(scale<bfloat>) scale<bfloat>;
"""


@pytest.mark.parametrize("name", ["float", "half", "bfloat"])
def test_types_casts_and_grid(name):
    x = torch.randn(5, 7).to({"float": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}[name])
    y = torch.full_like(x, torch.nan)
    with torch_host.installed(traffic=True) as session:
        library = torch.mps.compile_shader(SOURCE)
        shader = getattr(library, f"scale_{name}")
        shader(x, y, [5, 7], 2.5, threads=(7, 5), group_size=(4, 2), arg_casts={2: "int32"})
    assert "scale_half" in dir(library)
    assert not session.findings
    assert torch.equal(y, (x.float() * 2.5).to(x.dtype))
    assert session.launches[0][1].counters["threads"] == 35


def test_what_pytorch_refuses():
    x = torch.zeros(4, 4)
    with torch_host.installed():
        shader = torch.mps.compile_shader(SOURCE).scale_float
        with pytest.raises(mslcpu.MSLError, match="not contiguous"):
            shader(x.t()[1:], x, [4, 4], 1.0, threads=(4, 4), group_size=(4, 4))
        with pytest.raises(RuntimeError, match="same number of dimensions"):
            shader(x, x, [4, 4], 1.0, threads=(4, 4), group_size=4)
        with pytest.raises(ValueError, match="threadgroup size"):
            shader(x, x, [4, 4], 1.0, threads=(4, 4), group_size=(64, 32))
        with pytest.raises(RuntimeError, match="no_such"):
            torch.mps.compile_shader(SOURCE).no_such  # noqa: B018
        with pytest.raises(UnicodeEncodeError):
            torch.mps.compile_shader(SOURCE + "// caf\u00e9")


def test_a_source_can_be_edited_before_it_compiles():
    x, y = torch.randn(4, 4), torch.empty(4, 4)
    with torch_host.installed(edit=lambda text: text.replace("x[i]", "x[i + 1]")) as session:
        torch.mps.compile_shader(SOURCE).scale_float(
            x, y, [4, 4], 1.0, threads=(4, 4), group_size=(4, 4), arg_casts={2: "int32"}
        )
    assert "out-of-bounds read of 'x'" in session.findings[0]


@pytest.mark.parametrize("first", [0, 1, 4])
def test_tensors_start_where_their_storage_says(first):
    source = (
        "#include <metal_stdlib>\nusing namespace metal;\n"
        "kernel void k(device const float4* x [[buffer(0)]], device float* y [[buffer(1)]],\n"
        "              uint i [[thread_position_in_grid]]) { y[i] = x[i].y; }\n"
    )
    x, y = torch.arange(32.0)[first : first + 16], torch.empty(4)
    with torch_host.installed() as session:
        torch.mps.compile_shader(source).k(x, y, threads=4, group_size=4)
    assert y.tolist() == [first + place for place in (1, 5, 9, 13)]
    assert bool(session.findings) == (first == 1)
    assert all("misaligned access of 'x'" in found for found in session.findings)
