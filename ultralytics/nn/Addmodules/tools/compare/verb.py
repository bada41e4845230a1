# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba compare`: checks first, then start files, runs, times, and what is made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from ..key_value import UsageError
from ..report_rows import emit
from .plan import Plan, check_plan

__all__ = ("compare", "run")

COMMAND = "vmamba compare"
OLDER = "it was begun by an older version of this command, whose runs saw the pictures in another order"


def run(args: SimpleNamespace) -> int:
    """Run a comparison from a command line.

    Args:
        args (SimpleNamespace): The options of the verb, and `others`, the texts of Ultralytics' settings.

    Returns:
        (int): Exit status: 0 if all runs are done, 1 if one failed, 130 after Ctrl-C.
    """
    job = Job(Plan.read(args), emit)
    try:
        comparison = job.compare()
    except KeyboardInterrupt:
        print(f"{COMMAND}: {job.stopped()}", file=sys.stderr)
        return 130
    return 0 if all(r.done for r in comparison.runs) else 1


def compare(plan: Plan, say: Callable[[str], None] = emit) -> Path:
    """Run a comparison, or go on with it, and return its folder; `results.Comparison.read` reads that.

    Args:
        plan (Plan): What to compare.
        say (Callable[[str], None]): Takes a line of progress.

    Raises:
        ValueError: If something is wrong with the plan; nothing has been written then.
        OSError: If a file is missing or the disk is full.
    """
    return Job(plan, say).compare().folder


