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
    device    CUDA if there is one, else Apple's MPS, else the CPU
    data      the digits, and with them the short run's settings below; they never apply to data that you give
    the rest  Ultralytics' own defaults
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent

# Settings -------------------------------------------------------------------------------------------------------------
# For every run, unless given
MODEL = "VMamba-yolov8n.yaml"
STRONGER = (
    "This is the recipe's model. In docs/study.md VMamba-yolon.yaml gave more from scratch. With few pictures, start "
    "from pretrained weights: docs/starting-weights.md."
)

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
    """Make sure that `import ultralytics` brings this fork; say so when it is another copy than the one beside us."""
    ours, setup = ROOT / "ultralytics", f"Run this once, then try again:\n    pip install -e {quoted(ROOT)}"
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:  # no origin: only this fork's own files lie there yet
        raise SystemExit(f"train.py: the Ultralytics files are not laid out in '{ours}' yet. {setup}")
    found = Path(spec.origin).resolve().parent
    if not (found / "nn/Addmodules/VMamba.py").is_file():
        raise SystemExit(
            f"train.py: Python imports the Ultralytics in '{found}', which has no VMamba layers; "
            f"this fork's is in '{ours}'. {setup}"
        )
    if found != ours.resolve():
        print(
            f"train.py: WARNING: Python imports the Ultralytics in '{found}', not the one beside this script; "
            f"changes made in '{ours}' have no effect. To use that one: pip install -e {quoted(ROOT)}",
            file=sys.stderr,
        )


def quoted(path: str | Path) -> str:
    """Quote a path for a command line as tools/key_value.py does, which cannot be imported before the installation."""
    if os.name == "nt":
        return str(path) if re.fullmatch(r"[\w./\\:+@%-]+", str(path)) else f'"{path}"'
    return str(path) if re.fullmatch(r"[\w./:+@%-]+", str(path)) else shlex.quote(str(path))


