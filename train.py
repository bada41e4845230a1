# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Train VMamba-YOLO.

Usage:
    python train.py                                    # learn to find handwritten digits: nothing to download
    python train.py data=their.yaml epochs=100         # your own data; datasets/README.md tells how to lay it out
    python train.py data=their.yaml device=0 epochs=300 batch=70 imgsz=640    # the recipe's run, AMP on
    python train.py data=their.yaml model=VMamba-yolov8s.yaml                 # sizes n s d m l x
    python train.py resume=runs/detect/train/weights/last.pt                  # go on after a stop

Any setting of Ultralytics can be given as key=value; 'yolo cfg' prints them all. What is not given:
    model     VMamba-yolov8n.yaml
    device    CUDA if there is one, else Apple's MPS, else the CPU with all its cores
    data      the digits, and with them the short run's settings below; they never apply to data that you give
    the rest  Ultralytics' own defaults
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent

# Settings -------------------------------------------------------------------------------------------------------------
# For every run, unless given
MODEL = "VMamba-yolov8n.yaml"

# For the digits only. Meant to show within 10 minutes on 2 CPU cores that the model learns, so everything here is about
# few, cheap steps; none of it is advice for other data.
DIGITS_RUN = {
    "data": str(ROOT / "datasets" / "digits.yaml"),
    # size of the run
    "imgsz": 128,  # the pictures' own size
    "epochs": 14,
    "batch": 8,
    "nbs": 8,  # one optimizer step per batch: with Ultralytics' 64 there would be too few
    "cache": True,  # 30 MB of pictures stay in memory
    # optimization
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1.0,
    "cls": 1.5,  # ten alike classes are learned later than the boxes
    # augmentation: mild, the pictures are crowded and varied already
    "fliplr": 0.0,  # a mirrored digit is no digit
    "mosaic": 0.0,
    "scale": 0.1,
    "translate": 0.05,
    "hsv_s": 0.3,
    "hsv_v": 0.2,
}
# ----------------------------------------------------------------------------------------------------------------------


def check_tree() -> None:
    """Make sure that `import ultralytics` brings this fork, and say so when it is another copy than the one beside us.

    Raises:
        SystemExit: If there is no Ultralytics, or one without the VMamba layers.
    """
    ours, setup = ROOT / "ultralytics", f"Run this once, then try again:\n    pip install -e {shell_quote(ROOT)}"
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:  # no origin: only this fork's own files lie there yet
        raise SystemExit(f"train.py: the Ultralytics files are not laid out in '{ours}' yet. {setup}")
    found = Path(spec.origin).resolve().parent
    if not (found / "nn" / "Addmodules" / "VMamba.py").is_file():
        raise SystemExit(
            f"train.py: Python imports the Ultralytics in '{found}', which has no VMamba layers; "
            f"this fork's is in '{ours}'. {setup}"
        )
    if found != ours.resolve():
        print(
            f"train.py: WARNING: Python imports the Ultralytics in '{found}', not the one beside this script; "
            f"changes made in '{ours}' have no effect. To use that one: pip install -e {shell_quote(ROOT)}",
            file=sys.stderr,
        )


def shell_quote(value: str | Path) -> str:
    """Quote a path for a command line; double quotes work in every shell, Windows' included."""
    return f'"{value}"' if " " in str(value) else str(value)


def parse_args(args: list[str]) -> dict[str, Any]:
    """Read key=value arguments as the `yolo` command does.

    Args:
        args (list[str]): Command-line arguments, without the program's name.

    Returns:
        (dict[str, Any]): The settings given, with Python values.

    Raises:
        SyntaxError: If an argument is not a setting of Ultralytics, or has no value.
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range.
        FileNotFoundError: If the file given as `cfg` does not exist.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, merge_equals_args, parse_key_value_pair
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    settings: dict[str, Any] = {}
    for arg in merge_equals_args(args):
        arg = arg.lstrip("-")
        key, _, value = (part.strip() for part in arg.partition("="))
        if key == "cfg" and value:  # a file of settings; those given on the command line count more
            settings = {**YAML.load(check_yaml(value)), **settings}
        elif value:
            settings.update([parse_key_value_pair(arg)])
        elif isinstance(DEFAULT_CFG_DICT.get(key), bool) and "=" not in arg:
            settings[key] = True  # 'resume' alone means resume=True
        elif key in DEFAULT_CFG_DICT:
            raise SyntaxError(f"'{key}' has no value: write {key}=VALUE, for example {key}={DEFAULT_CFG_DICT[key]}.")
        else:
            settings[key] = None  # not a setting; told below
    settings.pop("cfg", None)

    for key in settings:
        if key not in DEFAULT_CFG_DICT and key != "save_dir":
            near = difflib.get_close_matches(key, DEFAULT_CFG_DICT, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else "'yolo cfg' prints all settings."
            raise SyntaxError(f"'{key}' is not a setting of Ultralytics. {hint}")
    if settings.get("mode", "train") != "train":
        raise ValueError(f"'mode={settings['mode']}': this script only trains; use the command 'yolo' for the rest.")
    get_cfg(overrides=dict(settings))  # raises on wrong types and ranges, before anything is built or downloaded
    return settings


def complete(given: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that were not given.

    Args:
        given (dict[str, Any]): Settings from the command line.

    Returns:
        (dict[str, Any]): Settings to train with, `model` among them.

    Raises:
        FileNotFoundError: If the run to resume is not there.
    """
    import torch

    settings = dict(given)
    if settings.get("resume"):
        settings["model"] = find_checkpoint(settings)
        settings["resume"] = True
        return settings  # the rest is in the checkpoint
    if settings.get("data") is None:
        settings = {**DIGITS_RUN, **{k: v for k, v in settings.items() if k != "data"}}
    if settings.get("model") is None:
        settings["model"] = MODEL
    if settings.get("device") is None and not torch.cuda.is_available() and torch.backends.mps.is_available():
        settings["device"] = "mps"  # Ultralytics finds CUDA by itself, but takes MPS only when asked
    return settings


