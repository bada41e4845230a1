# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a comparison is asked to do, and the settings of Ultralytics that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from ..key_value import UsageError, near

__all__ = ("Plan", "Seeds", "check_plan", "label", "read_models", "read_seeds", "read_settings", "safe")

Seeds = tuple[int, ...]
MANAGED = {  # settings of Ultralytics that would break a comparison, or that it sets itself: what to do instead
    "model": "give models=",
    "seed": "give seeds=",
    "mode": "it trains and validates",
    "task": "the models' own task is taken",
    "resume": "give the same command again to go on",
    "cfg": "give its settings one by one",
    "time": "it would give each model another number of epochs",
    "split": "give report_on=val or report_on=test",
    "val": "every epoch is validated",
    "save": "the weights are needed",
    "save_dir": "give project= and name=",
    "exist_ok": "a folder of the same settings is gone on with, others are never touched",
    "plots": "it draws its own figures",
    "verbose": "each run has its log.txt",
}


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        models (dict[str, str]): Model files by the names that tables show; the others are compared to the first.
        data (str): As Ultralytics takes it: a YAML, or a folder for classification.
        seeds (tuple[int, ...]): One training of each model a seed.
        device (str): One device for all: cpu, 0, mps; the first GPU, or else the CPU, where it is empty.
        jobs (int): Runs side by side, on a CPU.
        report_on (str): Split of the reported figures: val or test; test where the data have one, if empty.
        checkpoint (str): Weights of the reported figures: best or last; best for test and last for val, if empty.
        speed (bool): Take times of a picture after all training.
        project (str): Folder for comparisons; `compare` folders lie directly in the runs folder, if empty.
        name (str): Folder of this one; where it is empty, that of an equal comparison, or else a new one.
        settings (dict): Settings of Ultralytics for all trainings: epochs, imgsz, batch, optimizer, ...
    """

    models: dict[str, str]
    data: str
    seeds: Seeds = (0, 1, 2)
    device: str = ""
    jobs: int = 1
    report_on: str = ""
    checkpoint: str = ""
    speed: bool = True
    project: str = ""
    name: str = ""
    settings: dict = field(default_factory=dict)

    @classmethod
    def read(cls, args: SimpleNamespace) -> Plan:
        """Return the plan of a command line.

        Raises:
            UsageError: If a setting is unknown, managed or out of its range, or models share a name.
        """
        taken = ("others", "models", "epochs", "imgsz")
        own = {key: value for key, value in vars(args).items() if key not in taken and value is not None}
        settings = {"epochs": args.epochs} | ({"imgsz": args.imgsz} if args.imgsz else {})
        return cls(models=read_models(args.models), settings=settings | read_settings(args.others, vars(args)), **own)


MOST_SEEDS = 1000  # a comparison of more would not end


def read_seeds(text: str) -> Seeds:
    """Read a count of seeds, or seeds with commas between them; `[7]` is the seed 7 alone.

    Examples:
        >>> read_seeds("3"), read_seeds("4,5"), read_seeds("[7]")
        ((0, 1, 2), (4, 5), (7,))
    """
    expected = "a count, as in 3, or a list, as in 0,1,2 or [7]"
    numbers = [n.strip() for n in text.strip("[]() ").split(",") if n.strip()]
    if not numbers or not all(n.isdecimal() for n in numbers):
        raise ValueError(expected)
    if len(numbers) == 1 and text.strip()[:1] not in "[(" and "," not in text:
        if not 1 <= int(numbers[0]) <= MOST_SEEDS:
            raise ValueError(f"{expected}, of at most {MOST_SEEDS}")
        return tuple(range(int(numbers[0])))
    return check_seeds(tuple(map(int, numbers)))


def check_seeds(seeds: Seeds) -> Seeds:
    """Return seeds that can be used.

    Raises:
        ValueError: If they cannot; it says what is expected.
    """
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError("whole numbers from 0 on")
    if len(seeds) > MOST_SEEDS or max(seeds) >= 2**31:
        raise ValueError(f"at most {MOST_SEEDS} seeds below {2**31}")  # NumPy takes 32 bits
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds of which none stands twice")
    return seeds


def label(file: str) -> str:
    """Return a model's name where none is given: its run's folder for best.pt and last.pt.

    Examples:
        >>> label("runs/detect/mine/weights/best.pt"), label("yolov8n.yaml")
        ('mine', 'yolov8n')
    """
    path = Path(file)
    if path.parent.name == "weights" and path.stem in {"best", "last"}:
        return path.absolute().parents[1].name
    return path.stem


def read_models(items: list[str]) -> dict[str, str]:
    """Return files by name, from items `FILE` and `NAME=FILE`.

    Raises:
        UsageError: If names coincide, also as names of folders.
    """
    models: dict[str, str] = {}
    for item in items:
        name, equals, file = item.partition("=") if not Path(item).exists() else (item, "", "")
        name, file = (name.strip(), file.strip()) if equals else (label(item), item)
        if not name or not file:
            raise UsageError(f"vmamba compare: '{item}' in models= must be FILE or NAME=FILE")
        if name in models:
            text = f"two models are called '{name}'; name them: models=a={models[name]},b={file}"
            raise UsageError(f"vmamba compare: {text}")
        models[name] = file
        check_names(models)
    return models


def check_names(models: dict[str, str]) -> None:
    """Raise where two names of models would be one name of a folder, on Windows and macOS too.

    Raises:
        UsageError: If so.
    """
    folders: dict[str, str] = {}
    for name, file in models.items():
        other = folders.setdefault(safe(name).casefold(), name)
        if other != name:
            text = f"the models' names '{other}' and '{name}' would be one name of a folder"
            raise UsageError(f"vmamba compare: {text}; give others: models=a={models[other]},b={file}")


def safe(name: str) -> str:
    """Return a name as one for files on every system."""
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "_"


def read_settings(texts: dict[str, str], own: dict) -> dict:
    """Return settings of Ultralytics from their texts.

    Args:
        texts (dict[str, str]): Values by key, as written on the command line.
        own (dict): The command's own settings, for hints.

    Raises:
        UsageError: If one is unknown, managed by the comparison or not what Ultralytics takes.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT, smart_value

    settings = {key: smart_value(text) if key in DEFAULT_CFG_DICT else text for key, text in texts.items()}
    check_settings(settings, own)
    return settings


