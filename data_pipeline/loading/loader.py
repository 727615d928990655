"""Records to batches: `make_loader`. What is in a batch is decided here; `loading_tf` and
`loading_grain` fetch and decode it, with the same bits.

A loader's only state is how many samples it has handed out (`Loader.samples`): save that number,
and give it as `start` to go on there, on any number of hosts."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator

import numpy as np

from caphuman_jax.errors import DataError, SettingError
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.loading.augment_sampling import MIDDLE, MIRROR, Drops, Lots, draw, lender
from data_pipeline.loading.shuffle import Share, records_of
from data_pipeline.records.reader import RecordsFolder

_NO_DROPS = Drops(0.0, 0.0, 0.0)
_ENDLESS = 1 << 40  # steps of a stream that does not end
HEAD = ("identity", "expression", "rotation", "scale", "translation", "light", "albedo")
PARTS = ("moments", "caption_ids", "text")
"""Features of which a sample takes one part along the first axis: the picture or its mirror image,
one of the captions.
"""
_SHIPPED = ("recognition/mobilefacenet", "recognition/dlib")


@dataclasses.dataclass(frozen=True)
class Content:
    """Which features batches hold. latents: "moments" or "photo"; hints: "head" or "hints";
    identity: "image_tokens", "identity_input" or None;
    text: whether the encoded captions; recognition: the recognition vector's feature.
    """

    latents: str
    hints: str
    identity: str | None
    text: bool
    recognition: str

    @property
    def own(self) -> tuple[str, ...]:
        """Features that are taken of the sample's own record."""
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
        )

    @property
    def lent(self) -> tuple[str, ...]:
        """Features that are taken of the record that lends the identity."""
        head = ["head/identity", "head/albedo"] if self.hints == "head" else []
        return (*head, self.recognition, *([self.identity] if self.identity else []))


def make_loader(
    folder: str | os.PathLike | RecordsFolder,
    split: str = "train",
    *,
    batch: int,
    seed: int = 0,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    loader: str = "auto",
    one_pass: bool = False,
    augment: AugmentConfig | None = None,
    light: float | None = None,
    lent_identity: float | None = None,
    drop: Drops | None = None,
    latents: str | None = None,
    hints: str = "head",
    identity: str | None = "auto",
    text: bool | None = None,
    recognizer: str | None = None,
    workers: int | None = None,
    processes: int = 0,
    prefetch: int = 3,
) -> Loader:
    """An iterator of this host's part of each batch, dicts of numpy arrays (b = batch /
    process_count rows):

        index int32, weight float32 (0 in rows that fill up the last batch of one pass), epoch int32
            moments float16 (b, h, w, 2c), of the mirror image where `mirror`;  or picture uint8 (b,
            S, S, 3): the stored square change {scale, angle, shift, mirror} and light: what is
            still to be done to pictures and hints, see training.augment and batches.assemble region
            uint8 (b, 256, 256, 1), covered float32 (b, 4): of the stored square, unchanged head
            {identity, expression, rotation, scale, translation, size, light float32, albedo uint8}:
            the photo's own, with identity and albedo of the record that lends its identity;  or
            hints uint8 (b, 3S, S, 3), always the photo's own
        recognition float32 (b, D);  image_tokens float16 (b, N, W) or identity_input uint8 (b, s,
        s, 3): of the lender caption_ids int32 (b, 77), text float16 (b, 77, W): of one of its
        captions, also where without_text without_text, without_identity bool

    batch: of all hosts together. start: samples that were consumed before. one_pass: the split
    once, in its order, then it ends, instead of an endless shuffled stream; nothing is changed,
    lent or dropped there unless asked for.
    augment, light, lent_identity: see `draws.Lots`; drop: see `draws.Drops`, None drops nothing.
    latents: "moments", "pictures", or None for moments where they are stored. Stored moments allow
    mirroring alone.
    hints: "head", to be rendered, or "pictures", as they are stored. identity: "image_tokens",
    "input", None, or "auto": tokens where they are stored. text: None takes what is stored.
    recognizer: None takes the model's own where its vectors are stored.
    loader: "tf" (tf.data), "grain", or "auto": tf where TensorFlow is installed. Both give the same
    bits. workers: threads that read and decode;
    processes: of Grain that each have that many threads. prefetch: batches that are made ahead.

    Raises SettingError or DataError (see reading.RecordsFolder) in one line.
    """
    records = folder if isinstance(folder, RecordsFolder) else RecordsFolder(folder)
    count = records.count(split)
    content = _content(records, latents, hints, identity, text, recognizer)
    lots = _lots(records, content, one_pass, augment, light, lent_identity, drop)
    share = Share(batch, start, process_index, process_count)
    make_batches = backend(loader, processes)
    maker = BatchMaker(
        records, split, share, lots, content, seed, one_pass, workers or os.cpu_count() or 1
    )
    steps = share.steps(count) if one_pass else _ENDLESS
    return Loader(
        _ending(make_batches(maker, steps, prefetch, processes), maker),
        share,
        count if one_pass else None,
    )