def find_checkpoint(settings: dict[str, Any]) -> str:
    """Find the checkpoint to resume from: the file named, or else the newest last.pt.

    Args:
        settings (dict[str, Any]): Settings given, `resume` among them.

    Returns:
        (str): Path of the checkpoint.

    Raises:
        FileNotFoundError: If there is none.
    """
    from ultralytics.utils import RUNS_DIR
    from ultralytics.utils.files import get_latest_run

    named = settings.get("model") if settings["resume"] is True else settings["resume"]
    if named is None:
        newest = get_latest_run(str(RUNS_DIR)) or get_latest_run()
        if newest:
            return newest
        raise FileNotFoundError(
            f"'resume=True', but there is no last.pt under '{RUNS_DIR}'. Name it: resume=path/to/weights/last.pt"
        )
    if not Path(named).is_file():
        raise FileNotFoundError(f"'resume={named}': there is no such file. Name the last.pt of the run to go on with.")
    return str(named)


def check_data(settings: dict[str, Any]) -> None:
    """Read the data YAML and build or download its images if need be, before a model is built and a run's folder made.

    Args:
        settings (dict[str, Any]): Settings to train with.

    Raises:
        SyntaxError: If the YAML lacks something.
        TypeError: If a value in it has the wrong type.
        FileNotFoundError: If it, or a folder that it names, does not exist.
    """
    from ultralytics.data.utils import check_det_dataset

    data = settings.get("data")
    if isinstance(data, str) and data.endswith((".yaml", ".yml")):  # others are for Ultralytics to tell apart
        check_det_dataset(data)


def use_all_cores(trainer: Any) -> None:
    """Let PyTorch use every core when training on the CPU; a callback for the start of training.

    When it selects the CPU, Ultralytics leaves one core out, and uses eight at most: of two cores, one.

    Args:
        trainer (Any): The trainer, its device selected.
    """
    import torch

    if trainer.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(cores)


def summarise(model: Any, metrics: Any, seconds: float) -> str:
    """Say in a few lines what came out of a run and what to do next.

    Args:
        model (ultralytics.YOLO): The trained model.
        metrics (Any): What `model.train` returned.
        seconds (float): How long it took.

    Returns:
        (str): The lines.
    """
    best, sources = model.trainer.best, model.trainer.data["val"]
    figures = metrics if isinstance(metrics, dict) else metrics.results_dict  # a dict after training on several GPUs
    lines = [f"\nTrained in {seconds / 60:.1f} minutes. Best model: {best}"]
    if found := [f"{k.removeprefix('metrics/')} {v:.3f}" for k, v in figures.items() if k.startswith("metrics/mAP")]:
        lines.append(f"On the validation images: {', '.join(found)}")
    source = sources[0] if isinstance(sources, list) else sources
    lines.append("See what it finds there:")
    lines.append(f"    yolo {model.task} predict model={shell_quote(best)} source={shell_quote(source)}")
    return "\n".join(lines)


def main(args: list[str]) -> None:
    """Train as the arguments say.

    Args:
        args (list[str]): Command-line arguments, without the program's name.
    """
    if {"-h", "--help", "help"} & set(args):
        print(__doc__ + "\nThe short run on the digits:\n   ", " ".join(f"{k}={v}" for k, v in DIGITS_RUN.items()))
        return
    check_tree()
    threads_chosen = "OMP_NUM_THREADS" in os.environ  # by the user: Ultralytics is not imported yet
    try:
        settings = complete(parse_args(args))
        check_data(settings)
    except (SyntaxError, TypeError, ValueError, OSError) as e:
        raise SystemExit(f"train.py: {e}\nRun 'python train.py --help' for examples.") from None

    from ultralytics import YOLO

    start = time.time()
    model = YOLO(settings.pop("model"), task=settings.pop("task", None))
    if not threads_chosen:
        model.add_callback("on_train_start", use_all_cores)
    try:
        metrics = model.train(**settings)
    except FileNotFoundError as e:  # of images or weights; Ultralytics hides the better message behind a general one
        raise SystemExit(f"train.py: {e.__cause__ or e}") from None
    print(summarise(model, metrics, time.time() - start))


if __name__ == "__main__":  # Windows starts loader processes by importing this file anew
    main(sys.argv[1:])
