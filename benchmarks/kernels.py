"""Where the time of a traced program went on a GPU: its kernels by kind, the dearest ones by name,
and how long the device stood idle.

    python benchmarks/kernels.py TRACE [--top 30] [--per 3]

TRACE is a folder that `jax.profiler.trace` wrote (--profile of train_step.py and sampler.py); --per
divides by so many runs of the program in it. Times are those of the device's clock. Kernels that
ran at the same time on several streams count once each, in "busy" together."""

from __future__ import annotations

import argparse
import re
import warnings
from collections import defaultdict
from pathlib import Path

from jax.profiler import ProfileData

KINDS = (
    ("between devices", r"nccl"),  # first: ncclDevKernel_AllReduce has "reduce" in it too
    ("attention", r"flash|fmha|sdpa|mha_"),
    (
        "convolution",
        r"cudnn.*conv|fprop|dgrad|wgrad|implicit_gemm|implicit_convolve|init_device_workspace",
    ),
    ("product", r"gemm|nvjet|cublas|splitK|dot"),
    ("copy, transposition", r"memcpy|memset|copy|transpose|nchwToNhwc|nhwcToNchw"),
    ("norm, reduction", r"reduce"),
)
"""Kind → what the names of its kernels have in them; the first that fits counts, all others are
"elementwise".
"""


def events(trace: Path) -> list[tuple[str, str, float, float]]:
    """(kernel, operation of the program, start, duration in ns) of all kernels on all GPUs. Raises
    FileNotFoundError if there is no trace.
    """
    return [
        (event.name, str(dict(event.stats).get("hlo_op", "")), event.start_ns, event.duration_ns)
        for _, event in _events(trace)
    ]


def events_by_device(trace: Path) -> dict[str, list[tuple[str, float, float]]]:
    """{GPU: (kernel, start, duration in ns) of each of its kernels}. Raises FileNotFoundError."""
    found = defaultdict(list)
    for device, event in _events(trace):
        found[device].append((event.name, event.start_ns, event.duration_ns))
    return dict(found)


def _events(trace: Path):
    """(GPU, event) of every kernel of the newest trace in a folder."""
    files = sorted(Path(trace).rglob("*.xplane.pb"))
    if not files:
        raise FileNotFoundError(
            f"no *.xplane.pb under {trace}: --profile of a benchmark writes one"
        )
    with warnings.catch_warnings():
        # The types that ProfileData is made of are deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        for plane in ProfileData.from_file(str(files[-1])).planes:
            for line in plane.lines if "GPU" in plane.name else ():
                if line.name.startswith("Stream"):
                    yield from ((plane.name, event) for event in line.events)


def collectives(trace: Path, per: int = 1) -> dict[str, float] | None:
    """Milliseconds a run and device in which collectives ran, and in which nothing else ran beside
    them: {"ms", "exposed_ms", "busy_ms", "exposed_share"}, means over the devices. None without
    GPUs. per: runs in the trace.
    """
    found = []
    for _, spans in sorted(events_by_device(trace).items()):
        nccl = [(start, took) for name, start, took in spans if kind_of(name) == "between devices"]
        rest = [(start, took) for name, start, took in spans if kind_of(name) != "between devices"]
        whole, others = busy(nccl + rest), busy(rest)
        found.append((busy(nccl), whole - others, whole))
    if not found:
        return None
    ms, exposed, whole = (sum(values) / len(found) / 1e6 / per for values in zip(*found))
    return {"ms": ms, "exposed_ms": exposed, "busy_ms": whole, "exposed_share": exposed / whole}


def kind_of(kernel: str) -> str:
    return next(
        (kind for kind, pattern in KINDS if re.search(pattern, kernel, re.IGNORECASE)),
        "elementwise",
    )


def busy(spans: list[tuple[float, float]]) -> float:
    """Nanoseconds in which at least one of the (start, duration) ran."""
    total, end = 0.0, float("-inf")
    for start, duration in sorted(spans):
        total += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    return total


def table(trace: Path, per: int = 1, top: int = 30) -> str:
    """The summary, milliseconds a run."""
    found = events(trace)
    if not found:
        return f"{trace}: no kernels of a GPU"
    ms, count, names = defaultdict(float), defaultdict(int), defaultdict(lambda: [0.0, 0, ""])
    for kernel, operation, _, duration in found:
        kind = kind_of(kernel)
        ms[kind] += duration / 1e6 / per
        count[kind] += 1
        entry = names[kernel]
        entry[0], entry[1], entry[2] = entry[0] + duration / 1e6 / per, entry[1] + 1, operation
    works = busy([(start, duration) for *_, start, duration in found]) / 1e6 / per
    span = (
        (
            max(start + duration for *_, start, duration in found)
            - min(start for *_, start, _ in found)
        )
        / 1e6
        / per
    )
    lines = [f"{'kind':24s}{'ms':>10s}{'share':>8s}{'kernels':>9s}"]
    lines += [
        f"{kind:24s}{ms[kind]:10.2f}{ms[kind] / works:8.1%}{count[kind] / per:9.0f}"
        for kind in sorted(ms, key=ms.get, reverse=True)
    ]
    lines += [f"{'busy':24s}{works:10.2f}", f"{'from first to last':24s}{span:10.2f}", ""]
    for name in sorted(names, key=lambda n: names[n][0], reverse=True)[:top]:
        total, times, operation = names[name]
        lines.append(f"{total:9.3f} ms {times / per:7.0f} × {name[:110]}  [{operation[:60]}]")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--per", type=int, default=1)
    args = parser.parse_args()
    print(table(args.trace, args.per, args.top))


if __name__ == "__main__":
    main()
