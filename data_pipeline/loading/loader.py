"""Records to batches: `make_loader`.

A loader's only state is how many samples it has handed out (`Loader.samples`). Save that number and
pass it as `start` to resume there, on any number of hosts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import weakref
from collections.abc import Callable, Generator
from typing import Any

from caphuman_jax.errors import DataError, SettingError
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.loading.augment_sampling import MIDDLE, MIRROR, AugmentPolicy, Drops
from data_pipeline.loading.batch_maker import BatchMaker, Content
from data_pipeline.loading.shuffle import Share
from data_pipeline.records.reader import RecordsFolder

_NO_DROPS = Drops(0.0, 0.0, 0.0)
_ENDLESS = 1 << 40  # steps of a stream that does not end
_SHIPPED = ("recognition/mobilefacenet", "recognition/dlib")


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
    identity_swap_prob: float | None = None,
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
    """An iterator of this host's part of each batch.

    A batch is a dict of NumPy arrays with b = batch / process_count rows:

    * index: int32; weight: float32, 0 in rows that pad the last batch of one pass; epoch: int32.
    * moments: float16 (b, h, w, 2c), of the mirror image where `mirror`; or picture: uint8
      (b, S, S, 3), the stored square.
    * change {scale, angle, shift, mirror} and light: what is still to be done to images and hints,
      see `augment_sampling.sample_augmentations`.
    * region: uint8 (b, 256, 256, 1) and covered: float32 (b, 4), of the stored square, unchanged.
    * head {identity, expression, rotation, scale, translation, size, light: float32, albedo:
      uint8}: the photo's own, with identity and albedo of the record that the identity comes from;
      or hints: uint8 (b, 3S, S, 3), always the photo's own.
    * recognition: float32 (b, D), and image_tokens: float16 (b, N, W) or identity_input: uint8
      (b, s, s, 3), of the record that the identity comes from.
    * caption_ids: int32 (b, 77) and text: float16 (b, 77, W), of one of the photo's captions, also
      where without_text.
    * without_text, without_identity: bool.
    * what `records.schema.TRAINED` lists, of the photo's own record.

    Args:
        folder: of the records.
        split: "train" or "test".
        batch: rows of all hosts together.
        seed: of the order and of the random changes.
        start: samples that were consumed before.
        process_index: number of this host.
        process_count: number of hosts.
        loader: "tf" (tf.data), "grain", or "auto": tf where TensorFlow is installed. Both give the
            same bits.
        one_pass: the split once, in its order, instead of an endless shuffled stream. Nothing is
            changed, swapped or dropped there unless asked for.
        augment: see `AugmentPolicy`. Stored moments allow mirroring only.
        light: see `AugmentPolicy`.
        identity_swap_prob: see `AugmentPolicy`.
        drop: see `Drops`; None drops nothing.
        latents: "moments", "pictures", or None: moments where they are stored.
        hints: "head", to be rendered, or "pictures", as they are stored.
        identity: "image_tokens", "input", None, or "auto": tokens where they are stored.
        text: whether to include encoded captions; None: where they are stored.
        recognizer: whose vectors; None: the model's own where they are stored.
        workers: threads that read and decode.
        processes: of Grain, with that many threads each.
        prefetch: batches that are made in advance.

    Raises:
        SettingError: an option is out of its range, or does not go with the records.
        DataError: the records cannot be read, or lack what is asked for.
    """
    records = folder if isinstance(folder, RecordsFolder) else RecordsFolder(folder)
    count = records.count(split)
    content = _content(records, latents, hints, identity, text, recognizer)
    records.require({*content.own_features, *content.identity_features, "photo", "partners"})
    policy = _policy(records, content, one_pass, augment, light, identity_swap_prob, drop)
    share = Share(batch, start, process_index, process_count)
    make_batches = backend(loader, processes)
    maker = BatchMaker(
        records, split, share, policy, content, seed, one_pass, workers or os.cpu_count() or 1
    )
    steps = share.steps(count) if one_pass else _ENDLESS
    return Loader(
        _closing(make_batches(maker, steps, prefetch, processes), maker),
        share,
        count if one_pass else None,
    )


Batches = Generator[dict, None, None]


class Loader:
    """Iterator of batches; stops its threads when it is closed, forgotten, or the program ends.

    Attributes:
        samples: how many samples the batches so far held on all hosts together, those before
            `start` included.
    """

    def __init__(self, batches: Batches, share: Share, end: int | None):
        self._batches, self._batch, self._end = batches, share.batch, end
        self.samples = share.start
        # Called at exit too, while threads can still run: tf.data's threads call Python, and would
        # wait forever for an interpreter that is being torn down.
        self._close = weakref.finalize(self, _close, batches)

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
        """Stop reading in advance."""
        self._close()


def _close(batches: Batches) -> None:
    with contextlib.suppress(ValueError):  # another thread is fetching a batch at this moment
        batches.close()


def _closing(batches: Batches, maker: BatchMaker) -> Batches:
    """The batches; stops the threads that make them when they end or are closed."""
    try:
        yield from batches
    finally:
        batches.close()
        maker.close()


def backend(name: str, processes: int = 0) -> Callable:
    """The function `batches(maker, steps, prefetch, processes)` of a loader's name.

    Raises:
        SettingError: there is no such loader, or it does not use processes.
        DataError: the loader's library is not installed.
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
            f"installed: pip install '.[data]'"
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
    """The features that the options name. Raises SettingError or DataError."""
    have = {f.name for f in records.features}

    def chosen(what: str, value, options: dict, default: str | None) -> Any:
        if value not in options:
            raise SettingError(f"{what} is {' or '.join(str(o) for o in options)}, not {value!r}")
        name = options[value] or default
        if name and name not in have:
            raise DataError(
                f"{records.path} holds no {name}; prepare the photos with it, or choose other "
                f"{what}"
            )
        return name

    photo_feature = chosen(
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
        photo_feature,
        hints_feature,
        identity,
        "text" in have if text is None else text,
        recognition,
    )


def _policy(
    records: RecordsFolder,
    content: Content,
    one_pass: bool,
    augment: AugmentConfig | None,
    light: float | None,
    identity_swap_prob: float | None,
    drop: Drops | None,
) -> AugmentPolicy:
    """The options, with defaults that suit the records. Raises SettingError for changes that stored
    moments cannot follow.
    """
    moments = content.latents == "moments"
    default = (
        AugmentPolicy(MIDDLE, 1.0, 0.0, _NO_DROPS)
        if one_pass
        else AugmentPolicy(MIRROR, 1.0)
        if moments
        else AugmentPolicy()
    )
    policy = AugmentPolicy(
        default.augment if augment is None else augment,
        default.light if light is None else light,
        default.identity_swap_prob if identity_swap_prob is None else identity_swap_prob,
        _NO_DROPS if drop is None else drop,
    )
    if moments and not policy.only_mirrors:
        raise SettingError(
            f"{records.path} holds the moments of unchanged pictures and of their mirror images: "
            f"they cannot be scaled, shifted, turned or "
            "made brighter; leave augment and light out (or give augment_sampling.MIRROR), or load "
            'latents="pictures"'
        )
    return policy
