"""`make faults`: every verb that writes × every fault, at many moments, and a table of what held.

    python tests/faults/matrix.py --state DIR [--seconds S] [--verbs …] [--faults …]

For each trial a command runs in a folder of its own and a fault strikes. Afterwards
  * no file that a person sees is anything but what an undisturbed run writes there,
  * the exit code is a documented one, and a failure is one line without a traceback,
  * the same command, run again, finishes (or refuses because everything is there), and
  * the folder then equals that of an undisturbed run.

Moments are events (see `injection`), spread over all of a run, and for some kills the clock. A
rerun is done once for each state that a fault leaves: two trials whose folders are equal share it.

Commands run in forks of one process that has imported what they need, so that a trial takes
seconds. Results are kept in DIR/results.jsonl; the same command resumes, and prints the table of
all of them. The seed decides every moment.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# xla_flags, and what verbs.build needs; the checkout first, since tests/ has a data_pipeline, too.
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import xla_flags  # noqa: E402
from judgement import FAULTS, KILLS  # noqa: E402
from trials import ROUNDS, Trials  # noqa: E402
from verbs import VERBS, Verb  # noqa: E402

SHORT = ("kill", "term by clock", "disk full")
SHORT_VERBS = ("import over", "export ldm", "export diffusers", "train")
"""Those that have little to compile."""
_KILLS_FIRST = 4  # of each kind
_SLOW = {"kill": 5, "term": 4}
"""Trials of a slow verb; it meets other faults once."""


def applies(verb: Verb, fault: str) -> bool:
    """Whether a verb can meet a fault."""
    if fault == "memory":
        return verb.memory
    if fault == "NaN":
        return verb.weights is not None
    return fault != "kill worker" or verb.name == "prepare"


def plan(chosen: list[Verb], faults: list[str], share: float) -> Iterator[tuple[Verb, str, int]]:
    """All trials, those of all verbs and faults in turn; some kills come first."""
    for turn in range(_KILLS_FIRST + max(ROUNDS.values())):
        for verb in chosen:
            for fault in faults:
                number = turn if fault in KILLS else turn - _KILLS_FIRST
                full = _SLOW.get(fault, 1) if verb.slow else ROUNDS[fault]
                wanted = max(1, round(full * share))
                if 0 <= number < wanted and applies(verb, fault):
                    # Few trials are spread over the run as many are.
                    yield verb, fault, number * ROUNDS[fault] // wanted


def table(results: list[dict]) -> str:
    """Verb × fault, as Markdown: how often it struck, and how often something was wrong then."""
    faults = [fault for fault in FAULTS if any(r["fault"] == fault for r in results)]
    names = [verb.name for verb in VERBS if any(r["verb"] == verb.name for r in results)]
    counts = collections.Counter(
        (r["verb"], r["fault"], bool(r["problems"]))
        for r in results
        if r["struck"] or r["problems"]
    )

    def cell(verbs: list[str], kinds: list[str]) -> str:
        right, wrong = (
            sum(counts[verb, fault, problems] for verb in verbs for fault in kinds)
            for problems in (False, True)
        )
        return f"{right + wrong}{f' (**{wrong} wrong**)' if wrong else ''}" if right + wrong else ""

    rows = [(name, [name]) for name in names] + [("all", names)]
    lines = [["", *faults, "all"], ["---"] * (len(faults) + 2)]
    lines += [
        [name, *(cell(verbs, [fault]) for fault in faults), cell(verbs, faults)]
        for name, verbs in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """What the table is of."""
    packages = ("caphuman-jax", "jax", "orbax-checkpoint", "apache-beam", "array-record")
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores"
    return f"{', '.join(found)}, Python {platform.python_version()}, {system}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="a folder; the same one resumes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--share", type=float, default=1.0, help="part of the trials of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", default=[verb.name for verb in VERBS])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument(
        "--short", action="store_true", help="two kills and a full disk for some verbs"
    )
    parser.add_argument("--again", action="store_true", help="repeat the trials that went wrong")
    args = parser.parse_args()
    if args.short:
        args.share, args.faults, args.verbs = 0.01, list(SHORT), list(SHORT_VERBS)
    began = time.monotonic()
    state = args.state.resolve()
    settle(state)
    chosen = [verb for verb in VERBS if verb.name in args.verbs]
    trials = Trials(state, args.seed)
    print(f"seed {args.seed}; {versions()}", flush=True)
    trials.prepare(chosen, small=args.short)
    path = state / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    results = {(r["verb"], r["fault"], r["number"]): r for r in lines}
    left = False
    for verb, fault, number in plan(chosen, args.faults, args.share):
        before = results.get((verb.name, fault, number))
        if before and not (args.again and before["problems"]):
            continue
        if time.monotonic() - began > args.seconds:
            left = True
            break
        result = trials.trial(verb, fault, number)
        results[verb.name, fault, number] = result
        with open(path, "a") as file:
            file.write(json.dumps(result) + "\n")
        for problem in result["problems"]:
            print(f"{verb.name}, {fault} {number} at {result['at']}: {problem}", flush=True)
    found = list(results.values())
    print(table(found))
    kills = [r for r in found if r["fault"] in KILLS]
    wrong = [r for r in found if r["problems"]]
    print(
        f"{sum(r['struck'] for r in found)} faults, of which "
        f"{sum(r['struck'] for r in kills)} kills; {len(found)} trials in all, {len(wrong)} losses"
        + ("; more to do: run it again" if left else "")
    )
    return 1 if wrong else 0


def settle(state: Path) -> None:
    """One device, programs compiled quickly and kept."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = xla_flags.ONE_DEVICE
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ["CAPHUMAN_CACHE"] = str(state / "cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(state / "cache" / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


if __name__ == "__main__":
    sys.exit(main())