class Job:
    """A comparison on its way."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Keep what is to be done, and whom to tell."""
        self.plan, self.say = plan, say
        self.folder: Path | None = None

    def compare(self):
        """Do all of it and return the Comparison."""
        from ..data import read_once
        from .checks import check_data, check_disk, check_freeze, check_models, check_training, device_of
        from .results import SETTINGS, Comparison, write_json, write_runs
        from .schedule import locked, run_all
        from .start import check_weights

        try:
            check_plan(self.plan)
        except UsageError as e:
            raise ValueError(str(e)) from e
        device = device_of(self.plan)
        self.subjects = check_models(self.plan)
        self.data = check_data(self.plan, self.subjects[0])
        self.digests = {
            f"{key}_digest": found
            for key in ("pretrained", "distill_model")
            if (found := check_weights(self.plan.settings, key))
        }
        check_freeze(self.plan.settings.get("freeze"), self.subjects)
        check_training(self.plan.settings, min(self.subjects, key=lambda s: len(s.model.model)), self.data)
        settings = self.settings(device)
        folder, known = self.place(settings)
        if not known:
            parameters = [sum(p.numel() for p in s.model.parameters()) for s in self.subjects]
            check_disk(folder, parameters, len(self.plan.seeds))
            read_once(self.data, settings["task"], settings["train"])
            folder.mkdir(parents=True)
            write_json(folder / SETTINGS, settings)
        self.folder = folder
        comparison = Comparison.read(folder)
        with locked(folder):
            left = sum(not r.over for r in comparison.runs)
            self.say(f"{COMMAND}: {len(comparison.runs)} runs in {folder}" + (f", {left} to go" if known else ""))
            if left:
                self.tell_of_heads()
                self.tell_of_maps()
                self.prepare(comparison)
                try:
                    run_all(comparison, self.plan.jobs, self.prepare_run, self.say)
                finally:
                    write_runs(comparison)
            self.finish(comparison)
        return comparison

    def tell_of_heads(self) -> None:
        """Say which weights are of other classes, so that their models get a new class branch."""
        if self.plan.settings.get("pretrained", True) is True:
            for subject in self.subjects:
                own, wanted = len(getattr(subject.model, "names", ())), len(self.data.names)
                if subject.trained and own != wanted:
                    self.say(f"{subject.name} has {own} classes, the data {wanted}: it gets a new class output")

    def tell_of_maps(self) -> None:
        """Say how many pictures are left out, for want of a mask or depth map."""
        for split, missing in self.data.without.items():
            if missing:
                every = missing + self.data.images[split]
                self.say(f"WARNING: {missing} of {every} pictures of the {split} split have no map and are left out")

    def settings(self, device: str) -> dict:
        """Return what must be the same for a folder to be gone on with."""
        from .results import PROCEDURE

        plan, task = self.plan, self.subjects[0].model.task
        train = {"epochs": 100, "imgsz": 224 if task == "classify" else 640, "batch": 16, "nbs": 64} | plan.settings
        for key in ("pretrained", "distill_model"):
            if isinstance(train.get(key), (str, Path)):
                train[key] = str(train[key])
        report_on = plan.report_on or ("test" if "test" in self.data.images else "val")
        return {
            "data": self.data.file,
            "task": task,
            "classes": list(self.data.names.values()),
            "images": self.data.images,
            "models": {s.name: {"file": s.place, "trained": s.trained, "digest": s.digest} for s in self.subjects},
            "seeds": list(plan.seeds),
            "device": device,
            "report_on": report_on,
            "checkpoint": plan.checkpoint or ("best" if report_on == "test" else "last"),
            "train": train,
            **self.digests,
            "procedure": PROCEDURE,
        }

    def place(self, settings: dict) -> tuple[Path, bool]:
        """Return the folder, and whether it is gone on with.

        Raises:
            ValueError: If the folder that `name` means holds something else.
        """
        from ultralytics.utils import RUNS_DIR
        from ultralytics.utils.files import increment_path

        from .results import SETTINGS, read_json

        # Absolute: Ultralytics' trainer takes a relative one as a folder of its runs folder
        project = Path(self.plan.project or RUNS_DIR).expanduser().absolute()
        if self.plan.name:
            folder = project / self.plan.name
            if not folder.exists():
                return folder, False
            old = read_json(folder / SETTINGS)
            if old is None:
                raise ValueError(f"'{folder}' exists and holds no comparison; give another name=")
            if difference := differs(folder, old, settings):
                raise ValueError(f"'{folder}' has other settings: {difference}; give another name=")
            return folder, True
        for folder in sorted(project.glob("compare*"), key=lambda p: p.stat().st_mtime, reverse=True):
            if isinstance(old := read_json(folder / SETTINGS), dict):
                if not (difference := differs(folder, old, settings)):
                    return folder, True
                if difference == OLDER:
                    self.say(f"{folder} is not gone on with: {OLDER}")
        return increment_path(project / "compare"), False

    def prepare(self, comparison) -> None:
        """Write sizes of the models."""
        from ultralytics.utils.torch_utils import get_flops

        from ..upstream import quiet
        from .results import MODELS, write_json
        from .start import build

        if not comparison.models:
            found, imgsz = {}, comparison.settings["train"]["imgsz"]
            for subject in self.subjects:
                model = build(subject, self.data, self.plan.settings, 0).model
                with quiet():
                    gflops = get_flops(model, imgsz)
                parameters = sum(p.numel() for p in model.parameters())
                trained_on = str(subject.args.get("data") or "")
                found[subject.name] = {"parameters": parameters, "gflops": round(gflops, 3), "trained_on": trained_on}
            write_json(comparison.folder / MODELS, found)

    def prepare_run(self, run) -> int | None:
        """Write a run's start file and what it is told; return its threads."""
        from .checks import frozen
        from .results import MACHINE, MODELS, RUN, Comparison, environment, write_json
        from .start import build, equalize, save

        comparison = Comparison.read(self.folder)
        settings = comparison.settings
        run.folder.mkdir(parents=True, exist_ok=True)
        file = comparison.start_file(run.model, run.seed)
        if not file.exists():
            starts = [build(s, self.data, self.plan.settings, run.seed) for s in self.subjects]
            equal = equalize(starts)
            for subject, start in zip(self.subjects, starts):
                if not (target := comparison.start_file(subject.name, run.seed)).exists():
                    save(start.model, target)
            models = comparison.models
            for subject, (common, same) in zip(self.subjects, equal):
                models[subject.name] |= {"common": common, "equal": same}
            write_json(comparison.folder / MODELS, models)
        threads = threads_of(self.plan.jobs)
        fixed = {"seed": run.seed, "deterministic": True, "pretrained": True, "plots": False, "val": True, "save": True}
        train = {**settings["train"], **fixed, "data": settings["data"], "device": settings["device"], "verbose": False}
        train.setdefault("single_cls", False)  # a .pt brings its own
        if "freeze" in train:
            train["freeze"] = frozen(train["freeze"], next(s.model for s in self.subjects if s.name == run.model))
        now, old = environment(settings["device"], threads), run.job if run.epochs else {}
        mixed = {key for key in MACHINE if old and key in now and old["about"].get(key) != now[key]}
        job = {
            "start": str(file),
            "seed": run.seed,
            "threads": threads,
            "train": train,
            "report": {"on": settings["report_on"], "checkpoint": settings["checkpoint"]},
            "about": old.get("about", now),
            "mixed": sorted({*old.get("mixed", ()), *mixed}),
        }
        write_json(run.folder / RUN, job)
        return threads if settings["device"] == "cpu" else None

    def finish(self, comparison) -> None:
        """Measure times, write tables and figures, and say what came out."""
        from .figures import draw
        from .remarks import remarks
        from .results import write_runs
        from .tables import write_tables

        timed = comparison.speed.get("models", {})
        if self.plan.speed and any(r.done and r.model not in timed for r in comparison.runs):
            self.say("all training is over: times of a picture, models in turns")
            self.measure(comparison)
        write_runs(comparison)
        text = write_tables(comparison, remarks(comparison))
        drawn = draw(comparison)
        self.say(f"\n{text}")
        self.say(f"Saved in {comparison.folder}: runs.csv, table.md, table.csv, table.tex, {', '.join(drawn)}")

    def measure(self, comparison) -> None:
        """Have times measured by a process of its own; without them, tables have none."""
        from .results import write_json
        from .schedule import start_process, stop

        settings = comparison.settings
        done = {r.model: r for r in reversed(comparison.runs) if r.done}
        files = {
            n: str(done[n].folder / "weights" / f"{settings['checkpoint']}.pt") for n in comparison.names if n in done
        }
        asked = {
            "files": files,
            "imgsz": done[next(iter(files))].result["effective"]["imgsz"],
            "channels": self.data.channels,
            "device": settings["device"],
            "threads": threads_of(1),
        }
        write_json(comparison.folder / "speed-asked.json", asked)
        process = start_process(
            "measure", comparison.folder / "speed-asked.json", comparison.folder / "speed.log", asked["threads"]
        )
        try:
            if process.wait():
                self.say(f"times could not be measured; see {comparison.folder / 'speed.log'}")
        finally:
            stop([process])

    def stopped(self) -> str:
        """Return the line that a user sees after Ctrl-C."""
        from .results import Comparison

        if self.folder is None:
            return "stopped; nothing has been trained yet"
        runs = Comparison.read(self.folder).runs
        done = sum(r.done for r in runs)
        return f"stopped with {done} of {len(runs)} runs done; give the same command again to go on in {self.folder}"


def differs(folder: Path, old: dict, settings: dict) -> str:
    """Return why a comparison cannot be gone on with under these settings, as text; empty if it can.

    One that an older version of this command finished is shown as it is; one that it began is left to that version.

    Args:
        folder (Path): Of the comparison.
        old (dict): Its settings.
        settings (dict): Those that are asked for.
    """
    from .results import PROCEDURE, Comparison, first_difference

    if old.get("procedure") != PROCEDURE and {"models", "seeds", "device"} <= old.keys():
        old = {**old, "device": "0" if old["device"] == "cuda" else old["device"], "procedure": PROCEDURE}
        old |= {key: value for key, value in settings.items() if key == "distill_model_digest" and key not in old}
        if not first_difference(old, settings) and not all(run.over for run in Comparison(folder, old).runs):
            return OLDER
    return first_difference(old, settings)


def threads_of(jobs: int) -> int:
    """Return the threads of a run on a CPU: those that the user chose, one if others run beside it, or all cores."""
    from ...hooks.threads import chosen_threads, cores_here

    return chosen_threads() or (1 if jobs > 1 else cores_here())
