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
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage)", "between devices"),
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


def test_collectives_that_nothing_hides(monkeypatch):
    """A device computes for 30 ns; of 20 ns of collectives 10 ns are at the same time."""
    nccl = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
    spans = {"/device:GPU:0": [("gemm", 0, 30), (nccl, 20, 20)], "/device:GPU:1": [("gemm", 0, 30)]}
    monkeypatch.setattr(kernels, "events_by_device", lambda trace: spans)
    found = kernels.collectives(Path("trace"))
    assert found["ms"] == pytest.approx(10e-6) and found["exposed_ms"] == pytest.approx(5e-6)
    assert found["exposed_share"] == pytest.approx(5 / 35)
    monkeypatch.setattr(kernels, "events_by_device", lambda trace: {})
    assert kernels.collectives(Path("trace")) is None


def test_no_trace(tmp_path):
    with pytest.raises(FileNotFoundError, match="--profile"):
        kernels.events(tmp_path)
