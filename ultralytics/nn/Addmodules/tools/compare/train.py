# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""One run, in a process of its own: `python -m ultralytics.nn.Addmodules.tools.compare.train FOLDER`.

What goes wrong here, a crash or memory that runs out, takes no other run with it.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from ...layers.graft import Graft
from ..files import in_one_step
from ..upstream import offline, one_line
from .results import EPOCHS, RESULT, RUN, Run, read_json, write_json

__all__ = ("figures", "main")

KEPT = "kept-last.pt", "kept-best.pt"  # whole copies of last.pt and best.pt, which upstream overwrites in place
KNOWN = "known.json"  # of a run that is not over: time, memory and settings as they were
THEN = ", then "  # between the scans of a run that went on with another
EFFECTIVE = ("epochs", "imgsz", "batch", "nbs", "optimizer", "lr0")  # upstream may change them


class NotFinite(RuntimeError):
    """The loss is no number any more; training again from the same start gives the same."""


def main(folder: Path) -> int:
    """Train, evaluate and write result.json; go on where the run was cut short.

    Args:
        folder (Path): Of the run, with its run.json.

    Returns:
        (int): Exit status: 0 if it is done, 1 if it failed and says why.
    """
    job = read_json(folder / RUN)
    training = Training(folder, job)
    try:
        with offline():
            training.run()
            result = {"status": "done", "reason": "", **evaluate(folder, job)}
    except Exception as e:
        traceback.print_exc()
        text = one_line(e)
        final = isinstance(e, NotFinite) or "NaN" in text
        reason = f"out of memory: {text}" if "out of memory" in text.lower() or isinstance(e, MemoryError) else text
        result = {"status": "failed", "reason": reason[:300], "final": final}
    known = read_json(folder / KNOWN) or {}
    seconds = known.pop("seconds", 0) + time.perf_counter() - training.begin
    write_json(folder / RESULT, {**result, **known, "seconds": round(seconds, 1)})
    if result["status"] == "done":  # only now: until then the run can go on from these
        for file in (folder / KNOWN, *(training.weights / name for name in KEPT)):
            file.unlink(missing_ok=True)
    return 0 if result["status"] == "done" else 1


