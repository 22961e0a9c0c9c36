"""`embednoise study`: run every cell of a study through the harness, resume, then compare.

Each model is loaded once and its perturbation swapped. A cell's results are written as the harness
writes them (results_*.json, samples_*.jsonl), whole or not at all, and are not run again.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import lm_eval_embednoise
from lm_eval_embednoise import early
from lm_eval_embednoise.analysis import tables
from lm_eval_embednoise.analysis.compare import write_outputs
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.statement import wrapped
from lm_eval_embednoise.study import calibrate, options, study_file
from lm_eval_embednoise.study.estimate import Estimate, duration, estimate
from lm_eval_embednoise.study.method import Method, StudyError
from lm_eval_embednoise.study.plan import (
    Cell,
    Model,
    Study,
    Task,
    fingerprint,
)
from lm_eval_embednoise.study.rehearse import rehearse
from lm_eval_embednoise.study.session import Session, first_rank, launch, quiet_harness
from lm_eval_embednoise.study.tasks import Tasks
from lm_eval_embednoise.written import whole, write_text

if TYPE_CHECKING:
    import argparse

_PACKAGES = ("lm-eval", "torch", "transformers", "datasets", "numpy", "scipy")
_SAMPLES = "generations"
_DONE = "cell.json"  # written last into a cell's folder: its settings and their fingerprint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "study", metavar="STUDY", help="a study file, or the name of a packaged one: quick, …"
    )
    add_flags(parser)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags alone, for a command that makes the study itself."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/NAME")
    parser.add_argument("--tasks", metavar="NAME,…", help="instead of the study's tasks")
    parser.add_argument("--limit", type=int, metavar="N", help="problems of each task")
    parser.add_argument("-K", "--k", type=int, metavar="K", help="samples a problem")
    parser.add_argument(
        "--methods",
        metavar="NAME,…",
        help="instead of the study's: some of them, packaged ones, files, or a family along its "
        "doses as NAME=D:D:…",
    )
    parser.add_argument("--baseline", metavar="NAME", help="the method that others are held to")
    parser.add_argument("--candidate", metavar="NAME", help="the method that the verdict is about")
    parser.add_argument(
        "--seeds", "--seed", metavar="N,…", help="of every method, instead of the study's"
    )
    options.add_arguments(parser)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="share the problems among N processes (torchrun); the samples are the same",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what is done and left, how many samples that is and about how long it takes",
    )
    parser.add_argument(
        "--probe",
        type=int,
        default=3,
        metavar="N",
        help="problems on which the dry run measures its time (0: load nothing, no estimate)",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is left of the study and compare; returns the exit status."""
    study = options.overridden(study_file.load(args.study), args)
    out = args.out or Path("results") / study.name
    protocol = Protocol.load(study.protocol)
    early.check_writable("--out", out)
    runner = Runner(study, out, protocol)
    if args.processes < 1:
        raise StudyError(f"--processes {args.processes}: it must be a whole number ≥ 1")
    if args.probe < 0:
        raise StudyError(f"--probe {args.probe}: it must be a whole number ≥ 0")
    if "RANK" not in os.environ:
        notes = runner.rehearse(args.processes)
        print("\n".join([runner.overview(), *(f"  {note}" for note in notes)]), flush=True)
        if args.dry_run:
            if args.probe and runner.left:
                print(runner.estimate(args.probe, args.processes))
            return 0
        if args.processes > 1 and runner.left:
            return launch(args.processes)
    runner.run()
    if not first_rank():
        return 0
    comparison = compare(
        read_runs([out / cell.folder for cell in runner.cells]),
        baseline=study.baseline,
        candidate=study.candidate,
        protocol=protocol,
    )
    written = write_outputs(comparison, out / "comparison.json")
    print(tables.terminal(comparison))
    print(wrapped(comparison))
    print("\nwritten:", ", ".join(str(path) for path in written))
    print(
        f"The runs took {duration(runner.seconds())} to generate and score. The page with all "
        f"figures and samples: embednoise report {written[0]}"
    )
    return 0


