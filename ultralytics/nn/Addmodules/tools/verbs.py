# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba`: the command for what this fork adds to Ultralytics, and all that it takes.

`python -m ultralytics.nn.Addmodules` is its long form, which works before the script is installed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from ..hooks.failures import sentence
from ..selective_scan.registry import forced
from .compare.plan import read_seeds
from .key_value import (
    Option,
    UsageError,
    Verb,
    at_most,
    choice,
    count,
    file_name,
    flag,
    near,
    number,
    pairs,
    parse,
    several,
    usage,
)
from .report_rows import emit

__all__ = ("main",)

LEVELS = "P3: last backbone layer at stride 8, N3: last neck layer at stride 8, 4: layer 4"
GRAFT_PLACES = "P4: last backbone row at stride 16, N4: the row that the head reads at that stride, 6: row 6"
PICTURE = (
    Option("imgsz", at_most(4096), 320, "side of the letterboxed images"),
    Option("out", file_name, None, "picture to write; without it a new one in runs/visualize"),
    Option("exist_ok", flag, False, "replace the picture if it exists"),
)
MODELS = (
    Option("models", several, ..., "model files, .yaml (untrained) or .pt (trained), with commas between them"),
    Option("names", several, None, "names of the models in the picture"),
    Option("layers", several, ["P3", "P4", "P5"], LEVELS),
    Option("device", str, "cpu", "cpu, 0, cuda:1, mps ..."),
)
VERBS = (
    Verb(
        "graft",
        "scans added to a trained model, which change nothing until you train it",
        "graft:run",
        (
            Option(
                "model", str, ..., "a .pt file, or a name that Ultralytics downloads; from a .yaml only a .yaml is made"
            ),
            Option("after", several, ["P4", "P5"], GRAFT_PLACES),
            Option("block", str, "SS2D", "SS2D, MambaLayer, VSSBlock, or a class as module.Class"),
            Option("options", pairs, None, "arguments of the block, as expand:1,gate:True"),
            Option("lr_factor", number, 1.0, "learning rate of the grafts, as a multiple of that of the rest"),
            Option("out", file_name, None, "file to write; without it the source's name with -vmamba added"),
            Option("exist_ok", flag, False, "replace files that exist"),
            Option("again", flag, False, "graft a model that is a graft already"),
        ),
    ),
    Verb(
        "checks",
        "what runs on this machine, what does not, why, and what to do",
        "checks:run",
        (
            Option("json", file_name, None, "write JSON to this file; without a value, to standard output", alone="-"),
            Option("exist_ok", flag, False, "replace the file if it exists"),
            Option("speed", flag, True, "time the backends, about 5 seconds"),
        ),
    ),
    Verb(
        "dataset",
        "what a training reads of a data set, what is wrong with it, and a picture of its labels",
        "dataset.verb:draw_dataset",
        (
            Option("data", str, ..., "data set YAML"),
            Option(
                "read",
                choice("labels", "masks", "depth"),
                None,
                "what to look at; without it labels, if they have objects, else the masks or depth maps",
            ),
            Option("count", at_most(100), 20, "images at most"),
            *PICTURE,
        ),
    ),
    Verb(
        "visualize",
        "pictures of what models see",
        kinds=(
            Verb(
                "erf",
                "effective receptive fields of models side by side",
                "visualize:draw_erf",
                (
                    *MODELS,
                    Option("images", several, None, "files and folders; without them noise from a fixed seed"),
                    Option("count", at_most(10_000), 16, "images at most"),
                    *PICTURE,
                ),
            ),
            Verb(
                "activations",
                "activation maps of models side by side",
                "visualize:draw_activations",
                (
                    *MODELS,
                    Option("images", several, None, "files and folders; without them Ultralytics' samples"),
                    Option("count", at_most(100), 1, "images at most"),
                    Option("reduce", choice("mean", "norm", "max"), "mean", "channels: mean, max (absolute) or norm"),
                    *PICTURE,
                ),
            ),
            Verb(
                "orders",
                "the orders in which layers scan a map, drawn over an image",
                "visualize:draw_orders",
                (
                    Option("models", several, None, "draw the orders of these models' layers"),
                    Option("orders", several, None, "of rows, rows-reversed, columns, columns-reversed"),
                    Option("images", several, None, "an image; without it one of Ultralytics' samples"),
                    Option("grid", at_most(32), 6, "cells along the longer side"),
                    *PICTURE,
                ),
            ),
        ),
    ),
    Verb(
        "compare",
        "models trained alike on your data, and tables that say how certain a difference is",
        "compare.verb:run",
        (
            Option(
                "models",
                several,
                ...,
                "model files with commas between them, also as NAME=FILE; the first is what the others are compared to",
            ),
            Option("data", str, ..., "data set YAML, or a folder for classification"),
            Option("epochs", count, 100, "epochs of each training"),
            Option("seeds", read_seeds, (0, 1, 2), "how many, or which: seeds=3, seeds=4,5,6, seeds=[7]"),
            Option("imgsz", count, None, "side of the pictures; without it 640, for classification 224"),
            Option("device", str, None, "cpu, 0, mps; without it a GPU if there is one"),
            Option("jobs", count, 1, "runs side by side on a CPU, one thread each"),
            Option(
                "report_on",
                choice("val", "test"),
                None,
                "split to measure on; without it test if there is one",
            ),
            Option(
                "checkpoint",
                choice("best", "last"),
                None,
                "weights to measure; without it best on test, last on val",
            ),
            Option("speed", flag, True, "measure the time of a picture after all training"),
            Option("project", file_name, None, "folder for comparisons; without it the runs folder"),
            Option("name", file_name, None, "folder of this one; without it compare, compare-2, ..."),
        ),
        more="Any other setting of Ultralytics' training (`yolo cfg` lists them) is given to all runs: batch=8 "
        "optimizer=AdamW lr0=0.001 ... After a stop, the same command goes on.",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv (Sequence[str], optional): Verb and settings; by default those of this process.

    Returns:
        (int): Exit status: the verb's own; 1 for what went wrong, 2 for a command line that cannot be understood.
    """
    for stream in (sys.stdout, sys.stderr):  # a console without a letter or a sign shows ? for it
        if hasattr(stream, "reconfigure"):  # some notebooks put another kind in the place
            stream.reconfigure(errors="replace")
    args = list(sys.argv[1:] if argv is None else argv)
    root = Verb("vmamba", "what VMamba-YOLO adds to Ultralytics; settings are key=value, as in `yolo`", kinds=VERBS)
    if args and _is_help(args[0]):
        args = [*args[1:], "help"]  # `vmamba help checks` is `vmamba checks help`
    try:
        verb, where, args = _find(root, "vmamba", args)
        if verb.kinds or any(map(_is_help, args)):
            emit(usage(verb, where))
            return 0
        values = parse(verb, where, args)
    except UsageError as e:
        print(e, file=sys.stderr)
        return 2
    module, function = verb.run.split(":")
    try:
        forced()  # a VMAMBA_BACKEND that there is not is refused before anything is read
        status = getattr(importlib.import_module(f".{module}", __package__), function)(values)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who reads the output, as `head`, has seen enough; Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageError as e:
        print(e, file=sys.stderr)
        return 2
    except Exception as e:
        said = sentence(e)
        if said is None:  # a bug
            raise
        print(f"{where}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{where}: stopped", file=sys.stderr)
        return 130


def _is_help(arg: str) -> bool:
    """Return whether an argument asks for help."""
    return arg in ("help", "--help", "-h")


def _find(verb: Verb, where: str, args: list[str]) -> tuple[Verb, str, list[str]]:
    """Return the verb that a command line means, the command so far, and what follows it.

    Raises:
        UsageError: If there is no such verb.
    """
    if not verb.kinds or not args or _is_help(args[0]):
        return verb, where, args
    kinds = {kind.name: kind for kind in verb.kinds}
    if args[0] not in kinds:
        hint = near(args[0], kinds) or f"; it has {', '.join(kinds)}"
        raise UsageError(f"{where}: there is no '{args[0]}'{hint}")
    return _find(kinds[args[0]], f"{where} {args[0]}", args[1:])


if __name__ == "__main__":
    sys.exit(main())
