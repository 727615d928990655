"""`caphuman inspect`: what records hold, whether every record is sound, and pictures of them."""

from __future__ import annotations

import argparse
import collections
import functools
import importlib.util
import os
import time
from pathlib import Path

from caphuman_jax.cli.argument_types import positive_int
from caphuman_jax.errors import CapHumanError, DataError
from caphuman_jax.io import json_reader

_PRINTED = 20  # problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman inspect`."""
    parser.add_argument(
        "records", type=Path, metavar="DIR", help="directory that caphuman prepare wrote"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="directory for histograms.png and contact_sheet.png; default: DIR/inspect",
    )
    parser.add_argument(
        "--samples",
        type=positive_int,
        default=24,
        metavar="N",
        help="records on the contact sheet, evenly spaced over each split; default: %(default)s",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="check numbers only: do not decode images, render hints or hash files",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FOLDER",
        help="decode stored moments and render heads with this model; default: no moments, and the "
        "head model that made the records",
    )
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="processes; default: one for each core"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report and draw the pictures; 1 if anything is wrong with the records. Raises
    DataError if there are none.
    """
    from tqdm import tqdm

    from data_pipeline.inspect import check, render
    from data_pipeline.records import reader

    if not importlib.util.find_spec("matplotlib"):
        raise DataError(
            "histograms are drawn with the package matplotlib, which is not installed: pip install "
            "'.[data]'"
        )
    folder = reader.version_folder(args.records)
    manifest = _read_manifest(folder)
    if manifest["file_format"] == "array_record":
        reader.array_record_reader()  # says what to install
    out = args.out or args.records / "inspect"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapHumanError(
            f"{out} cannot be created ({error.strerror}); choose another directory with --out"
        ) from error
    print("\n".join(_describe(folder, manifest)))
    print("\n".join(_dropped(folder, manifest)))
    renderer = render.DatasetRenderer(folder, manifest, args.model)
    started = time.perf_counter()
    bar = functools.partial(tqdm, desc="checking", unit="run", leave=False)
    found = check.check(
        folder,
        manifest,
        fast=args.fast,
        workers=args.workers,
        hints=renderer.compare_hints,
        progress=lambda runs, total: bar(runs, total=total),
    )
    seconds = time.perf_counter() - started
    print("\n".join(_people(manifest, found)))
    found.tally.draw(out / "histograms.png", f"{args.records}: {found.tally.records:,} records")
    written = [out / "histograms.png"]
    if found.tally.records:
        written += renderer.contact_sheet(out / "contact_sheet.png", args.samples)
    print("\n".join([*renderer.notices, *(f"{path}" for path in written)]))
    total = sum(found.records.values())
    what = "numbers" if args.fast else "numbers, pictures and files"
    print(
        f"checked {total:,} records ({what}) in {seconds:.1f} s, {total / max(seconds, 1e-9):,.0f} "
        f"per second: "
        + (f"{len(found.problems):,} problems" if found.problems else "nothing wrong")
        + ("; the rest was not checked" if len(found.problems) > check.ENOUGH else "")
    )
    print("".join(f"  {problem}\n" for problem in found.problems[:_PRINTED]), end="")
    if len(found.problems) > _PRINTED:
        print(f"  … and {len(found.problems) - _PRINTED:,} more")
    return 1 if found.problems else 0


def _read_manifest(folder):
    """The manifest; entries that are read from it here are checked to exist."""
    from data_pipeline.records.manifest import MANIFEST
    from data_pipeline.records.schema import Feature

    path = folder / MANIFEST
    try:
        manifest = json_reader.read(path)
        [Feature.from_dict(fields) for fields in manifest["features"]]
        for split in manifest["splits"].values():
            (
                int(split["records"]),
                [
                    (shard["file"], int(shard["records"]), shard["sha256"])
                    for shard in split["shards"]
                ],
            )
        int(manifest["settings"]["size"])
        if manifest["file_format"] not in ("array_record", "tfrecord"):
            raise ValueError(f"file_format {manifest['file_format']!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}); make the records again with caphuman prepare"
        ) from error
    return manifest


def _describe(folder, manifest):
    """What the dataset is, and the size of its splits."""
    settings, source = manifest["settings"], manifest.get("source", {})
    stored = next((tuple(f["shape"])[0] for f in manifest["features"] if f["name"] == "photo"), 0)
    yield (
        f"{folder}: records {manifest.get('version')} of {manifest.get('kept', 0):,} of "
        f"{manifest.get('photos', 0):,} photos of {source.get('text')}, "
        f"for {settings['size']}² pictures (stored at {stored}²), fingerprint "
        f"{str(manifest.get('fingerprint'))[:12]}"
    )
    extra = [
        name
        for name in ("hints", "moments", "text", "image_tokens")
        if any(f["name"] == name for f in manifest["features"])
    ]
    model, extra = settings.get("model") or "none", ", ".join(extra) or "nothing"
    yield f"model {model}; stored in addition to photo and head: {extra}"
    for name, split in manifest["splits"].items():
        size = sum(
            os.path.getsize(folder / shard["file"])
            for shard in split["shards"]
            if (folder / shard["file"]).is_file()
        )
        each = f", {size / split['records'] / 1e3:.1f} kB a record" if split["records"] else ""
        yield (
            f"  {name:6} {split['records']:>10,} records in {len(split['shards']):,} files, "
            f"{size / 1e6:,.1f} MB{each}"
        )


def _dropped(folder, manifest):
    """How many photos were dropped for which reason, each with an example."""
    from data_pipeline.records.manifest import DROPPED

    counts, examples = collections.Counter(), {}
    path = folder / DROPPED
    if not path.is_file():
        return [f"  {path} is missing, so the dropped photos are unknown"]
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                entry = json_reader.parse(line)
                counts[entry["reason"]] += 1
                examples.setdefault(
                    entry["reason"], f"{entry['key']}: {entry.get('detail', '')}".rstrip(": ")
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number + 1} is damaged ({error!r}); make the records again "
                    f"with caphuman prepare"
                ) from error
    lines = [
        f"  {reason:16} {count:>8,}   such as {examples[reason]}"
        for reason, count in counts.most_common()
    ]
    if dict(counts) != manifest.get("dropped", dict(counts)):
        lines.append(f"  but the manifest says {manifest['dropped']}")
    return [f"dropped {counts.total():,} photos" + (":" if counts else ""), *lines]


def _people(manifest, found):
    """Persons of each split and how many photos they have."""
    for split, people in ((split, people) for split, people in found.people.items() if people):
        known = {person: count for person, count in people.items() if person}
        nameless = people.get(0, 0)
        numbers = collections.Counter(known.values())
        text = ", ".join(
            f"{persons:,} with {photos}" for photos, persons in sorted(numbers.items())[:6]
        ) + (", …" if len(numbers) > 6 else "")
        named = f"{len(known):,} persons ({text} photos)" if known else "no persons named"
        yield (
            f"  {split:6} {named}"
            + (f", {nameless:,} photos without a person" if known and nameless else "")
            + f"; {found.paired[split]:,} records have partners"
        )
