# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba graft`: a grafted model as files to train from, and what the user has to know of it."""

from __future__ import annotations

import copy
import io
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..grafting.graft import SUFFIX, grafted, read
from ..grafting.model_file import located
from ..layers.check_arguments import arguments
from ..layers.graft import BLOCKS, Graft, find_block, is_graft
from .key_value import quoted
from .report_rows import emit

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ("run",)

CHANNELS = 64  # of the map for which options are checked before the model is known
ENDINGS = {".pt", ".yaml", ".yml"}
NAMED = {"RTDETR": "rtdetr", "YOLOWorld": "-world", "YOLOE": "yoloe"}  # kinds that upstream tells by a file's name


def run(args: SimpleNamespace) -> int:
    """Write the files of a graft.

    Args:
        args (SimpleNamespace): model, after, block, options, lr_factor, out, exist_ok and again, as the command takes
            them.

    Returns:
        (int): Exit status, 0.

    Raises:
        OSError: If a file exists, or cannot be written.
        ValueError: If the model cannot be grafted.
    """
    from ultralytics.utils.checks import check_model_file_from_stem

    if "." in args.block:
        sys.path.append(os.getcwd())  # as `python -m` has it, for a class in a file of this folder
    find_block(args.block)  # before a file is looked at
    if args.block in BLOCKS:
        Graft.check(arguments(Graft, CHANNELS, args.block, args.options, args.lr_factor))
    args.model = str(check_model_file_from_stem(args.model))  # yolo11n is yolo11n.pt
    weights, config = targets(args.model, args.out)
    trained = Path(args.model).suffix not in {".yaml", ".yml"}
    files = [weights, config] if trained else [config]
    writable(files, args.exist_ok)
    try:
        source, dtype = read(args.model)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # one source gives one file
            row = [args.block, args.options, args.lr_factor]
            model = grafted(source, args.model, args.after, row, args.again)
    except TypeError as e:
        raise ValueError(e) from None
    compared(source.model, model.model)
    model.model.yaml["yaml_file"] = str(config)  # from which the trainers of World and YOLOE build
    model.model.pt_path = str(weights)
    writers: dict[Path, Callable[[Path], None]] = {config: lambda file: write_yaml(model.model.yaml, args.model, file)}
    if trained:
        writers[weights] = lambda file: write_weights(model, dtype, file)
    write_all(writers)
    emit("\n".join(summary(source, model, args, files)))
    return 0


# Files ----------------------------------------------------------------------------------------------------------------


def targets(model: str, out: str | None) -> tuple[Path, Path]:
    """Return the .pt and the .yaml file to write: beside the source, or in this folder for a name without one.

    Raises:
        ValueError: If one of them is the source itself, or `out` is no name of a model file.
    """
    source = Path(model)
    if not source.name:
        raise ValueError(f"'{model}' is no model file: give a .pt (trained) or a .yaml (untrained)")
    path = Path(out) if out else source.with_name(f"{source.stem}{SUFFIX}.pt")
    if out and (path.is_dir() or out.endswith(("/", os.sep))):
        path = path / f"{source.stem}{SUFFIX}.pt"
    if path.suffix and path.suffix.lower() not in ENDINGS and not path.suffix[1:].isdecimal():
        raise ValueError(f"out='{out}' must end in .pt or .yaml, or name a folder")
    stem = path.stem if path.suffix.lower() in ENDINGS else path.name
    files = path.with_name(f"{stem}.pt"), path.with_name(f"{stem}.yaml")
    for file in files:
        if file.exists() and (taken := located(source)) and taken.exists() and file.samefile(taken):
            raise ValueError(f"out='{out}' is the source itself, which a graft never replaces; give another name")
    return files


def writable(files: list[Path], exist_ok: bool) -> None:
    """Raise OSError where a file exists, or its folder does not or is read-only."""
    for file in files:
        if file.is_dir():
            raise IsADirectoryError(f"'{file}' is a folder; out= takes the name of a file")
        if file.exists() and not exist_ok:
            raise FileExistsError(f"'{file}' exists; exist_ok=True replaces it, out= takes another name")
    folder = files[0].parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: '{folder}'")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder '{folder.absolute()}' cannot be written to; out= takes another place")


def write_all(writers: dict[Path, Callable[[Path], None]]) -> None:
    """Write files, all or none: under other names, which they lose when the last is complete.

    Args:
        writers (dict[Path, Callable[[Path], None]]): What writes each file under the name that it is given.

    Raises:
        OSError: If one cannot be written, as on a full disk.
    """
    parts = {file: file.with_name(f".{file.name}.part") for file in writers}
    try:
        for file, write in writers.items():
            write(parts[file])
        for file, part in parts.items():
            os.replace(part, file)
    except OSError as e:
        raise OSError(f"cannot write to '{next(iter(writers)).absolute().parent}': {e.strerror or e}") from e
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def write_weights(model: Model, dtype: torch.dtype, file: Path) -> None:
    """Write a checkpoint in the dtype of its source, in the form of Ultralytics' own."""
    from ultralytics import __version__

    checkpoint = {
        "epoch": -1,
        "best_fitness": None,
        "model": copy.deepcopy(model.model).to(dtype),
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": model.ckpt["train_args"],
        "date": datetime.now().astimezone().isoformat(),
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }
    buffer = io.BytesIO()  # PyTorch's writer does not say that a disk is full
    torch.save(checkpoint, buffer)
    file.write_bytes(buffer.getbuffer())


