"""Draws the curves of training runs: docs/images/mini_curves.png from the metrics that `caphuman
train` writes to its work folder.

    python docs/make_curves.py "1 GPU=runs/one/metrics.jsonl" "2 GPUs=runs/two/metrics.jsonl" [--out FILE.png]

Left the loss by the step, lines for photos that are trained on, dots for held-out people; right the
error by timestep of the longest run, in the same way. Needs matplotlib (extra `data`).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion.loss import BANDS

HELD_OUT = "held_out/loss"
TIMESTEPS = DiffusionConfig().num_timesteps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FILE")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "images" / "mini_curves.png"
    )
    args = parser.parse_args()
    runs = {name: read(Path(path)) for name, _, path in (run.partition("=") for run in args.runs)}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    losses, bands = figure.subplots(1, 2)
    draw_losses(losses, runs)
    name, lines = max(runs.items(), key=lambda run: run[1][-1]["step"])
    draw_bands(bands, lines)
    bands.set_title(f"{name}: error by timestep")
    figure.savefig(args.out, dpi=110)


def read(path: Path) -> list[dict]:
    """The lines of a run, without those of only a few steps, which a stop and a start leave."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    every = int(np.bincount(np.diff(steps)).argmax())
    return [line for line in lines if line["step"] == steps[0] or line["step"] % every == 0]


def curve(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have the number NAME."""
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), float)]
    return np.asarray([step for step, _ in found]), np.asarray([value for _, value in found])


def draw_losses(axes, runs: dict[str, list[dict]]) -> None:
    # The longest run lies below, so that shorter ones are seen on it.
    for i, (name, lines) in enumerate(sorted(runs.items(), key=lambda run: -run[1][-1]["step"])):
        steps, values = curve(lines, "loss")
        axes.plot(steps, values, color=f"C{i}", linewidth=2.5 if i == 0 else 1.2, label=name)
        axes.plot(
            *curve(lines, HELD_OUT),
            "os^"[i % 3],
            color=f"C{i}",
            fillstyle="none",
            markersize=8 - 3 * min(i, 1),
            label=f"{name}, held-out people",
        )
    axes.set(yscale="log", xlabel="step", title="loss")
    axes.grid(which="both", alpha=0.3)
    axes.legend()


def draw_bands(axes, lines: list[dict]) -> None:
    for name, style in (("loss_by_time", "-"), ("held_out/loss_by_time", "o")):
        with_bands = [line for line in lines if name in line and None not in line[name]]
        steps = [line["step"] for line in with_bands]
        for band, values in enumerate(np.asarray([line[name] for line in with_bands]).T):
            low, high = (TIMESTEPS * edge // BANDS for edge in (band, band + 1))
            axes.plot(
                steps,
                values,
                style,
                color=f"C{band}",
                fillstyle="none",
                label=f"{low}–{high}" if style == "-" else None,
            )
    axes.set(yscale="log", xlabel="step")
    axes.grid(which="both", alpha=0.3)
    axes.legend(ncols=2, fontsize=8)


if __name__ == "__main__":
    main()