def read(args: list[str]) -> dict[str, Any]:
    """Return the settings that key=value arguments give, read and checked by Ultralytics before anything is built."""
    from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, merge_equals_args, parse_key_value_pair
    from ultralytics.nn.Addmodules.tools.key_value import near
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    pairs = [arg.lstrip("-") for arg in merge_equals_args(args) if arg != "train"]  # as `yolo train` has it
    for key in pairs:
        if key in DEFAULT_CFG_DICT and not isinstance(DEFAULT_CFG_DICT[key], bool):  # `resume` alone is resume=True
            raise SyntaxError(f"'{key}' has no value: write {key}=VALUE, for example {key}={DEFAULT_CFG_DICT[key]}")
    settings = dict(parse_key_value_pair(pair if "=" in pair else f"{pair}=True") for pair in pairs)
    if file := settings.pop("cfg", None):  # a file of settings; those given on the command line count more
        settings = {**YAML.load(check_yaml(file)), **settings}
    for key in settings:
        if key not in DEFAULT_CFG_DICT and key != "save_dir":
            hint = near(key, DEFAULT_CFG_DICT) or "; 'yolo cfg' prints all settings"
            raise SyntaxError(f"'{key}' is not a setting of Ultralytics{hint}")
    if settings.get("mode", "train") != "train":
        raise ValueError(f"'mode={settings['mode']}': this script only trains; use the command 'yolo' for the rest")
    get_cfg(overrides=dict(settings))
    return settings


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings to train with, `model` among them: those given, and defaults for the rest."""
    import torch

    if settings.get("resume"):
        return {**settings, "model": last_checkpoint(settings), "resume": True}  # the rest is in the checkpoint
    if settings.get("data") is None:
        settings = {**DIGITS_RUN, **{k: v for k, v in settings.items() if k != "data"}}
    if settings.get("model") is None:
        settings = {**settings, "model": MODEL}
    if settings.get("device") is None and not torch.cuda.is_available() and torch.backends.mps.is_available():
        settings = {**settings, "device": "mps"}  # Ultralytics finds CUDA by itself, but takes MPS only when asked
    return settings


def last_checkpoint(settings: dict[str, Any]) -> str:
    """Return the checkpoint to resume from: the file named, or else the newest last.pt."""
    from ultralytics.utils import RUNS_DIR
    from ultralytics.utils.files import get_latest_run

    named = settings.get("model") if settings["resume"] is True else settings["resume"]
    found = named or get_latest_run(str(RUNS_DIR)) or get_latest_run()
    if not found:
        raise FileNotFoundError(f"there is no last.pt under '{RUNS_DIR}'; name it: resume=path/to/weights/last.pt")
    from ultralytics.nn.Addmodules.tools.resume import resumable

    return resumable(str(found))


def summary(model: Any, metrics: Any, seconds: float) -> str:
    """Return what came out of a run and what to do next, in a few lines."""
    best, source = model.trainer.best, model.trainer.data["val"]
    figures = metrics if isinstance(metrics, dict) else metrics.results_dict  # a dict after training on several GPUs
    lines = [f"\nTrained in {seconds / 60:.1f} minutes. Best model: {best}"]
    if found := [f"{k.removeprefix('metrics/')} {v:.3f}" for k, v in figures.items() if k.startswith("metrics/mAP")]:
        lines.append(f"On the validation images: {', '.join(found)}")
    source = source[0] if isinstance(source, list) else source
    command = f"yolo {model.task} predict model={quoted(best)} source={quoted(source)}"
    return "\n".join([*lines, "See what it finds there:", f"    {command}"])


def main(args: list[str]) -> None:
    """Train as the arguments say."""
    if {"-h", "--help", "help"} & set(args):
        print(__doc__ + "\nThe short run on the digits:\n   ", " ".join(f"{k}={v}" for k, v in DIGITS_RUN.items()))
        return
    check_tree()
    from ultralytics.nn.Addmodules.hooks.failures import sentence
    from ultralytics.nn.Addmodules.selective_scan.registry import forced

    try:
        forced()  # a VMAMBA_BACKEND that there is not is refused before anything is read
        train(complete(read(args)))
    except (AssertionError, LookupError, SyntaxError, TypeError, ValueError, OSError, RuntimeError) as e:
        said = sentence(e)
        if said is None:  # a bug
            raise
        raise SystemExit(f"train.py: {said}\nRun 'python train.py --help' for examples.") from None
    except KeyboardInterrupt:
        from ultralytics.nn.Addmodules.tools.resume import stopped

        print(f"\ntrain.py: {stopped('python train.py resume=')}", file=sys.stderr)
        raise SystemExit(130) from None


def train(settings: dict[str, Any]) -> None:
    """Train with complete settings, and print what came out."""
    if str(settings.get("data")).endswith((".yaml", ".yml")):  # others are for Ultralytics to tell apart
        from ultralytics.data.utils import check_det_dataset

        try:
            check_det_dataset(settings["data"])  # built or downloaded if need be, before a run's folder is made
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            from ultralytics.nn.Addmodules.hooks.failures import sentence

            if sentence(e) is not None:
                raise
            file = settings["data"]  # a file of a form that Ultralytics does not expect, as letters for class numbers
            raise ValueError(f"'data={file}' is no data file: {type(e).__name__}: {e}") from None
    from ultralytics import YOLO

    start, file, task = time.time(), settings.pop("model"), settings.pop("task", None)
    try:
        model = YOLO(file, task=task)
    except KeyError as e:
        if task is None:
            raise
        needs = f"the model file lacks {e}, which that task needs; leave task= out, or name a model of that task"
        raise ValueError(f"'task={task}': {needs}") from None
    print(summary(model, model.train(**settings), time.time() - start))
    if file == MODEL:
        print(STRONGER)


if __name__ == "__main__":  # Windows starts loader processes by importing this file anew
    main(sys.argv[1:])
