"""XLA's flags for the tests: programs compiled fast rather than compiled to be fast."""

ONE_DEVICE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""LLVM's work is most of compiling; without MLIR's emitters and in one module it is a third."""

EIGHT_DEVICES = f"{ONE_DEVICE} --xla_force_host_platform_device_count=8"
