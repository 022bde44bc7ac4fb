"""Named problems: what tests, benchmarks, the tuner and the support table run over."""

from typing import Any, NamedTuple

from . import arguments
from .arguments import Flags, Sizes
from .problem import Problem


class Case(NamedTuple):
    """A problem with the name it goes by, and where its numbers come from."""

    name: str
    problem: Problem
    source: str


def _case(
    name: str,
    source: str,
    lengths: tuple[int, ...],
    size: Sizes,
    *,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    causal: Flags = False,
    output_stride: Sizes = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    dim: int = 32,
    value_dim: int | None = None,
    **rest: Any,
) -> Case:
    window = arguments.window(lengths, size, stride, dilation, causal, output_stride)
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = dim if value_dim is None else value_dim
    axes = arguments.axes(lengths, window)
    problem = Problem(axes, heads=heads, kv_heads=kv_heads, dim=dim, value_dim=value_dim, **rest)
    return Case(name, problem, source)


# fmt: off
# Sizes that published models run; where a model leaves batch or token grid open, a plausible one.
MODELS = (
    _case("nat_tiny_s1", "NAT-Mini/Tiny stage 1, 224x224 (SHI NAT, HF nat, dinat)", (56, 56), 7, batch=64,
          heads=2, dim=32, dtype="float16", bias=True),
    _case("dinat_s1_dil8", "DiNAT-Small stage 1, dilation 8", (56, 56), 7, dilation=8, batch=64, heads=3,
          dim=32, dtype="float16", bias=True),
    _case("dinat_s3_dil2", "DiNAT-Small stage 3 (18 layers)", (14, 14), 7, dilation=2, batch=64, heads=12,
          dim=32, dtype="float16", bias=True),
    _case("dinat_large_384_k11", "DiNAT-Large 384 11x11 stage 1", (96, 96), 11, dilation=8, batch=8,
          heads=6, dim=32, dtype="float16", bias=True),
    _case("oneformer_dinat_l_896", "OneFormer DiNAT-L 11x11, ADE20K 896x896, stage 1, dilation 20",
          (224, 224), 11, dilation=20, batch=1, heads=6, dim=32, dtype="float32", bias=True),
    _case("hdit_256_l0", "k-diffusion config_oxford_flowers, level 0", (64, 64), 7, batch=32, heads=2,
          dim=64, dtype="bfloat16"),
    _case("hdit_512_l0", "PMRF HDiT (512x512, patch 4), level 0 width 256", (128, 128), 7, batch=4, heads=4,
          dim=64, dtype="bfloat16"),
    _case("stylenat_256_hydra",
          "StyleNAT FFHQ-256: kernels 7, head groups with dilations [1,32] at 256x256", (256, 256), 7,
          dilation=32, batch=8, heads=4, dim=32, dtype="float32", bias=True),
    _case("overlock_av_k13", "OverLoCK dynamic blocks, stage 3 at 224x224", (14, 14), 13, batch=64, heads=4,
          dim=32, dtype="float16"),
    _case("naf_x16", "valeoai NAF, ViT features 32x32 -> 512x512 (Pixal3D uses the same)", (512, 512), 9,
          dilation=16, batch=1, heads=4, dim=64, value_dim=256, dtype="float16"),
    _case("anyup_x14", "AnyUp use_natten=True, DINOv2-S", (448, 448), 7, dilation=14, batch=1, heads=4,
          dim=32, value_dim=384, dtype="float32"),
    _case("r2flow_lidar", "r2flow HDiT, 64x1024 range image, patch (1,4), circular pad 4", (64, 264),
          (3, 9), batch=8, heads=2, dim=64, dtype="float16"),
    _case("allin1_time", "allin1: 4 min of music at 100 fps; dilations 1,2,4..1024 and twice that",
          (24000,), 5, dilation=1024, batch=4, heads=2, dim=12, dtype="float32", bias=True),
    _case("allin1_inst", "allin1 instrument layer (4 stems padded to 5)", (5, 24000), 5, batch=1, heads=2,
          dim=12, dtype="float32", bias=True),
    _case("stable_audio_1d", "stable-audio-tools local attention (sizes are options)", (4096,), 127,
          batch=8, heads=16, dim=64, dtype="float32"),
    _case("lm_causal_1d", "sliding-window causal 1-D (NATTEN 0.17+/0.20 docs' own kind of use)", (8192,),
          1024, causal=True, batch=4, heads=16, dim=64, dtype="bfloat16"),
    _case("stormscope_dit", "PhysicsNeMo stormcast/config/model/stormscope.yaml: hidden 768, 16 heads",
          (128, 160), 31, batch=1, heads=16, dim=48, dtype="bfloat16"),
    _case("weathermesh", "graph_weather WeatherMesh2: kernel", (14, 90, 180), (5, 7, 7), batch=1, heads=8,
          dim=128, dtype="bfloat16"),
    _case("cosmos_local_8", "Cosmos-Predict2 2B 720p, layers 3,4,6-9,27", (16, 44, 80), (16, 12, 24),
          stride=(1, 4, 8), batch=1, heads=16, dim=128, dtype="bfloat16"),
    _case("cosmos_local_77", "Cosmos-Predict2 2B 720p, layers 11-22,24-26", (16, 44, 80), (16, 20, 40),
          stride=(1, 4, 8), batch=1, heads=16, dim=128, dtype="bfloat16"),
    _case("cosmos_sparse_dil", "Cosmos-Predict2 2B layers 0,1; 14B layers 0-10", (16, 44, 80), (16, 4, 16),
          dilation=(1, 11, 5), batch=1, heads=16, dim=128, dtype="bfloat16"),
    _case("cosmos_mixed", "Cosmos-Predict2 2B layers 2,5,10", (16, 44, 80), (16, 12, 16), stride=(1, 4, 1),
          dilation=(1, 1, 5), batch=1, heads=16, dim=128, dtype="bfloat16"),
    _case("ltx2_stage2", "LTX-2 diffusion VAE decoder deterministic stage", (16, 48, 48), (3, 7, 7),
          batch=1, heads=16, dim=64, dtype="bfloat16"),
    _case("ltx2_stage5", "LTX-2 diffusion VAE decoder stage 5", (20, 96, 96), 11, batch=1, heads=4, dim=64,
          dtype="bfloat16"),
    _case("medical_3d", "MONAI-style SwinUNETR variant with NeighborhoodAttention3D (0.17)", (24, 24, 24),
          5, dilation=2, batch=2, heads=4, dim=32, dtype="float16", bias=True),
)