class Loader:
    """Iterator of batches. samples: how many samples the batches handed out so far held on all
    hosts together, those before `start` included.
    """

    def __init__(self, batches: Iterator[dict], share: Share, end: int | None):
        self._batches, self._batch, self._end = batches, share.batch, end
        self.samples = share.start

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict:
        batch = next(self._batches)
        self.samples = (
            self.samples + self._batch
            if self._end is None
            else min(self.samples + self._batch, self._end)
        )
        return batch

    def close(self) -> None:
        """Ends reading ahead."""
        self._batches.close()


def _ending(batches: Iterator[dict], maker: BatchMaker) -> Iterator[dict]:
    """The batches; when they end, are closed or are forgotten, so do the threads that made them."""
    try:
        yield from batches
    finally:
        batches.close()
        maker.close()


@dataclasses.dataclass(frozen=True)
class Plan:
    """One host's part of a batch before anything is read: record numbers, weights, epochs and lots,
    each (b,) or of b rows.
    """

    index: np.ndarray
    weight: np.ndarray
    epoch: np.ndarray
    lots: dict


@dataclasses.dataclass
class BatchMaker:
    """Batches by their number, each a function of the arguments alone; safe to use from many
    threads, and can be pickled.
    """

    records: RecordsFolder
    split: str
    share: Share
    lots: Lots
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
        """Ends the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def plan(self, step: int) -> Plan:
        """What batch `step` consists of."""
        count, samples = self.records.count(self.split), self.share.samples(step)
        if self.one_pass:
            weight = (samples < count).astype(np.float32)
            index = np.minimum(samples, count - 1)
            epoch = np.zeros_like(index)
        else:
            weight = np.ones(len(samples), np.float32)
            epoch, index = records_of(samples, count, self.seed)
        captions = self.records.feature("caption_ids").shape[0]
        return Plan(
            index,
            weight,
            epoch.astype(np.int32),
            draw(self.lots, self.seed, epoch, index, captions),
        )

    def messages(self, plan: Plan, row: int) -> tuple[bytes, bytes | None, int]:
        """A row's own record, the record that lends its identity (None: itself) and that one's
        number.
        """
        index, lots = int(plan.index[row]), plan.lots
        own = self.records.read(self.split, [index])[0]
        if not lots["lent"][row]:
            return own, None, index
        with self.records.naming(self.split, index):
            partners = self.records.decode(own, {"partners"})["partners"]
        other = lender(index, True, lots["partner"][row], partners)
        return own, None if other == index else self.records.read(self.split, [other])[0], other

    def each(self, function: Callable[[int], object], rows: int) -> list:
        """function(row) of every row, in this process's threads."""
        return list(self._pool.map(function, range(rows)))

    def make(self, step: int) -> dict:
        """Batch `step` of this host."""
        plan = self.plan(step)
        rows = len(plan.index)
        room = {}
        for name in (*self.content.own, *self.content.lent):
            feature = self.records.feature(name)
            room[name] = np.empty(
                (rows, *(feature.shape[1:] if name in PARTS else feature.shape)), feature.dtype
            )
        self.each(functools.partial(self._fill, plan, room), rows)
        return self.batch(plan, room)

    def batch(self, plan: Plan, values: dict) -> dict:
        """A batch from its plan and the values of features, by name."""
        lots, rows = plan.lots, len(plan.index)
        batch = {
            "index": plan.index.astype(np.int32),
            "weight": plan.weight,
            "epoch": plan.epoch,
            **{
                name: lots[name] for name in ("change", "light", "without_text", "without_identity")
            },
        }
        if self.content.hints == "head":
            batch["head"] = {
                "size": np.full((rows, 2), self.records.feature("photo").shape[0], np.float32)
            }
        for name, value in values.items():
            room, _, part = name.partition("/")
            if room == "head":
                batch["head"][part] = value
            else:
                batch["picture" if room == "photo" else room] = (
                    value  # there is one recognition vector, whoever's it is
                )
        return batch

    def part(self, plan: Plan, name: str) -> np.ndarray:
        """Which part of its feature each row takes (b,): see PARTS."""
        return (
            plan.lots["change"]["mirror"].astype(np.int64)
            if name == "moments"
            else plan.lots["caption"]
        )

    def _fill(self, plan: Plan, room: dict, row: int) -> None:
        """Reads and decodes one row."""
        own, lent, number = self.messages(plan, row)
        content, records = self.content, self.records
        with records.naming(self.split, int(plan.index[row])):
            record = records.decode(
                own, content.own if lent is not None else (*content.own, *content.lent)
            )
            for name in content.own:
                value = record[name][self.part(plan, name)[row]] if name in PARTS else record[name]
                room[name][row] = records.pixels(name, value) if isinstance(value, bytes) else value
        with records.naming(self.split, number):
            if lent is not None:
                record = records.decode(lent, content.lent)
            for name in content.lent:
                value = record[name]
                room[name][row] = records.pixels(name, value) if isinstance(value, bytes) else value


