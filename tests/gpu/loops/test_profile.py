"""Kernels by kind of work."""

from __future__ import annotations

import pytest

from tests.gpu.loops.profile import HOST_GAPS, KINDS, OTHER, Event, busy, by_kind, kind_of

# Names as CUDA's libraries, torch and Triton give them.
KERNELS = {
    "nvjet_tst_256x128_64x4_2x1_v_bz_coopA_NNT": "products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas": "products",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nt_align4>(Params)": "products",
    "aten::mm": "products",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_f16_knob_3_64x128x128_4x1x1_kernel0_0": "attention",
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<160, 64>>": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3": "norms",
    "triton_red_fused_exp_logsumexp_sub_1": "loss",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>": "optimizer",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "communication",
    "Memcpy DtoD (Device -> Device)": "copies",
    "Memset (Device)": "copies",
    "void at::native::elementwise_kernel<bfloat16_copy_kernel_cuda>": "copies",
    "triton_poi_fused_mul_silu_7": OTHER,
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_has_its_kind(name: str) -> None:
    assert kind_of(name) == KERNELS[name]


def test_every_kind_is_tried() -> None:
    assert set(KERNELS.values()) == {*KINDS, OTHER}


def test_time_in_which_nothing_ran_is_a_gap() -> None:
    events = [Event("gemm", 0, 400), Event("Memcpy", 300, 600), Event("gemm", 800, 1000)]  # two streams overlap
    assert busy(events) == 800
    found = by_kind(events, wall=1.5e-3)
    assert (found["products"], found["copies"]) == pytest.approx((0.6, 0.3))
    assert found[HOST_GAPS] == pytest.approx(1.5 - 0.8)


def test_a_step_without_events_is_a_gap() -> None:
    assert by_kind([], wall=2e-3)[HOST_GAPS] == pytest.approx(2.0)
