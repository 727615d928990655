"""Errors and correlations of expression weights."""

from __future__ import annotations

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    Goal,
    Metric,
    Row,
    Run,
    all_and_changed,
    controlled,
    differs,
    tables,
)
from caphuman_jax.head.base import HeadModel


def smile_and_jaw(model: HeadModel) -> tuple[list[int], int]:
    """Numbers of the two smile weights and of jawOpen among a model's expressions."""
    names = list(model.expression_names)
    return [names.index("mouthSmileLeft"), names.index("mouthSmileRight")], names.index("jawOpen")


def compute(run: Run) -> dict:
    """expression.smile (mean of its two sides), .jawOpen, and .together: all weights."""
    asked, measured, own = tables(run, "expression")
    smile, jaw = smile_and_jaw(run.model)
    together = {"mean": estimators.mean_error, "correlation": estimators.correlation}
    of_tables = lambda pick: [pick(table) for table in (asked, measured, own)]
    person, seed = run.person, run.seed
    return {
        "expression": {
            "smile": controlled(
                "expression", *of_tables(lambda t: t[:, smile].mean(axis=1)), person, seed
            ),
            "jawOpen": controlled("expression", *of_tables(lambda t: t[:, jaw]), person, seed),
            "together": all_and_changed(
                together, asked, measured, own, differs("expression", asked, own), person, seed
            ),
        }
    }


def _rows():
    for name in ("smile", "jawOpen"):
        place = f"expression.{name}."
        yield Row(f"{name} where changed, correlation", place + "changed.correlation")
        yield Row(f"{name} where changed, mean error", place + "changed.mean")
        yield Row(f"{name} of all heads, correlation", place + "all.correlation")
    together = "expression.together.changed."
    yield Row("all 52 expressions where changed, correlation", together + "correlation")
    yield Row("all 52 expressions where changed, mean error", together + "mean")


METRIC = Metric(
    compute,
    rows=tuple(_rows()),
    # Where the request changes the weight: elsewhere a copy of the photo would do.
    goals=tuple(
        Goal(f"{name} correlation", f"expression.{name}.changed.correlation.value", ">=", 0.6)
        for name in ("smile", "jawOpen")
    ),
    previews={
        "smile_error": "expression.smile.all.median.value",
        "jaw_error": "expression.jawOpen.all.median.value",
    },
)
