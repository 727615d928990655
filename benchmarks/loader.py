"""Samples per second from records of Stable Diffusion 1.5's size to batches on the host, with
tf.data and with Grain, and the cost of each part.

    python benchmarks/loader.py [--data DIR] [--batch 32] [--workers 1 2 4] [--processes 2]
        [--seconds 8]

Without --data it writes synthetic records of full size (a real photo's JPEG, rendered hints,
numbers that cannot be compressed) to a temporary folder: 512², stored at 690²; moments
2 × 64 × 64 × 8, text of four captions 77 × 768, image tokens 257 × 1024, all float16. The files are in the page
cache, so disks are not measured. CPU seconds include every thread and process; they predict a
machine with more cores better than a rate on few, shared cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cv2
import numpy as np

from data_pipeline.loading.batch_maker import HEAD
from data_pipeline.loading.loader import make_loader
from data_pipeline.records import tf_example
from data_pipeline.records.reader import RecordsFolder
from data_pipeline.records.schema import Layout, features

FULL = Layout(
    size=512,
    stored=690,
    identity=90,
    expression=52,
    albedo=(4801, 3),
    identity_side=224,
    captions=4,
    recognizer="facenet",
    moments=(64, 64, 8),
    text=768,
    image_tokens=(257, 1024),
)
KINDS = {
    "heads, moments, text, tokens": {},
    "heads, moments, text": {"identity": None},
    "heads, pictures, text, tokens": {"latents": "pictures"},
    "hint pictures, moments, text, tokens": {"hints": "pictures"},
}
GOAL = 350  # samples/s, on a machine of 16 cores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="a folder of caphuman prepare; without it one is made up"
    )
    parser.add_argument("--records", type=int, default=192, help="records to make up")
    parser.add_argument(
        "--options",
        default="group_size:1",
        help="of array_record's writer, for records that are made up (`prepare` writes with the "
        "default)",
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--loaders", nargs="+", default=["tf", "grain"])
    parser.add_argument(
        "--workers", type=int, nargs="+", default=sorted({1, 2, os.cpu_count() or 1})
    )
    parser.add_argument(
        "--processes",
        type=int,
        nargs="*",
        default=[],
        help="also Grain with so many processes of one thread each",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="for each measurement")
    parser.add_argument("--kinds", nargs="+", help=f"beginnings of: {'; '.join(KINDS)}")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, batch {args.batch}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for hints in (False, True):
            data = args.data or make_up(
                Path(folder) / f"hints-{hints}", args.records, hints, args.options
            )
            records = RecordsFolder(data)
            have = {f.name for f in records.features}
            if args.data or not hints:
                costs(records)
            for kind, asked in KINDS.items():
                if (
                    (asked.get("hints") == "pictures") != hints
                    or (hints and "hints" not in have)
                    or (args.kinds and not any(kind.startswith(k) for k in args.kinds))
                ):
                    continue
                file, count = records.files["train"][0]
                size = os.path.getsize(file) / count / 1000
                print(f"\n{kind}  ({size:.0f} kB a record in the files)")
                for loader in args.loaders:
                    for workers in args.workers:
                        measure(records, loader, kind, asked, args, workers, 0)
                    if loader == "grain":
                        for processes in args.processes:
                            measure(records, loader, kind, asked, args, 1, processes)


def measure(
    records: RecordsFolder, loader: str, kind: str, asked: dict, args, workers: int, processes: int
) -> None:
    """Prints one line: a loader's rate after a warm-up, and its CPU time."""
    batches = make_loader(
        records, batch=args.batch, loader=loader, workers=workers, processes=processes, **asked
    )
    size = sum(x.nbytes for x in leaves(next(batches))) / args.batch
    for _ in range(4):
        next(batches)
    count, memory, started, used = 0, resident(), time.perf_counter(), cpu_seconds()
    while time.perf_counter() - started < args.seconds:
        next(batches)
        count += args.batch
    seconds, used = time.perf_counter() - started, cpu_seconds() - used
    memory = f"{memory:.0f} → {resident():.0f} MB"
    batches.close()
    each = used / count
    threads = f"{processes} processes" if processes else f"{workers} thread{'s' * (workers > 1)}"
    print(
        f"  {loader:5s} {threads:12s} {count / seconds:7.1f} samples/s  "
        f"{count * size / seconds / 1e6:7.1f} MB/s of batches  {1000 * each:6.2f} ms of CPU a "
        f"sample"
        f"  {1 / each:6.0f} samples a core-second  (16 cores: {16 / each / GOAL:.1f} × the goal of "
        f"{GOAL}/s)  memory {memory}",
        flush=True,
    )