class Runner:
    """The cells of one study, done or left.

    Args:
        study: what to run.
        out: folder of the study's results.
        protocol: its hash goes into every result.

    Raises:
        StudyError: `out` has results of other settings.
    """

    def __init__(self, study: Study, out: Path, protocol: Protocol) -> None:
        self.study, self.out, self.protocol = study, out, protocol
        self.calibrated: dict[tuple[str, str], dict[str, Method]] = {}
        for model, task in itertools.product(study.models, study.tasks):
            if study.calibrate is not None:
                methods = calibrate.calibrated(
                    self._calibration_folder(model, task),
                    study.calibrate.task(task),
                    study.calibrate.families,
                    model,
                    protocol,
                )
                if methods:
                    self.calibrated[model.name, task.name] = methods
        self.cells = study.cells(self.calibrated)
        self.left = [cell for cell in self.cells if not self._finished(cell)]

    def overview(self) -> str:
        """What is done and what is left, a line for each model and task."""
        lines = [f"study {self.study.name} in {self.out}, protocol {self.protocol.hash}"]
        for model in self.study.models:
            for task in self.study.tasks:
                if self.study.calibrate:
                    done = "done" if (model.name, task.name) in self.calibrated else "left"
                    used = self.study.calibrate.task(task)
                    split = f"{used.held_out} problems" if used.held_out else used.split
                    lines.append(f"  {model.name} · calibration on {used.name}, {split}: {done}")
                mine = [c for c in self.cells if (c.model, c.task) == (model, task)]
                left = [c for c in self.left if (c.model, c.task) == (model, task)]
                size = f"{task.limit or 'all'} problems, K = {task.k or 'the task’s own'}"
                names = ", ".join(
                    f"{c.method.name}@{c.seed}" if c.seed else c.method.name for c in left
                )
                lines.append(
                    f"  {model.name} · {task.name} ({size}): {len(mine) - len(left)} of "
                    f"{len(mine)} runs done{'; left: ' + names if names else ''}"
                )
        return "\n".join(lines)

    def rehearse(self, processes: int) -> list[str]:
        """Refuse what the run would stumble over; returns what is worth knowing before it.

        Args:
            processes: how many will share the problems.

        Raises:
            ValueError, ImportError, OSError: see `rehearse` and `calibrate.check_task`.
        """
        notes: dict[str, None] = {}
        for model in self.study.models:
            work = self._work(model)
            if not work:
                continue
            with quiet_harness():
                found = rehearse(model, work, self.out / _SAMPLES, processes)
                for task in self._uncalibrated(model):
                    calibrate.check_task(Tasks(model, (task,)), task, self.protocol)
            notes.update(dict.fromkeys(found))
        names = [method.name for method in self.study.methods]
        baseline = self.study.baseline or self.protocol["baseline"]
        if baseline not in names:
            raise StudyError(
                f"the baseline {baseline!r} is none of the methods that are compared: add it, or "
                f"name another (`baseline`): {', '.join(names)}"
            )
        return list(notes)

    def _work(self, model: Model) -> list[tuple[Task, list[Method]]]:
        """What is left of a model: each task with its methods, calibration's with its doses."""
        plan = self.study.calibrate
        work: list[tuple[Task, list[Method]]] = []
        for task in self.study.tasks:
            left = [c.method for c in self.left if (c.model, c.task) == (model, task)]
            if left:
                known = plan.any_dose if plan else {}
                work.append((task, [known[m.name] if m.pending else m for m in left]))
        if plan is not None:
            tried = calibrate.tried(plan.families, self.protocol)
            work += [(task, tried) for task in self._uncalibrated(model)]
        return work

    def _uncalibrated(self, model: Model) -> list[Task]:
        """The problems on which a model's doses are still to be chosen."""
        plan = self.study.calibrate
        if plan is None:
            return []
        known = self.calibrated
        return [plan.task(t) for t in self.study.tasks if (model.name, t.name) not in known]

    def estimate(self, problems: int, processes: int) -> Estimate:
        """Samples that are left and the time they take, from a probe of a few problems."""
        with quiet_harness():
            return estimate(self.study, self.left, self.calibrated, problems, processes)

    def run(self) -> None:
        """Generate and score what is left."""
        if not self.left:
            return
        written = not first_rank()
        done = len(self.cells) - len(self.left)
        with (
            quiet_harness(),
            tqdm(total=len(self.cells), initial=done, unit="run", disable=not first_rank()) as bar,
        ):
            for model in self.study.models:
                if not any(cell.model == model for cell in self.left):
                    continue
                bar.set_description(f"loading {model.name}")
                session = Session(model, self.study.all_tasks, self.out / _SAMPLES)
                for task in self.study.all_tasks:  # missing data fails here, with nothing written
                    session.tasks.load(task)
                if not written:  # its protocol is on record before anything is generated
                    self._write_manifest()
                    written = True
                self._calibrate(session)
                for cell in [cell for cell in self.left if cell.model == model]:
                    bar.set_description(f"{cell.task.name} {cell.method.name}")
                    start = time.perf_counter()
                    results = session.evaluate(cell, self.protocol.hash)
                    if results is not None:  # None on all ranks but the first
                        self._write(cell, results, time.perf_counter() - start)
                    bar.update()
                bar.set_description("done")

    def _calibrate(self, session: Session) -> None:
        """Choose the model's doses for each task, if the study wants them and has none yet."""
        model, plan = session.model, self.study.calibrate
        for task in self.study.tasks if plan else ():
            if plan is None or (model.name, task.name) in self.calibrated:
                continue
            folder = self._calibration_folder(model, task)
            self.calibrated[model.name, task.name] = calibrate.calibrate(
                session, plan.task(task), plan.families, self.protocol, folder
            )
            if first_rank():
                tqdm.write(calibrate.summary(folder), file=sys.stdout)
        self.cells = self.study.cells(self.calibrated)
        self.left = [cell for cell in self.cells if not self._finished(cell)]

    def _calibration_folder(self, model: Model, task: Task) -> Path:
        return self.out / "calibration" / model.name / Path(task.name).stem

    def _finished(self, cell: Cell) -> bool:
        marker = self.out / cell.folder / _DONE
        if cell.method.pending or not marker.is_file():
            return False
        stored = json.loads(marker.read_text(encoding="utf-8"))
        settings = cell.settings(self.protocol.hash)
        if stored["fingerprint"] != fingerprint(settings):
            changed = [k for k, v in settings.items() if stored["settings"].get(k) != v]
            raise StudyError(
                f"{marker.parent} was run with another {', '.join(changed)}: choose another --out, "
                "or delete that folder to run it again"
            )
        return True

    def _write_manifest(self) -> None:
        """What is about to be run and the protocol that will judge it, before anything is run."""
        manifest = {
            "study": dataclasses.asdict(self.study),
            "protocol": {"hash": self.protocol.hash, **self.protocol.content},
            "version": lm_eval_embednoise.__version__,
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": ["embednoise", *sys.argv[1:]],
        }
        text = json.dumps(manifest, indent=1, default=str, ensure_ascii=False)
        write_text(self.out / "study.json", text + "\n")

    def seconds(self) -> float:
        """Time that the finished runs took to generate and score, calibration left out."""
        markers = [self.out / cell.folder / _DONE for cell in self.cells]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in markers if path.is_file()]
        return float(sum(marker.get("seconds", 0.0) for marker in done))

    def _write(self, cell: Cell, results: dict[str, Any], seconds: float) -> None:
        """Write a cell's results under another name, then move them into place at once."""
        from lm_eval.loggers import EvaluationTracker

        info = results["config"]["embednoise"]
        with whole(self.out / cell.folder) as partial:
            tracker = EvaluationTracker(output_path=str(partial))
            # The model's name, not the object: the tracker deep-copies what it is given.
            tracker.general_config_tracker.log_experiment_args(
                model_source=cell.model.model,
                model_args=results["config"]["model_args"],
                system_instruction=cell.model.system_instruction,
                chat_template=info.pop("chat_template", None),
                fewshot_as_multiturn=bool(cell.model.apply_chat_template) and cell.model.multiturn,
            )
            tracker.general_config_tracker.model_name = cell.model.name
            samples = results.pop("samples")
            tracker.save_results_aggregated(results=results, samples=samples)
            for task, task_samples in samples.items():
                tracker.save_results_samples(task_name=task, samples=task_samples)
            files = [path for path in partial.rglob("*") if path.is_file()]
            if len(files) != 1 + len(samples):  # the tracker logs its errors and goes on
                raise StudyError(f"the results of {cell.folder} could not be written to {self.out}")
            for path in files:
                path.rename(partial / path.name)
            settings = cell.settings(self.protocol.hash)
            marker: dict[str, Any] = {"fingerprint": fingerprint(settings), "settings": settings}
            marker["seconds"] = round(seconds, 1)
            (partial / _DONE).write_text(json.dumps(marker, indent=1), encoding="utf-8")
            for folder in [path for path in partial.iterdir() if path.is_dir()]:
                shutil.rmtree(folder)
