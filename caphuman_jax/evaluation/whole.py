"""An evaluation of requests, from pictures to the report."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.evaluation import (
    benchmark,
    head_pictures,
    judges,
    pictures,
    report,
    statistics,
    summary,
)
from caphuman_jax.evaluation.ablations import Variant
from caphuman_jax.evaluation.asked import Asked
from caphuman_jax.evaluation.clip_judge import ClipJudge
from caphuman_jax.evaluation.judges import Judges
from caphuman_jax.evaluation.metrics.base import Run
from caphuman_jax.evaluation.outcome import Outcome, Subject
from caphuman_jax.evaluation.page.write import write_report
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.scored_run import read_run
from caphuman_jax.evaluation.suites.kinds import KINDS, Kind
from caphuman_jax.evaluation.suites.suite_file import SuiteFile
from caphuman_jax.pipeline.pipeline import Pipeline

# Settings that a model decides where nothing is given: the report says what they were.
_MODELS_OWN = ("sampler", "steps", "guidance_scale", "identity_guidance", "head_guidance")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What is evaluated.

    Attributes:
        pipe: makes the pictures.
        batch: pictures at a time on all devices together.
        suite: what is asked for.
        subjects: the people.
        asked: every picture.
        facts: what the report says besides, JSON types: settings, model, versions, skipped …
        seed: of what is random.
        training: see `Run`.
        photos: of the subjects, for a suite that edits them.
        judges: networks of the user that look at the pictures, too.
        show_pictures: whether report.html shows pictures and names of photos.
    """

    pipe: Pipeline
    batch: int
    suite: SuiteFile
    subjects: Sequence[Subject]
    asked: Sequence[Asked]
    facts: Mapping[str, Any]
    seed: int = 0
    training: np.ndarray | None = None
    photos: Sequence[Photo] = ()
    judges: Judges = dataclasses.field(default_factory=dict)
    show_pictures: bool = True

    @property
    def kind(self) -> Kind | None:
        """What the suite makes besides pictures from noise; None: nothing."""
        return KINDS.get(self.suite.kind)

    def run(
        self, folder: Path, variant: Variant | None, stopped: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """Make what is missing and write the report.

        Args:
            folder: of the report, or of an ablation in it.
            variant: what the ablation changes.
            stopped: whether to stop.

        Returns:
            What report.json says; None if it was stopped.
        """
        made = pictures.make_and_measure(
            self.pipe,
            self.subjects,
            self.asked,
            folder,
            seed=self.seed,
            batch=self.batch,
            sampling=self.suite.sampling,
            variant=variant,
            look=self.kind.look if self.kind else None,
            photos=self.photos,
            judges=self.judges,
            stopped=stopped,
        )
        if not made.done:
            return None
        sampling = {**self.suite.sampling, **(variant.sampling if variant else {})}
        someone = self.subjects[0].person
        resolved = self.pipe.request(reference=someone, prompt="", **sampling).params
        settings = {
            **self.suite.parameters,
            **{name: getattr(resolved, name) for name in _MODELS_OWN},
            "sampling": sampling,
            "ablation": variant.label if variant else None,
            "batch": self.batch,
            "judges": judges.facts(self.judges),
        }
        facts = {
            **self.facts,
            "settings": self.facts["settings"] | settings,
            "failed": made.failed,
            "seconds": self.facts["seconds"] | made.seconds,
        }
        with open(folder / ".report.lock", "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # one process writes at a time, all the same
            return self._write(folder, made.outcomes, facts)

    def _write(
        self, folder: Path, outcomes: Sequence[Outcome], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        model, subjects, seed = self.pipe.head_model, self.subjects, self.seed
        floor = benchmark.run_measurement_floor(
            model, subjects, seed=seed, batch=self.pipe.batch, head_of=self.pipe.head_of
        )
        for name, judge in self.judges.items():
            references = judge.images([subject.picture for subject in subjects])
            subjects = [
                dataclasses.replace(one, values={**one.values, name: vector})
                for one, vector in zip(subjects, references)
            ]
        run = Run(model, subjects, outcomes, seed, self.training, self._texts(outcomes))
        results, of_floor = (
            statistics.compute_run(run),
            statistics.compute(model, subjects, floor, seed),
        )
        document = {
            "format": "caphuman_jax evaluation",
            **facts,
            "goals": statistics.goals(results, self.kind.goals if self.kind else None),
            "results": results,
            "measurement_floor": of_floor,
            "sheets": report.write_sheets(folder, subjects, outcomes, folder),
        }
        report.write_json(folder / "report.json", document)
        shown = {name: facts[name] for name in ("suite", "model", "settings", "versions")}
        heads = head_pictures.write_heads(folder, run)
        summary.write(folder, run, results, of_floor, shown, heads)
        report.write_index(folder / "index.md", document)
        write_report(read_run(folder), self.show_pictures)
        return document

    def _texts(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
        """{prompt: its vector}, where there is a CLIP."""
        prompts = sorted({one.request.prompt for one in outcomes if one.request is not None})
        clip = self.judges.get(judges.CLIP)
        if not isinstance(clip, ClipJudge) or not prompts:
            return {}
        return dict(zip(prompts, clip.texts(prompts)))
