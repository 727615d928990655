"""benchmarks/kernels.py: what counts as what, on names of kernels that were seen."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import kernels  # noqa: E402


@pytest.mark.parametrize(
    "name, kind",
    [
        (
            "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize256x64x32",
            "convolution",
        ),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16", "convolution"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT", "product"),
        ("gemm_fusion_dot_92", "product"),
        ("input_reduce_fusion_80", "norm, reduction"),
        ("loop_convert_fusion_4", "elementwise"),  # "conv" is in "convert" too
        ("wrapped_transpose", "copy, transposition"),
        ("MemcpyH2D", "copy, transposition"),
    ],
)
def test_kinds(name, kind):
    assert kernels.kind_of(name) == kind


def test_time_in_which_something_ran():
    assert kernels.busy([]) == 0
    assert kernels.busy([(0, 10), (20, 5)]) == 15
    assert (
        kernels.busy([(5, 10), (0, 10), (2, 3)]) == 15
    )  # overlapping, out of order, one inside another


def test_no_trace(tmp_path):
    with pytest.raises(FileNotFoundError, match="--profile"):
        kernels.events(tmp_path)
