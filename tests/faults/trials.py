"""Trials of a verb with a fault, one after the other in one folder."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import verbs as verb_list
from injection import Fault
from judgement import REFUSED, marks_of_a_crash, wrong_end
from processes import (
    Outcome,
    finish,
    has_ended,
    import_everything,
    mount,
    remount,
    run_here,
    start,
    unmount,
    wait_for_events,
)
from verbs import VERBS, Verb

ROUNDS = {"kill": 10, "term": 8, "kill by clock": 2, "term by clock": 2, "kill worker": 4}
ROUNDS |= {"disk full": 2, "no space": 3, "read-only": 1, "turns read-only": 2, "gone": 2}
ROUNDS |= {"vanish": 3, "twice": 2, "clock": 1, "memory": 1, "NaN": 1}
"""Trials of a verb in a full run."""
_COUNTED = 10_000_000  # an event that never comes


class Trials:
    """The folder of a matrix: inputs, undisturbed results, and trials one after the other."""

    def __init__(self, state: Path, seed: int):
        self.state, self.seed = state, seed
        self.inputs, self.known = state / "in", {}
        self.rerun: dict[tuple[str, str], list[str]] = {}
        state.mkdir(parents=True, exist_ok=True)

    def prepare(self, chosen: list[Verb], small: bool = False) -> None:
        """Make the inputs and an undisturbed run of each verb, where they are missing. `small`:
        without the inputs that need a face to be measured.
        """
        if not self.inputs.exists():
            run_here(lambda: verb_list.build(self.inputs, small), self.state / "build.txt")
        for name, made_by in (("run", "train mini"), ("lora", "train lora")):
            if (self.inputs / name).exists() or not any(name in verb.inputs for verb in chosen):
                continue
            train = next(verb for verb in VERBS if verb.name == made_by)
            outcome = self.run(train, place := self.fresh(train, "run"))
            assert outcome.code == 0, outcome.error
            shutil.copytree(place / "work" / "run", self.inputs / f"{name}.part", symlinks=True)
            os.rename(self.inputs / f"{name}.part", self.inputs / name)
        for verb in chosen:
            path = self.state / "undisturbed" / f"{verb.name}.json"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(self.undisturbed(verb), indent=1))
            self.known[verb.name] = json.loads(path.read_text())
            import_everything(self.state / "modules" / f"{verb.name}.json")

    def undisturbed(self, verb: Verb) -> dict:
        """What a run without a fault writes, how many events that are, and what it takes."""
        # First once without counting: programs from the cache may round otherwise than those that
        # were just compiled, and what this run imports is then imported here.
        place = self.fresh(verb, "undisturbed")
        outcome = self.run(verb, place)
        if outcome.code:
            raise SystemExit(f"{verb.name} fails undisturbed: {outcome.error}")
        modules = self.state / "modules" / f"{verb.name}.json"
        modules.parent.mkdir(exist_ok=True)
        shutil.copy(place / "notes" / "modules.json", modules)
        import_everything(modules)
        place = self.fresh(verb, "undisturbed")
        began = time.monotonic()
        outcome = self.run(verb, place, Fault("count", _COUNTED, *paths(place)))
        seconds = round(time.monotonic() - began, 1)
        found = verb_list.digests(place / "work", verb)
        size = sum(p.stat().st_size for p in (place / "work").rglob("*") if p.is_file())
        print(
            f"{verb.name}: {seconds} s, {outcome.events} events, {len(found)} files, "
            f"{size / 1e6:.1f} MB",
            flush=True,
        )
        return {"files": found, "events": outcome.events, "bytes": size, "seconds": seconds}

    def fresh(self, verb: Verb, name: str, copied: bool = False) -> Path:
        """A folder to run in, with in/ (links, or copies if they may be changed) and work/."""
        place = self.state / "trial"
        unmount(place / "work")
        shutil.rmtree(place, ignore_errors=True)
        for part in ("in", "work", "notes"):
            (place / part).mkdir(parents=True)
        for source in verb.inputs:
            if not copied:
                (place / "in" / source).symlink_to(self.inputs / source)
            elif (self.inputs / source).is_dir():
                shutil.copytree(self.inputs / source, place / "in" / source, symlinks=True)
            else:
                shutil.copy(self.inputs / source, place / "in" / source)
        self.lay_out(verb, place)
        return place

    def lay_out(self, verb: Verb, place: Path) -> None:
        """What is in work/ before the command."""
        for target, source in verb.before:
            shutil.copytree(self.inputs / source, place / "work" / target)

    def run(self, verb: Verb, place: Path, fault: Fault | None = None, during=None) -> Outcome:
        """Run the command to its end; `during(process)` meanwhile."""
        process = start(verb, place, fault)
        return finish(process, place, during)

    def trial(self, verb: Verb, fault: str, number: int) -> dict:
        """One trial: {"verb", "fault", "number", "at", "struck", "code", "problems"}."""
        rng = random.Random(f"{self.seed} {verb.name} {fault} {number}")
        known, total = self.known[verb.name], ROUNDS[fault]
        first = (number + rng.random()) / total  # spread over the run, at random within its share
        at = 1 + min(int(first * known["events"]), known["events"] - 1)
        place = self.fresh(verb, fault, copied=fault in ("vanish", "NaN"))
        outcome, at = getattr(self, f"_{fault.replace(' ', '_').replace('-', '_').lower()}")(
            verb, place, at, rng, first
        )
        problems = self.judge(verb, fault, place, outcome)
        unmount(place / "work")
        return {
            "verb": verb.name,
            "fault": fault,
            "number": number,
            "at": at,
            "struck": outcome.struck,
            "code": outcome.code,
            "problems": problems,
        }

    # Each fault: the outcome of the disturbed run, and when it struck.
    def _kill(self, verb, place, at, rng, first, kind="kill"):
        return self.run(verb, place, Fault(kind, at, *paths(place))), at

    def _term(self, *arguments):
        return self._kill(*arguments, kind="term")

    def _no_space(self, *arguments):
        return self._kill(*arguments, kind="full")

    def _turns_read_only(self, *arguments):
        return self._kill(*arguments, kind="read-only")

    def _gone(self, *arguments):
        return self._kill(*arguments, kind="gone")

    def _clock(self, verb, place, at, rng, first):
        fault = Fault("clock", at, *paths(place), seed=rng.randrange(2**31))
        return self.run(verb, place, fault), at

    def _kill_worker(self, *arguments):
        return self._kill(*arguments, kind="kill-worker")

    def _kill_by_clock(self, verb, place, at, rng, first, signal_=signal.SIGKILL):
        delay = rng.random() * self.known[verb.name]["seconds"] * 0.6

        def during(process):
            wait_for_events(place, process)
            time.sleep(delay)
            if not has_ended(process):
                os.kill(process, signal_)
                (place / "notes" / "struck").touch()

        fault = Fault("count", _COUNTED, *paths(place))
        return self.run(verb, place, fault, during), round(delay, 3)

    def _term_by_clock(self, *arguments):
        return self._kill_by_clock(*arguments, signal_=signal.SIGTERM)

    def _disk_full(self, verb, place, at, rng, first):
        if not mount(place / "work", "size=1g"):
            return self.run(verb, place, Fault("full", at, *paths(place))), at
        self.lay_out(verb, place)
        taken = sum(path.stat().st_blocks * 512 for path in (place / "work").rglob("*"))
        size = taken + max(8192, int(rng.uniform(0.02, 0.9) * self.known[verb.name]["bytes"]))
        remount(place / "work", f"size={size}")
        outcome = self.run(verb, place, Fault("count", _COUNTED, *paths(place)))
        remount(place / "work", "size=1g")
        outcome.struck = outcome.code != 0
        return outcome, size

    def _read_only(self, verb, place, at, rng, first):
        if not mount(place / "work", "size=1g"):
            return self.run(verb, place, Fault("read-only", 1, *paths(place))), 1
        self.lay_out(verb, place)
        remount(place / "work", "ro")
        outcome = self.run(verb, place)
        remount(place / "work", "rw")
        outcome.struck = True
        return outcome, 0

    def _vanish(self, verb, place, at, rng, first):
        victims = (
            (str(place / "work"),)
            if rng.random() < 0.5
            else tuple(str(place / "in" / name) for name in verb.inputs)
        )
        fault = Fault("vanish", at, *paths(place), victims=victims, seed=rng.randrange(2**31))
        outcome = self.run(verb, place, fault)
        for source in verb.inputs:  # the user puts back what was lost
            if (self.inputs / source).is_dir():
                shutil.copytree(self.inputs / source, place / "in" / source, dirs_exist_ok=True)
            else:
                shutil.copy(self.inputs / source, place / "in" / source)
        return outcome, at

    def _twice(self, verb, place, at, rng, first):
        other = {}

        def during(process):
            wait_for_events(place, process, at)
            other["process"] = start(verb, place, None, "second")

        outcome = self.run(verb, place, Fault("count", _COUNTED, *paths(place)), during)
        second = finish(other["process"], place, None, "second")
        outcome.struck = True
        if (
            outcome.code not in (0, 2)
            or second.code not in (0, 2)
            or outcome.code + second.code > 2
        ):
            outcome.error += f"\nsecond ({second.code}): {second.error}"
            outcome.code = 1000 + outcome.code
        elif second.code:
            outcome.code, outcome.error = second.code, second.error
        return outcome, at

    def _memory(self, verb, place, at, rng, first):
        number = rng.choice((1, 2, 4, 8))
        return self.run(verb, place, Fault("memory", number, *paths(place))), number

    def _nan(self, verb, place, at, rng, first):
        spoil(place / "in" / verb.weights)
        outcome = self.run(verb, place)
        outcome.struck = True
        shutil.rmtree(place / "in")
        (place / "in").mkdir()
        for source in verb.inputs:
            (place / "in" / source).symlink_to(self.inputs / source)
        return outcome, 0

    def judge(self, verb: Verb, fault: str, place: Path, outcome: Outcome) -> list[str]:
        """What is wrong after a fault, the rerun included; [] if everything is as it should be."""
        expected, before = dict(self.known[verb.name]["files"]), self.old(verb)
        taken = self.taken(verb, place, expected)
        if verb.many and fault == "vanish" and outcome.code in (0, 3) and self.lost_input(place):
            return wrong_end(fault, outcome, True)  # what it says of the file is tested elsewhere
        if fault == "gone":  # the user's own files, too
            expected = {n: d for n, d in expected.items() if Path(n).name != verb_list.OWN}
        found = verb_list.digests(place / "work", verb)
        everything = verb_list.complete(found, expected, verb)
        problems = wrong_end(fault, outcome, everything or taken)
        wrong = verb_list.wrong_files(found, expected, verb)
        if all(before.get(name) == found[name] for name in found):
            wrong = []  # as it was before
        problems += [f"{name} is there and is not whole" for name in wrong]
        if problems or (taken and REFUSED.search(outcome.error)):
            return problems
        state = [found, verb_list.hidden(place / "work"), sorted(expected), taken]
        key = verb.name, hashlib.sha256(json.dumps(state).encode()).hexdigest()
        if key not in self.rerun:
            self.rerun[key] = self.check_rerun(verb, place, expected, everything or taken)
        return problems + self.rerun[key]

    def taken(self, verb: Verb, place: Path, expected: dict[str, str]) -> bool:
        """Whether what was removed belonged to the result, which nobody can bring back: one file
        that a person sees, or the folder when everything was there.
        """
        gone, note = place / "notes" / "there", place / "notes" / "vanished"
        if gone.exists() and not verb.numbered:
            return set(json.loads(gone.read_text())) >= set(expected)
        if gone.exists():
            return len(json.loads(gone.read_text())) >= len(expected)
        if not note.exists():
            return False
        path = Path(note.read_text())
        inside = path.is_relative_to(place / "work")
        return inside and not re.search(r"/\.", str(path.relative_to(place)))

    def lost_input(self, place: Path) -> bool:
        """Whether a file that the command reads has vanished."""
        note = place / "notes" / "vanished"
        return note.exists() and Path(note.read_text()).is_relative_to(place / "in")

    def old(self, verb: Verb) -> dict[str, str]:
        """Digests of what is in work/ before the command."""
        found = {}
        for target, source in verb.before:
            for name, digest in verb_list.digests(self.inputs / source, verb).items():
                found[f"{target}/{name}"] = digest
        return found

    def check_rerun(
        self, verb: Verb, place: Path, expected: dict[str, str], may_refuse: bool
    ) -> list[str]:
        """What is wrong with the same command, run again."""
        shutil.rmtree(place / "notes")
        (place / "notes").mkdir()
        before = verb_list.digests(place / "work", verb)
        again = self.run(verb, place)
        found = verb_list.digests(place / "work", verb)
        if again.code == 2 and may_refuse and REFUSED.search(again.error):
            return [] if found == before else ["the refused rerun wrote"]
        problems = [] if again.code == 0 else [f"the rerun ends with {again.code}: {again.error}"]
        if not verb_list.complete(found, expected, verb):
            lost = sorted(set(expected) - set(found))
            other = [n for n in found if expected.get(n) != found[n]]
            problems.append(f"after the rerun: missing {lost}, other {other}")
        return problems + marks_of_a_crash(again.error)


def paths(place: Path) -> tuple[str, str]:
    """The watched folder and that of notes."""
    return str(place / "work"), str(place / "notes")


def spoil(path: Path) -> None:
    """Turn a network's weights into NaN, with a checksum that fits."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    file = path if path.is_file() else path / "unet.safetensors"
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    name = max(arrays, key=lambda name: arrays[name].size)
    arrays[name] = np.full_like(arrays[name], np.nan)
    os.unlink(file)
    save_file(arrays, file, metadata)
    if path.is_dir():
        document = json.loads((path / "config.json").read_text())
        data = file.read_bytes()
        document["files"]["unet"] |= {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        (path / "config.json").write_text(json.dumps(document))
