"""Batches by Grain (github.com/google/grain), for machines without TensorFlow: in threads, or in
processes that have threads of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import grain
import jax
import numpy as np
from absl import flags

from caphuman_jax.errors import DataError
from data_pipeline.loading.batch_maker import BatchMaker


def batches(maker: BatchMaker, steps: int, prefetch: int, processes: int) -> Iterator[dict]:
    """Batches 0 … steps - 1 of `maker`, `prefetch` of them made in advance."""
    # The maker's own threads read and decode a batch's rows; two batches at a time keep them busy.
    options = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.range(steps).map(maker.make).to_iter_dataset(options)
    if processes:
        # Grain reads absl's flags, and absl does not parse this program's command line.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes))
    iterator = iter(dataset)
    try:
        # Arrays of processes lie in shared memory, which would outlive a program that ends while it
        # holds a batch. So they are copied.
        yield from map(_copied, iterator) if processes else iterator
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise DataError(
            "a process of the loader ended by itself; a script that uses processes= has to call "
            'make_loader under `if __name__ == "__main__":`'
        ) from error
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def _copied(batch: dict) -> dict:
    return jax.tree.map(np.array, batch)
