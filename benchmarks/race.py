"""The sampler and the training step beside PyTorch's on one card, in one command.

    python benchmarks/race.py --out DIR [--batch 8 32] [--train-batch 32] [--mode max-autotune] [--only sampler|training]
    python benchmarks/race.py --out DIR --tiny        a rehearsal on a CPU

Runs benchmarks/sampler.py, torch_sampler.py, train_step.py and torch_train.py one after the other,
each in a process of its own, so that neither holds memory while the other is measured. Each warms
up first. Results: DIR/{sampler,torch_sampler,train_step,torch_train}.json, DIR/race.json with the
versions, and a table. A program that fails or takes longer than --seconds is named in the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--train-batch", type=int, nargs="+", default=[32])
    parser.add_argument("--mode", default="max-autotune", help="of torch.compile")
    parser.add_argument("--library-products", action="store_true", help="see torch_sampler.py")
    parser.add_argument("--only", choices=("sampler", "training"))
    parser.add_argument("--seconds", type=float, default=3600, help="at most, for each program")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes on a CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    programs = commands(args)
    notes = {name: run(name, command, args) for name, command in programs.items()}
    found = {name: read(args.out / f"{name}.json") for name in programs}
    race = {"versions": versions(), "commands": programs, "notes": notes, "results": found}
    (args.out / "race.json").write_text(json.dumps(race, indent=1) + "\n")
    print(json.dumps(race["versions"]))
    print(table(found, notes))
    return 1 if any(notes.values()) else 0


def commands(args) -> dict[str, list[str]]:
    """The command of each program, by its name."""
    numbers = lambda values: [str(value) for value in values]
    if args.tiny:
        ours = ["--model", "mini", "--size", "64", "--steps", "2", "--repeats", "1"]
        theirs = "--tiny --device cpu --mode none --size 64".split()
        sampler = ours, [*theirs, "--dtype", "float32", "--steps", "2", "--repeats", "1"]
        training = ["--size", "tiny", "--steps", "2"], [*theirs, "--steps", "2"]
    else:
        peer = ["--mode", args.mode, *["--library-products"] * args.library_products]
        ours = "--model sd15 --size 512 --steps 20 --guidance-scale 7".split()
        sampler, training = (ours, peer), (["--steps", "10", "--devices", "1"], peer)
    both = {
        "sampler": (sampler, ("sampler", "torch_sampler"), args.batch),
        "training": (training, ("train_step", "torch_train"), args.train_batch),
    }
    return {
        name: [
            sys.executable,
            str(HERE / f"{name}.py"),
            *options,
            "--batch",
            *numbers(batches),
            "--json",
            str(args.out / f"{name}.json"),
        ]
        for part, (pair, names, batches) in both.items()
        if args.only in (None, part)
        for name, options in zip(names, pair)
    }


def run(name: str, command: list[str], args) -> str:
    """Runs a program, which prints to DIR/NAME.log; what went wrong, or ""."""
    print(f"{time.strftime('%H:%M:%S')} {' '.join(command)}", flush=True)
    with open(args.out / f"{name}.log", "w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=args.seconds
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not ready after {args.seconds:.0f} s"
    return f"exit code {code}, see {name}.log" if code else ""


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def versions() -> dict[str, str]:
    """Card and driver, as nvidia-smi tells them."""
    query = "--query-gpu=name,driver_version,clocks.max.sm"
    try:
        told = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return {"card": "none"}
    return {"card": told.stdout.strip()}


def table(found: dict, notes: dict) -> str:
    """Pictures a second of both, and ours by theirs."""
    lines = ["| | batch | CapHuman on JAX | PyTorch | ratio |", "|---|---|---|---|---|"]
    for title, ours, theirs in (
        ("sampler, pictures/s in consecutive batches", "sampler", "torch_sampler"),
        ("training step, pictures/s", "train_step", "torch_train"),
    ):
        if ours not in found:
            continue
        rates = [by_batch(found[name]) for name in (ours, theirs)]
        for batch in sorted(set(rates[0]) | set(rates[1])):
            a, b = (rate.get(batch) for rate in rates)
            ratio = f"{a / b:.2f}" if a and b else "–"
            shown = [f"{x:.2f}" if x else "–" for x in (a, b)]
            lines.append(f"| {title} | {batch} | {shown[0]} | {shown[1]} | {ratio} |")
    return "\n".join(lines + [f"{name}: {note}" for name, note in notes.items() if note])


def by_batch(results: dict) -> dict[int, float]:
    """Pictures a second by the pictures of a batch, of any of the four programs."""
    rates = {}
    for line in results.get("lines", results.get("variants", [])):
        rate = line.get("pictures_a_second", line.get("pictures_per_s"))
        if rate:
            rates[line.get("batch", line.get("batch_per_device"))] = rate
    return rates


if __name__ == "__main__":
    sys.exit(main())