# Lengths, heads and dimensions that no tile divides.
ODD = (
    _case("odd_1d", "every extent odd", (19,), 5, batch=3, heads=3, dim=12),
    _case("odd_1d_even_window", "even window", (17,), 4, batch=1, heads=1, dim=5),
    _case("odd_2d", "every extent odd", (11, 7), (3, 5), batch=2, heads=2, dim=20),
    _case("odd_2d_even_window", "even window", (9, 10), (4, 2), batch=1, heads=3, dim=7),
    _case("odd_3d", "every extent odd", (5, 6, 7), (3, 2, 5), batch=1, heads=2, dim=9),
    _case("one_token", "the smallest input", (1,), 1, batch=1, heads=1, dim=1),
    _case("one_key", "a window of one key", (6, 5), (1, 3), batch=2, heads=2, dim=8),
    _case("whole", "the window is the input", (6, 5), (6, 5), batch=2, heads=2, dim=8),
    _case("long", "more tokens than a tile of any backend", (333,), 31, batch=1, heads=2, dim=16),
)

# Every option once, on an input small enough for a dense reference.
OPTIONS = (
    _case("stride", "shared windows", (13, 14), 5, stride=(3, 2), heads=2, dim=8),
    _case("stride_is_size", "blocked attention", (10, 12), 4, stride=4, heads=2, dim=8),
    _case("dilation", "ragged dilation groups", (17, 13), (3, 4), dilation=(3, 2), heads=2, dim=8),
    _case("causal", "one causal axis", (9, 8), (4, 3), causal=(True, False), heads=2, dim=8),
    _case("causal_3d", "all axes causal", (4, 5, 6), (2, 3, 4), causal=True, heads=2, dim=8),
    _case("causal_stride", "shared causal windows", (12,), 5, stride=3, causal=True, heads=2, dim=8),
    _case("output_stride", "queries at multiples", (13, 12), 5, output_stride=(2, 3), heads=2, dim=8),
    _case("output_stride_dilation", "strides that share a factor", (25,), 3, dilation=4, output_stride=6,
          dim=8 ),
    _case("grouped", "grouped-query attention", (9, 8), 3, heads=6, kv_heads=2, dim=8),
    _case("multi_query", "one key/value head", (21,), 7, heads=4, kv_heads=1, dim=8),
    _case("value_dim", "values wider than keys", (9, 8), 3, heads=2, dim=8, value_dim=20),
    _case("bias", "relative position bias", (9, 8), (3, 5), heads=2, dim=8, bias=True),
    _case("bias_dilation", "bias over a dilated window", (15, 8), (5, 3), dilation=(3, 2), heads=2, dim=8,
          bias=True),
    _case("extra", "additional tokens", (9, 8), 3, heads=2, dim=8, extra=5),
    _case("everything", "all options together", (14, 15), (4, 3), stride=(2, 1), dilation=(2, 3),
          causal=(True, False), output_stride=(1, 2), batch=2, heads=4, kv_heads=2, dim=8, value_dim=12,
          bias=True, extra=3),
    _case("float64", "double precision", (9, 8), 3, heads=2, dim=8, dtype="float64"),
    _case("float16", "half precision", (9, 8), 3, heads=2, dim=8, dtype="float16"),
    _case("bfloat16", "brain float", (9, 8), 3, heads=2, dim=8, dtype="bfloat16"),
)

# fmt: on

CASES = MODELS + ODD + OPTIONS
SMALL = ODD + OPTIONS


def named(name: str) -> Case:
    """The case called `name`.

    Raises:
        ValueError: no case has that name.
    """
    for case in CASES:
        if case.name == name:
            return case
    raise ValueError(f"case {name!r} is unknown; pass one of {', '.join(case.name for case in CASES)}")
