"""Batches by Grain (github.com/google/grain), for machines without TensorFlow: in threads, or in
processes that have threads each.
"""

from __future__ import annotations

from collections.abc import Iterator

import grain
from absl import flags

from data_pipeline.loading.loader import BatchMaker


def batches(maker: BatchMaker, steps: int, prefetch: int, processes: int) -> Iterator[dict]:
    """Batches 0 … steps - 1 of `maker`, `prefetch` of them made ahead."""
    # A batch's rows are read and decoded by the maker's own threads; two batches at a time leave
    # none of them idle.
    options = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.range(steps).map(maker.make).to_iter_dataset(options)
    if processes:
        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain asks for flags of its own, and this program's command line is none of absl's
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