def backend(name: str, processes: int = 0) -> Callable:
    """`batches(maker, steps, prefetch, processes)` of a loader's name. Raises SettingError for what
    there is not, DataError for what is not installed.
    """
    if name not in ("tf", "grain", "auto"):
        raise SettingError(f"loader is tf, grain or auto, not {name!r}")
    installed = {
        "tf": importlib.util.find_spec("tensorflow") is not None,
        "grain": importlib.util.find_spec("grain") is not None,
    }
    name = ("tf" if installed["tf"] and not processes else "grain") if name == "auto" else name
    if not installed[name]:
        raise DataError(
            f"the loader {name!r} needs {'TensorFlow' if name == 'tf' else 'Grain'}, which is not "
            f"here: pip install '.[data]'"
        )
    if name == "tf":
        if processes:
            raise SettingError('tf.data works in threads; processes are Grain\'s: loader="grain"')
        from data_pipeline.loading.backend_tf import batches
    else:
        from data_pipeline.loading.backend_grain import batches
    return batches


def _content(
    records: RecordsFolder,
    latents: str | None,
    hints: str,
    identity: str | None,
    text: bool | None,
    recognizer: str | None,
) -> Content:
    """What is asked for, as far as it is stored. Raises SettingError or DataError."""
    have = {f.name for f in records.features}

    def chosen(what: str, value, options: dict, default: str | None):
        if value not in options:
            raise SettingError(f"{what} is {' or '.join(str(o) for o in options)}, not {value!r}")
        name = options[value] or default
        if name and name not in have:
            raise DataError(
                f"{records.path} holds no {name}; prepare the photos with it, or choose other "
                f"{what}"
            )
        return name

    latents = chosen(
        "latents",
        latents,
        {None: None, "moments": "moments", "pictures": "photo"},
        "moments" if "moments" in have else "photo",
    )
    if hints == "head":  # an entry for each of its numbers
        hints_feature = "head"
    else:
        hints_feature = chosen("hints", hints, {"head": None, "pictures": "hints"}, None)
    tokens = "image_tokens" if "image_tokens" in have else "identity_input"
    identity = (
        None
        if identity is None
        else chosen(
            "identity",
            identity,
            {"auto": tokens, "image_tokens": "image_tokens", "input": "identity_input"},
            None,
        )
    )
    if text and "text" not in have:
        raise DataError(
            f"{records.path} holds no text; prepare the photos with it, or give text=False"
        )
    names = sorted(name for name in have if name.startswith("recognition/"))
    own = next((name for name in names if name not in _SHIPPED), _SHIPPED[0])
    recognition = chosen(
        "recognizer",
        recognizer,
        {None: own} | {name.partition("/")[2]: name for name in names},
        None,
    )
    return Content(
        latents, hints_feature, identity, "text" in have if text is None else text, recognition
    )


def _lots(
    records: RecordsFolder,
    content: Content,
    one_pass: bool,
    augment: AugmentConfig | None,
    light: float | None,
    lent_identity: float | None,
    drop: Drops | None,
) -> Lots:
    """What is asked for, or what suits the records. Raises SettingError for changes that stored
    moments cannot follow.
    """
    moments = content.latents == "moments"
    default = (
        Lots(MIDDLE, 1.0, 0.0, _NO_DROPS) if one_pass else Lots(MIRROR, 1.0) if moments else Lots()
    )
    lots = Lots(
        default.augment if augment is None else augment,
        default.light if light is None else light,
        default.lent_identity if lent_identity is None else lent_identity,
        _NO_DROPS if drop is None else drop,
    )
    if moments and not lots.only_mirrors:
        raise SettingError(
            f"{records.path} holds the moments of unchanged pictures and of their mirror images: "
            f"they cannot be scaled, shifted, turned or "
            "made brighter; leave augment and light out (or give draws.MIRROR), or load "
            'latents="pictures"'
        )
    return lots