def check_plan(plan: Plan) -> None:
    """Raise where a plan cannot be meant, however it was made.

    Raises:
        UsageError: If models would share a folder, or a setting is unknown, managed by the comparison or out of its
            range.
    """
    check_names(plan.models)
    try:
        check_seeds(plan.seeds)
    except ValueError as e:
        raise UsageError(f"vmamba compare: seeds={plan.seeds} must be {e}") from e
    for key, count in (("jobs", plan.jobs), ("epochs", plan.settings.get("epochs", 100))):
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"vmamba compare: {key}={count} must be a whole number from 1 on")
    for key, taken in (("report_on", ("val", "test")), ("checkpoint", ("best", "last"))):
        if getattr(plan, key) not in ("", *taken):
            raise UsageError(f"vmamba compare: {key}={getattr(plan, key)} must be {' or '.join(taken)}")
    for key in vars(plan).keys() & plan.settings.keys():
        raise UsageError(f"vmamba compare: '{key}' must stand beside settings, as in Plan(..., {key}=...)")
    check_settings(plan.settings, vars(plan))


def check_settings(settings: dict, own: Iterable[str]) -> None:
    """Raise where Ultralytics does not take a setting, or it would give models different trainings.

    Args:
        settings (dict): Of Ultralytics.
        own (Iterable[str]): The comparison's own settings, for hints.

    Raises:
        UsageError: If one is unknown, managed by the comparison or not what Ultralytics takes.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg

    known = [key for key in DEFAULT_CFG_DICT if key not in MANAGED]
    for key in settings:
        if key in MANAGED:
            raise UsageError(f"vmamba compare: '{key}' cannot be set: {MANAGED[key]}")
        if key not in known:
            hint = near(key, [*own, *known]) or "; `vmamba compare help` and `yolo cfg` list what it takes"
            raise UsageError(f"vmamba compare: there is no setting '{key}'{hint}")
    try:
        get_cfg(overrides=dict(settings))
    except (TypeError, ValueError, SyntaxError) as e:
        raise UsageError(f"vmamba compare: {' '.join(str(e).split())}") from e
    batch = settings.get("batch", 16)
    if isinstance(batch, float) or (isinstance(batch, int) and batch < 1):
        raise UsageError(
            f"vmamba compare: batch={batch} would give each model another batch size; give a number, as in 16"
        )