def write_yaml(d: dict, source: str, file: Path) -> None:
    """Write a model YAML as Ultralytics writes them, a row in a line."""
    import yaml

    def flow(value: object) -> str:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
        return text.removesuffix("\n").removesuffix("\n...").replace("'None'", "None")

    lines = [f"# {Path(source).name} with grafts: rows that change nothing until they are trained", ""]
    for key, value in d.items():
        if key in ("scale", "yaml_file"):  # the loader's own
            continue
        if key in ("backbone", "head"):
            lines += ["", f"{key}:", *(f"  - {flow(row)}" for row in value), ""]
        elif key == "scales":
            lines += [f"{key}:", *(f"  {name}: {flow(scale)}" for name, scale in value.items())]
        else:
            lines.append(f"{key}: {flow(value)}")
    text = "\n".join(lines).replace("\n\n\n", "\n\n").rstrip("\n")
    file.write_text(f"{text}\n", encoding="utf-8")


# What the user is told ------------------------------------------------------------------------------------------------


def compared(source: nn.Module, model: nn.Module) -> None:
    """Raise ValueError unless both compute the same from noise, bit by bit."""
    size = 224 if getattr(source, "task", None) == "classify" else 320
    image = torch.rand(1, source.yaml.get("channels", 3), size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [list(tensors(m.float().eval()(image))) for m in (source, model)]
    if not all(x.isfinite().all() for x in outputs[0]):
        raise ValueError("the source computes numbers that are not finite, so it has no use as a start")
    if len(outputs[0]) != len(outputs[1]) or not all(map(torch.equal, *outputs)):
        raise ValueError("the graft does not compute what its source computes: nothing is written; please report this")


def tensors(output: object) -> Iterator[Tensor]:
    """Yield the tensors of a model's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def summary(source: Model, model: Model, args: SimpleNamespace, files: list[Path]) -> Iterator[str]:
    """Yield lines on what was done, what it costs, how to train it, and which numbers of rows have changed."""
    from ultralytics.utils.torch_utils import get_flops

    rows, size = list(model.model.model), 224 if model.task == "classify" else 640
    grafts = [i for i, row in enumerate(rows) if is_graft(row)]
    stock = [i for i in range(len(rows)) if i not in grafts]
    yield f"Wrote {' and '.join(map(str, files))}: {Path(args.model).name} with {args.block} added."
    for i in grafts:
        kind = type(rows[i - 1]).__name__
        yield f"  row {i}: Graft of {rows[i].norm.num_channels} channels, after row {i - 1} ({kind})"
    counts = [sum(p.numel() for p in m.model.parameters()) for m in (source, model)]
    flops = [get_flops(m.model, size) for m in (source, model)]
    yield (
        f"  parameters {counts[0]:,} -> {counts[1]:,} ({counts[1] / counts[0]:.3f}x), "
        f"GFLOPs at {size} {flops[0]:.2f} -> {flops[1]:.2f}"
    )
    yield "It computes exactly what the source computes (compared bit by bit), until it has been trained."
    path = "" if args.block in BLOCKS or os.name == "nt" else "PYTHONPATH=. "
    start = f"{path}yolo {model.task} train data={'FOLDER' if model.task == 'classify' else 'DATA.yaml'}"
    yield "Train it:"
    if args.block not in BLOCKS and os.name == "nt":
        yield "  (first: set PYTHONPATH=.   in PowerShell: $env:PYTHONPATH = '.')"
    if len(files) > 1:
        yield f"  {start} model={quoted(files[0])}"
    word = NAMED.get(type(model).__name__, "")
    if word in files[-1].stem:
        weights = quoted(args.model) + "   # the same" if len(files) > 1 else "WEIGHTS.pt"
        yield f"  {start} model={quoted(files[-1])} pretrained={weights}"
    else:
        yield f"  (Ultralytics builds {type(model).__name__} from a .yaml only if its name has '{word}' in it)"
    if word and type(model).__name__ != "RTDETR":
        yield f"  in this folder: the trainer reads {files[-1]} as well"
    first = stock[: min(10, len(stock) - 1)]
    yield "Rows after a graft have new numbers. For freeze= this means:"
    yield f"  instead of freeze={len(first)}: {freeze(first)}"
    yield f"  all rows of the source, to train the grafts alone: {freeze(stock)} (row {stock[-1]} is the head)"


def freeze(rows: list[int]) -> str:
    """Return the setting that freezes rows, quoted so that every shell takes it."""
    return f'"freeze={rows}"'.replace(" ", "")
