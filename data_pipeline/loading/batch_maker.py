"""What is in a batch. `BatchMaker` makes it; the backends only decide when and where."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from data_pipeline.loading.augment_sampling import (
    AugmentPolicy,
    identity_source,
    sample_augmentations,
)
from data_pipeline.loading.shuffle import Share, records_of
from data_pipeline.records import schema
from data_pipeline.records.reader import RecordsFolder

HEAD = ("identity", "expression", "rotation", "scale", "translation", "light", "albedo")
PARTS = ("moments", "caption_ids", "text")
"""Features of which a sample takes one part along the first axis: the image or its mirror image,
one of the captions.
"""


@dataclasses.dataclass(frozen=True)
class Content:
    """Which features the batches hold.

    Attributes:
        latents: "moments" or "photo".
        hints: "head" or "hints".
        identity: "image_tokens", "identity_input" or None.
        text: whether encoded captions are included.
        recognition: name of the recognition vector's feature.
    """

    latents: str
    hints: str
    identity: str | None
    text: bool
    recognition: str

    @property
    def own_features(self) -> tuple[str, ...]:
        """Features that are read from the sample's own record."""
        head = (
            [f"head/{name}" for name in HEAD if name not in ("identity", "albedo")]
            if self.hints == "head"
            else ["hints"]
        )
        return (
            self.latents,
            "region",
            "covered",
            "caption_ids",
            *head,
            *(["text"] if self.text else []),
            *(feature.name for feature in schema.TRAINED),
        )

    @property
    def identity_features(self) -> tuple[str, ...]:
        """Features that are read from the record that the identity comes from."""
        head = ["head/identity", "head/albedo"] if self.hints == "head" else []
        return (*head, self.recognition, *([self.identity] if self.identity else []))


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """One host's part of a batch before anything is read.

    Attributes:
        index: (b,) record numbers.
        weight: (b,) float32.
        epoch: (b,) int32.
        augmentations: of b rows, see `sample_augmentations`.
    """

    index: np.ndarray
    weight: np.ndarray
    epoch: np.ndarray
    augmentations: dict


@dataclasses.dataclass
class BatchMaker:
    """Makes batches by number; each is a function of the arguments alone.

    Safe to use from many threads. Can be pickled.
    """

    records: RecordsFolder
    split: str
    share: Share
    policy: AugmentPolicy
    content: Content
    seed: int
    one_pass: bool
    workers: int

    def __post_init__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(
            self.workers, thread_name_prefix="records"
        )

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.__post_init__()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def plan(self, step: int) -> BatchPlan:
        """What batch `step` consists of."""
        count, samples = self.records.count(self.split), self.share.samples(step)
        if self.one_pass:
            weight = (samples < count).astype(np.float32)
            index = np.minimum(samples, count - 1)
            epoch = np.zeros_like(index)
        else:
            weight = np.ones(len(samples), np.float32)
            epoch, index = records_of(samples, count, self.seed)
        captions = self.records.known_feature("caption_ids").shape[0]
        return BatchPlan(
            index,
            weight,
            epoch.astype(np.int32),
            sample_augmentations(self.policy, self.seed, epoch, index, captions),
        )

    def messages(self, plan: BatchPlan, row: int) -> tuple[bytes, bytes | None, int]:
        """The records of one row.

        Returns:
            The row's own record, the record that its identity comes from (None: its own), and the
            latter's number.
        """
        index, augmentations = int(plan.index[row]), plan.augmentations
        own = self.records.read(self.split, [index])[0]
        if not augmentations["swap_identity"][row]:
            return own, None, index
        with self.records.naming(self.split, index):
            partners = self.records.decode(own, {"partners"})["partners"]
        other = identity_source(index, True, augmentations["partner"][row], partners)
        return own, None if other == index else self.records.read(self.split, [other])[0], other

    def each(self, function: Callable[[int], object], rows: int) -> list:
        """[function(row) for each row], computed in this process's threads."""
        try:
            return list(self._pool.map(function, range(rows)))
        except RuntimeError as error:
            if "cannot schedule new futures" not in str(error):
                raise
        # The interpreter is shutting down and takes no new work. tf.data's threads wait for this
        # batch before they end, so it is finished here.
        return [function(row) for row in range(rows)]

    def make(self, step: int) -> dict:
        """Batch `step` of this host."""
        plan = self.plan(step)
        rows = len(plan.index)
        arrays = {}
        for name in (*self.content.own_features, *self.content.identity_features):
            feature = self.records.known_feature(name)
            arrays[name] = np.empty(
                (rows, *(feature.shape[1:] if name in PARTS else feature.shape)), feature.dtype
            )
        self.each(functools.partial(self._fill, plan, arrays), rows)
        return self.batch(plan, arrays)

    def batch(self, plan: BatchPlan, values: dict) -> dict:
        """A batch from its plan and {feature's name: values of b rows}."""
        augmentations, rows = plan.augmentations, len(plan.index)
        batch = {
            "index": plan.index.astype(np.int32),
            "weight": plan.weight,
            "epoch": plan.epoch,
            **{
                name: augmentations[name]
                for name in ("change", "light", "without_text", "without_identity")
            },
        }
        if self.content.hints == "head":
            batch["head"] = {
                "size": np.full((rows, 2), self.records.known_feature("photo").shape[0], np.float32)
            }
        for name, value in values.items():
            group, _, part = name.partition("/")
            if group == "head":
                batch["head"][part] = value
            else:  # "recognition/NAME" becomes "recognition": a batch holds one vector a row
                batch["picture" if group == "photo" else group] = value
        return batch

    def part(self, plan: BatchPlan, name: str) -> np.ndarray:
        """Which part of its feature each row takes (b,): see PARTS."""
        return (
            plan.augmentations["change"]["mirror"].astype(np.int64)
            if name == "moments"
            else plan.augmentations["caption"]
        )

    def _fill(self, plan: BatchPlan, arrays: dict, row: int) -> None:
        """Read and decode one row into `arrays`."""
        own, other, number = self.messages(plan, row)
        content, records = self.content, self.records
        names = content.own_features
        with records.naming(self.split, int(plan.index[row])):
            record = records.decode(
                own, names if other is not None else (*names, *content.identity_features)
            )
            for name in names:
                value = record[name][self.part(plan, name)[row]] if name in PARTS else record[name]
                arrays[name][row] = (
                    records.pixels(name, value) if isinstance(value, bytes) else value
                )
        with records.naming(self.split, number):
            if other is not None:
                record = records.decode(other, content.identity_features)
            for name in content.identity_features:
                value = record[name]
                arrays[name][row] = (
                    records.pixels(name, value) if isinstance(value, bytes) else value
                )