class Training:
    """A training whose epochs are written down, and that can be cut short at any time."""

    def __init__(self, folder: Path, job: dict) -> None:
        """Say which run of which folder."""
        self.folder, self.job, self.weights = folder, job, folder / "weights"
        self.asked = job["train"]
        self.clock: dict[str, float] = {}
        self.norms: Norms | None = None
        self.trained = False
        self.begin = time.perf_counter()

    def run(self) -> None:
        """Train from the start file or the last epoch that is whole; do nothing if all epochs are there."""
        from ultralytics import YOLO

        rows, kept = self.rows(), self.weights / KEPT[0]
        trained = epoch_of(kept) if kept.exists() else 0
        if not {*range(1, trained + 1)} <= {row["epoch"] for row in rows}:
            trained = 0  # an epoch of these weights is not written down, as after a loss of power: it begins anew
        # Killed between the two, it wrote the last epoch down and has the weights of the one before: that is resumed
        if trained and rows[-1]["last"] and trained == rows[-1]["epoch"]:
            self.restore()
            return
        given = {**self.asked, "save_dir": str(self.folder)}
        if trained:
            self.restore()
            model, given["resume"] = YOLO(kept), str(kept)
        else:
            for name in (EPOCHS, KNOWN):
                (self.folder / name).unlink(missing_ok=True)
            model = YOLO(self.job["start"])
        for event in ("on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_fit_epoch_end"):
            model.add_callback(event, getattr(self, event))
        model.train(**given)

    def rows(self) -> list[dict]:
        """Return the epochs that are written down."""
        return Run(self.folder, "", 0).epochs

    def restore(self) -> None:
        """Put whole copies where upstream's own files may have been cut short."""
        for name in KEPT:
            if (self.weights / name).exists():
                shutil.copyfile(self.weights / name, self.weights / name.removeprefix("kept-"))

    def on_train_start(self, trainer) -> None:
        """Take the threads that all runs take, and leave out upstream's last validation of best.pt."""
        if trainer.device.type == "cpu":
            torch.set_num_threads(self.job["threads"])
        elif trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.final_eval = lambda: None
        self.norms = Norms(trainer.model)

    def on_train_epoch_start(self, trainer) -> None:
        """Seed order and augmentation by seed and epoch: whatever a model drew before, and also after a stop.

        Mosaics alone remember: they take pictures that were read lately, and after a stop there are none at first.
        """
        seed = (self.job["seed"] * 100_003 + trainer.epoch) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if trainer.train_loader.num_workers == 0:
            # Upstream's iterator goes on for ever and draws a number as it begins, so a run that was stopped would have
            # drawn one more
            trainer.train_loader.reset()
            trainer.train_loader.generator.manual_seed(seed)
        self.clock = {"wall": time.perf_counter(), "cpu": time.process_time()}

    def on_train_epoch_end(self, trainer) -> None:
        """Stop the clock; refuse what upstream changed by itself."""
        self.clock = {"wall": time.perf_counter() - self.clock["wall"], "cpu": time.process_time() - self.clock["cpu"]}
        self.trained = True
        if trainer.batch_size != self.asked["batch"]:
            raise MemoryError(
                f"batch={self.asked['batch']} does not fit, Ultralytics went down to {trainer.batch_size}; "
                "give a smaller batch= for all"
            )

    def on_fit_epoch_end(self, trainer) -> None:
        """Write an epoch down, then keep whole copies of its weights."""
        if not self.trained:
            return
        self.trained = False
        losses = {key: float(value) for key, value in trainer.metrics.items() if key.startswith("val/")}
        val_loss = sum(losses.values())
        if not (trainer.loss.isfinite().all() and math.isfinite(val_loss)):
            raise NotFinite(f"the loss is not finite (NaN or infinite) in epoch {trainer.epoch + 1}")
        items = {f"train/{key}": round(float(value), 5) for key, value in trainer.tloss.items()}
        row = {
            "epoch": trainer.epoch + 1,
            "train_seconds": round(self.clock["wall"], 3),
            "train_cpu_seconds": round(self.clock["cpu"], 3),
            **{key: round(value, 6) for key, value in figures(trainer.validator.metrics).items()},
            "val_loss": round(val_loss, 5),
            "train_loss": round(sum(items.values()), 5),
            **self.norms.take(),
            **losses,
            **items,
            "last": bool(trainer.stop),
        }
        append(self.folder / EPOCHS, json.dumps(row))  # on the disk before the weights that belong to it
        for name in reversed(KEPT):  # last.pt knows how good best.pt is, and is what a training goes on from
            copy(self.weights / name.removeprefix("kept-"), self.weights / name)
        self.note(trainer)

    def note(self, trainer) -> None:
        """Write down what holds of the whole run so far."""
        before, now = read_json(self.folder / KNOWN) or {}, time.perf_counter()
        used = {key: getattr(trainer.args, key) for key in EFFECTIVE}
        scans = dict.fromkeys([*filter(None, before.get("scan", "").split(THEN)), scan_backend(trainer.device)])
        write_json(
            self.folder / KNOWN,
            {
                "effective": {**used, "amp": bool(trainer.amp)},
                "scan": THEN.join(scans),
                "memory_mb": max(before.get("memory_mb", 0), round(peak_memory(trainer.device) / 1e6, 1)),
                "seconds": before.get("seconds", 0) + now - self.begin,
            },
        )
        self.begin = now


class Norms:
    """Norms of the gradients of an epoch's steps, as upstream clips them.

    Upstream cuts the gradient of all parameters together to a norm of 10. So large gradients of one part of a model
    make the steps of the rest smaller.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Listen to the function that clips, in this process."""
        self.seen: list[tuple[torch.Tensor, ...]] = []  # read at an epoch's end: each reading would make a GPU wait
        own = [p for m in model.modules() if isinstance(m, Graft) for p in m.parameters()]
        clip = getattr(torch.nn.utils.clip_grad_norm_, "clips", torch.nn.utils.clip_grad_norm_)

        def listened(parameters, max_norm: float, *args, **kwargs):
            parts = [p.grad.norm() for p in own if p.grad is not None]
            total = clip(parameters, max_norm, *args, **kwargs)
            part = torch.stack(parts).norm() if parts else torch.zeros_like(total)
            self.seen.append((total, part, total > max_norm))
            return total

        listened.clips = clip
        torch.nn.utils.clip_grad_norm_ = listened

    def take(self) -> dict[str, float]:
        """Return mean norms of the whole gradient and of that of grafts, and the share of steps that were clipped.

        A step whose gradient is not finite is left out: with AMP the scaler skips it, too.
        """
        seen = [step for step in self.seen if step[0].isfinite()]
        self.seen = []
        if not seen:
            return {}
        names = "grad_norm", "graft_grad_norm", "clipped"
        return {name: round(torch.stack(values).float().mean().item(), 4) for name, values in zip(names, zip(*seen))}


def scan_backend(device: torch.device) -> str:
    """Return which implementation of the scan runs on a device."""
    from ..machine import chosen

    try:
        return chosen(str(device))
    except RuntimeError as e:
        return f"none: {one_line(e)}"


