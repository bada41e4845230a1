# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Times of a picture, in a process of its own: `python -m ultralytics.nn.Addmodules.tools.compare.measure FILE`.

Alone, after all training, and in turns, so that a change of clock or temperature meets all models alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import psutil
import torch

from .results import SPEED, read_json, write_json
from .train import end_with_parent

__all__ = ("main", "measure")

WARM, ROUNDS, SECONDS = 3, 50, 60.0  # turns before and at most, seconds at most


def measure(files: dict[str, str], shape: tuple[int, ...], device: torch.device) -> dict[str, list[float]]:
    """Return milliseconds of a forward pass by model, one for each turn.

    Args:
        files (dict[str, str]): Weights by model.
        shape (tuple[int, ...]): Of the input.
        device (torch.device): Where they run.
    """
    from ultralytics.nn.tasks import load_checkpoint

    models = {name: load_checkpoint(file, device=device, fuse=True)[0].eval() for name, file in files.items()}
    x, times = torch.rand(shape, device=device), {name: [] for name in files}
    wait = {"cuda": torch.cuda.synchronize, "mps": getattr(torch.mps, "synchronize", None)}.get(device.type)
    begin = time.perf_counter()
    with torch.inference_mode():
        for turn in range(WARM + ROUNDS):
            for name, model in models.items():
                start = time.perf_counter()
                model(x)
                if wait:
                    wait()
                if turn >= WARM:
                    times[name].append(1000 * (time.perf_counter() - start))
            if turn >= WARM + 4 and time.perf_counter() - begin > SECONDS:
                break
    return times


def main(file: Path) -> int:
    """Measure what a file asks for and write speed.json beside it."""
    asked = read_json(file)
    device = torch.device(f"cuda:{asked['device']}" if asked["device"].isdecimal() else asked["device"])
    torch.set_num_threads(asked["threads"])
    busy = psutil.cpu_percent(1.0)  # of others: this process sleeps meanwhile
    times = measure(asked["files"], (1, asked["channels"], asked["imgsz"], asked["imgsz"]), device)
    found = {name: {"ms": statistics.median(t), "fps": 1000 / statistics.median(t)} for name, t in times.items()}
    rounds = len(next(iter(times.values()), []))
    about = {
        "device": asked["device"],
        "threads": asked["threads"],
        "imgsz": asked["imgsz"],
        "rounds": rounds,
        "busy": busy,
    }
    write_json(file.with_name(SPEED), {"models": found, "about": about})
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
