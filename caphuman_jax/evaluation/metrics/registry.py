"""Every metric of `caphuman evaluate`: the `METRIC` of each module of this package, in the order of
the report.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from caphuman_jax.evaluation import metrics
from caphuman_jax.evaluation.metrics.base import Measure, Metric


def discover(paths: Sequence[str], package: str) -> tuple[Metric, ...]:
    """The metrics of the modules in some directories.

    Args:
        paths: the directories.
        package: that their modules belong to.
    """
    found = []
    for module in sorted(pkgutil.iter_modules(paths), key=lambda module: module.name):
        if module.name not in ("base", "registry"):
            metric = getattr(importlib.import_module(f"{package}.{module.name}"), "METRIC", None)
            found += [] if metric is None else [metric]
    return tuple(sorted(found, key=lambda metric: metric.order))


METRICS = discover(list(metrics.__path__), metrics.__name__)
MEASURES: tuple[Measure, ...] = tuple(m for metric in METRICS for m in metric.measures)