def costs(records: RecordsFolder) -> None:
    """Prints what reading, parsing and decoding cost, each alone, in one thread."""
    numbers = list(range(min(records.count("train"), 128)))
    message = records.read("train", [0])[0]
    whole = records.decode(message)
    own = (
        "moments",
        "text",
        "image_tokens",
        "caption_ids",
        "region",
        "covered",
        *(f"head/{name}" for name in HEAD),
    )
    parts = {
        "read (one record)": lambda: records.read(
            "train", [numbers[np.random.randint(len(numbers))]]
        ),
        "parse: find partners": lambda: records.decode(message, {"partners"}),
        "parse: what a batch needs": lambda: records.decode(
            message, [name for name in own if name in whole]
        ),
    }
    for feature in records.features:
        if feature.kind == "image":
            parts[
                f"decode {feature.name} ({feature.encoding}, {len(whole[feature.name]) / 1000:.1f} "
                f"kB)"
            ] = lambda name=feature.name: records.pixels(name, whole[name])
    print(f"\ncosts of one record ({len(message) / 1000:.0f} kB), one thread, median")
    for name, run in parts.items():
        times = []
        for _ in range(60):
            started = time.thread_time()
            run()
            times.append(time.thread_time() - started)
        print(f"  {name:45s} {1000 * np.median(times):7.3f} ms of CPU")


def make_up(folder: Path, count: int, hints: bool, options: str) -> Path:
    """Records of full size."""
    from records_standin import write_standin

    from caphuman_jax.head.models.registry import load_head

    layout = Layout(
        **{
            **FULL.__dict__,
            "hints": hints,
            "albedo": load_head().mean.shape,
            "expression": len(load_head().expression_names),
        }
    )
    found = {f.name: f for f in features(layout)}
    print(f"making {count} records up{' with hint pictures' * hints} …", flush=True)
    face = cv2.imread(str(ROOT / "caphuman_jax" / "assets" / "astronaut_nasa.png"))[..., ::-1]
    face = cv2.resize(face, (layout.stored, layout.stored), interpolation=cv2.INTER_CUBIC)
    shown = _hints(layout) if hints else None
    rng = np.random.default_rng(0)

    def change(record: dict, number: int) -> dict:
        roll = lambda picture: np.roll(picture, 7 * number, axis=1)
        record = record | {
            "photo": tf_example.encode_image(found["photo"], roll(face)),
            "identity_input": tf_example.encode_image(
                found["identity_input"],
                cv2.resize(roll(face), (224, 224), interpolation=cv2.INTER_AREA),
            ),
            "head/albedo": np.clip(rng.normal(150, 12, layout.albedo), 0, 255).astype(np.uint8),
        }
        if hints:
            record["hints"] = tf_example.encode_image(found["hints"], roll(shown))
        return record

    return write_standin(folder, count, layout=layout, shards=4, change=change, options=options)


def _hints(layout: Layout) -> np.ndarray:
    """Hints of a head in the middle as they are stored, (3S, S, 3) uint8."""
    from rasterizer import heads

    from caphuman_jax.head.head import unstack
    from caphuman_jax.head.hints import pack_hints, render_hints, to_picture
    from caphuman_jax.head.models.registry import load_head

    drawn = np.asarray(
        render_hints(
            load_head(),
            unstack(heads(load_head(), 1, layout.stored))[0],
            layout.stored,
            layout.stored,
        )
    )
    return to_picture(pack_hints(drawn))


def leaves(batch: dict):
    """All arrays of a nested dict."""
    for value in batch.values():
        yield from leaves(value) if isinstance(value, dict) else (value,)


def cpu_seconds() -> float:
    """Of this process and those that it started and that still run."""
    total = time.process_time()
    tick = os.sysconf("SC_CLK_TCK")
    for child in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = child.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def resident() -> float:
    """Memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