def epoch_of(file: Path) -> int:
    """Return the epoch, counted from 1, after which a checkpoint was written."""
    from ultralytics.nn.tasks import torch_safe_load

    return torch_safe_load(file)[0]["epoch"] + 1


def append(file: Path, line: str) -> None:
    """Add a line to a text file, also after one that was cut short, and wait until it is on the disk."""
    with file.open("a+b") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write(f"{line}\n".encode())
        out.flush()
        os.fsync(out.fileno())


def copy(source: Path, target: Path) -> None:
    """Copy a file in one step, if it exists."""
    if source.exists():
        with in_one_step(target) as part:
            shutil.copyfile(source, part)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: on a GPU of tensors there, else of memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        import psutil

        return psutil.Process().memory_info().peak_wset  # Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# Figures --------------------------------------------------------------------------------------------------------------

VALIDATED = {  # settings of a training that its validation takes, too
    *("data", "imgsz", "batch", "device", "workers", "single_cls", "classes", "iou", "max_det", "conf", "nms"),
    *("agnostic_nms", "retina_masks", "overlap_mask", "mask_ratio"),
}
PARTS = {"seg": "mask ", "pose": "pose "}  # what a task is about, before its boxes
WHOLE = {  # upstream's figures of tasks without boxes, by one that only this task has, and how tables call them
    "top1": {"top1": "top-1", "top5": "top-5"},
    "miou": {"miou": "mIoU", "pixel_accuracy": "accuracy"},
    "delta1": {"delta1": "delta1", "delta2": "delta2", "delta3": "delta3", "abs_rel": "abs-rel"},
}


def parts(metrics) -> dict[str, object]:
    """Return upstream's figures of masks or keypoints and of boxes, by what their names begin with."""
    own = {prefix: getattr(metrics, name) for name, prefix in PARTS.items() if hasattr(metrics, name)}
    return {**own, "box " if own else "": metrics.box}


def figures(metrics) -> dict[str, float]:
    """Return what a validation gives, by the names that tables show: parts of one, so that they are in percent there.

    Args:
        metrics (DetMetrics | ClassifyMetrics | SemanticMetrics | DepthMetrics): Upstream's.
    """
    for key, names in WHOLE.items():
        if hasattr(metrics, key):
            found = {shown: float(getattr(metrics, name)) for name, shown in names.items()}
            if key == "delta1" and not any(found.values()):  # an error of zero, as none was measured
                raise ValueError("no picture to validate on has a distance above zero in its depth map")
            return found
    found = {}
    for prefix, m in parts(metrics).items():
        f1 = float(np.mean(m.f1)) if len(m.f1) else 0.0
        values = {"P": m.mp, "R": m.mr, "F1": f1, "mAP50": m.map50, "mAP50-95": m.map}
        found |= {f"{prefix}{key}": float(value) for key, value in values.items()}
    return found


def by_class(metrics) -> tuple[dict[str, float], list[float]]:
    """Return mAP50-95 or, of pixels, IoU of each class that the split has, and a curve of boxes.

    The curve is the mean precision at recalls 0, 0.01, ... 1 at IoU 0.5.
    """
    if hasattr(metrics, "per_class_iou"):
        return {metrics.names[c]: float(metrics.per_class_iou[c]) for c in metrics.ap_class_index}, []
    if not hasattr(metrics, "box"):
        return {}, []
    m = next(iter(parts(metrics).values()))
    classes = {metrics.names[int(c)]: float(m.ap[i]) for i, c in enumerate(m.ap_class_index)}
    if not classes:
        return {}, []
    curve = np.interp(np.linspace(0, 1, 101), m.px, np.mean(m.prec_values, 0))
    return classes, [round(float(p), 4) for p in curve]


def evaluate(folder: Path, job: dict) -> dict:
    """Return the figures to report, and reduce the weights to what is needed to use them."""
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import strip_optimizer

    weights = folder / "weights"
    model = YOLO(weights / f"{job['report']['checkpoint']}.pt")
    given = {key: value for key, value in job["train"].items() if key in VALIDATED}
    metrics = model.val(
        **given,
        split=job["report"]["on"],
        project=str(folder),
        name="report",
        exist_ok=True,
        plots=False,
        verbose=False,
    )
    classes, curve = by_class(metrics)
    found = {"report": figures(metrics), "classes": classes, "pr": curve}
    for name in ("last.pt", "best.pt"):
        strip_optimizer(weights / name)
    shutil.rmtree(folder / "report", ignore_errors=True)  # it holds nothing without plots
    return found


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended: its end of the pipe closes."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read, whose lock the interpreter wants when it ends
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
