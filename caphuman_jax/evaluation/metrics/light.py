"""Whether the light comes from where it was requested."""

from __future__ import annotations

from caphuman_jax.evaluation.metrics.base import Metric, Row, Run, columns, controlled

_AXES = {"right": "the right", "above": "above"}


def compute(run: Run) -> dict:
    """light.right and light.above, see `outcome.light_from`."""
    return {
        "light": {
            axis: controlled("light", *columns(run, "light", i), run.person, run.seed)
            for i, axis in enumerate(_AXES)
        }
    }


METRIC = Metric(
    compute,
    rows=tuple(
        Row(f"light from {side} where changed, correlation", f"light.{axis}.changed.correlation")
        for axis, side in _AXES.items()
    ),
)
