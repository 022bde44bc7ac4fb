"""Switches of NATTEN's context, configurations, and checks that clients call."""

import pytest
import torch

from vicinal.torch.compat import checks, signature_types, switches, tokens, v017, v020

PAIRS = [
    ("use_deterministic_algorithms", "are_deterministic_algorithms_enabled"),
    ("use_kv_parallelism_in_fused_na", "is_kv_parallelism_in_fused_na_enabled"),
    ("use_gemm_na", "is_gemm_na_enabled"),
    ("use_tiled_na", "is_tiled_na_enabled"),
    ("use_tf32_in_gemm_na", "is_tf32_in_gemm_na_enabled"),
    ("use_fused_na", "is_fused_na_enabled"),
    ("use_fna", "is_fna_enabled"),
    ("allow_flex_compile", "is_flex_compile_allowed"),
    ("allow_flex_compile_backprop", "is_flex_compile_backprop_allowed"),
]
ONE_WAY = [
    ("enable_tf32", "is_tf32_in_gemm_na_enabled", True),
    ("disable_tf32", "is_tf32_in_gemm_na_enabled", False),
    ("enable_gemm_na", "is_gemm_na_enabled", True),
    ("disable_gemm_na", "is_gemm_na_enabled", False),
    ("enable_tiled_na", "is_tiled_na_enabled", True),
    ("disable_tiled_na", "is_tiled_na_enabled", False),
    ("use_flex_attention", "should_use_flex_attention", True),
    ("force_flex_attention", "should_force_flex_attention", True),
    ("disable_flex_compile", "is_flex_compile_allowed", False),
    ("disable_flex_compile_backprop", "is_flex_compile_backprop_allowed", False),
]


@pytest.fixture(autouse=True)
def _reset():
    yield
    switches.NattenContext.reset()


def outcome():
    torch.manual_seed(0)
    q = torch.randn(1, 6, 2, 4)
    return v017.na1d(q, q, q, 3)


@pytest.mark.parametrize(("use", "read"), PAIRS)
def test_a_switch_is_kept_and_changes_nothing(use, read):
    before = outcome()
    for mode in (True, False, True):
        getattr(switches, use)(mode)
        assert getattr(switches, read)() is mode
        assert torch.equal(outcome(), before)
    getattr(switches, use)(mode=False)
    getattr(switches, use)()
    assert getattr(switches, read)() is True


@pytest.mark.parametrize(("act", "read", "mode"), ONE_WAY)
def test_switches_of_one_direction(act, read, mode):
    assert getattr(switches, act)() in (mode, None)
    assert getattr(switches, read)() is mode


def test_fused_switch_sets_others():
    switches.use_fused_na(True, kv_parallel=False, use_flex_attention=True, force_flex_attention=True)
    assert not switches.is_kv_parallelism_in_fused_na_enabled()
    assert switches.should_use_flex_attention()
    assert switches.should_force_flex_attention()
    switches.use_fused_na(False)
    readers = "is_fused_na_enabled is_kv_parallelism_in_fused_na_enabled should_use_flex_attention"
    assert not any(getattr(switches, read)() for read in [*readers.split(), "should_force_flex_attention"])
    switches.use_flex_attention()
    assert switches.is_fused_na_enabled()
    assert not switches.should_force_flex_attention()


def test_memory_preference():
    assert switches.is_memory_usage_default()
    switches.set_memory_usage_preference("strict")
    assert switches.is_memory_usage_strict()
    switches.set_memory_usage_preference("unrestricted")
    assert switches.is_memory_usage_unrestricted()
    assert switches.get_memory_usage_preference() is switches.MemoryUsagePreference.Unrestricted
    with pytest.raises(ValueError, match="default, strict, unrestricted"):
        switches.set_memory_usage_preference("low")


def test_autotuner():
    assert not switches.is_autotuner_enabled()
    switches.use_autotuner(forward_pass=True, thorough_mode_backward=True, warmup_steps_forward=3)
    assert switches.is_autotuner_enabled()
    assert switches.is_autotuner_enabled_for_forward()
    assert not switches.is_autotuner_enabled_for_backward()
    assert switches.is_autotuner_thorough_for_backward()
    switches.disable_autotuner()
    assert not switches.is_autotuner_enabled()
    assert not switches.is_autotuner_thorough_for_backward()


def test_probes():
    assert switches.has_cuda() == torch.cuda.is_available()
    for name in ("half", "bfloat", "gemm", "fna", "fused_na", "tf32_gemm", "fp32_gemm", "fp64_gemm"):
        probe = getattr(switches, f"has_{name}")
        assert probe() is probe(0) is True


def test_no_configurations():
    q = torch.randn(1, 8, 8, 2, 4)
    names = [name for name in v020.__all__ if "configs_for" in name]
    assert len(names) == 14
    assert all(getattr(v020, name)(q, q, q) == [] for name in names)


def test_checks_make_tuples():
    assert checks.check_all_args(2, 3, (1, 2), None) == ((3, 3), (1, 2), (False, False))
    assert checks.check_all_args(1, [5], None, True) == ((5,), (1,), (True,))
    assert checks.check_all_args_with_stride(2, 3, None, 1, False) == ((3, 3), (1, 1), (1, 1), (False, False))
    assert checks.check_input_size_arg(3, torch.Size([4, 5, 6])) == (4, 5, 6)
    assert checks.get_num_na_weights((3, 5)) == 15
    assert checks.create_dim_from_int(2, 3) == (3, 3)
    assert checks.create_causal_arg_from_bool(2, True) == (True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel_size", 0),
        ("kernel_size", (3, 3, 3)),
        ("kernel_size", "3"),
        ("dilation", 0),
        ("dilation", True),
        ("stride", 1.5),
        ("input_size", (4, 0)),
        ("causal", 1),
        ("causal", (True,)),
    ],
    ids=str,
)
def test_checks_refuse(name, value):
    with pytest.raises(ValueError, match=name):
        getattr(checks, f"check_{name}_arg")(2, value)


def test_checks_of_additional_tokens():
    x, more = torch.randn(2, 3, 8, 8, 4), torch.randn(2, 3, 5, 4)
    assert tokens.check_additional_keys(x, None) == tokens.check_additional_values(x, None, x, 9) == 0
    assert tokens.check_additional_keys(x, more) == 5
    weights = tokens.make_attn_tensor_from_input(x, 14)
    assert weights.shape == (2, 3, 8, 8, 14)
    assert tokens.check_additional_values(weights, more, x, 9) == 5
    with pytest.raises(ValueError, match="14 weights"):
        tokens.check_additional_values(weights, more, x, 25)
    for wrong in (more[:1], more[:, :1], more[..., :2], more.double(), more[0]):
        with pytest.raises(ValueError, match=r"additional_keys is .* pass \[2, 3, tokens, 4\]"):
            tokens.check_additional_keys(x, wrong)


def test_types():
    assert signature_types.KernelSchedule.WarpSpecializedPingpong.value == 2
    assert isinstance(3, signature_types.DimensionTypeOrDed.__args__[0])
