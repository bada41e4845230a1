# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Export of models with our layers: refusals before anything is written, the form of the scan, files that are tried."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path

import torch

from ..layers.state_space import StateSpace
from ..selective_scan import onnx_operator
from ..selective_scan.export import OPSET, exporting_for
from . import eight_bits
from .export_head import without_softmax
from .formats import Refusal, canonical, refuse_format
from .refusals import said_in_a_sentence

__all__ = ("prepare_export", "with_refusals")

TRIED = {"ncnn": 0.02, "mnn": 0.02}  # formats whose file is run once, and the error allowed: they compute in 16 bits


class ExportError(RuntimeError):
    """A converter that failed; `yolo` prints its text alone."""


def with_refusals(exporter: type) -> None:
    """Let a format that cannot take a model with scans be refused first of all, from the first exporter on.

    Args:
        exporter (type): Upstream's Exporter. Each of its objects asks for this as it is made; the first is enough.
    """
    call = exporter.__call__
    if getattr(call, "refuses_formats", False):
        return

    @wraps(call)
    def refusing(self, model, *args, **kwargs):
        with said_in_a_sentence("yolo export"):
            refuse_format(self.args.format, model, self.args.dynamic, self.args.batch)
        try:
            return call(self, model, *args, **kwargs)
        except ValueError as e:
            if not str(e).startswith("Invalid export format"):
                raise
            with said_in_a_sentence("yolo export"):  # upstream's own sentence, for every model
                raise

    refusing.refuses_formats = True
    exporter.__call__ = refusing


def prepare_export(exporter) -> None:
    """Refuse what cannot be exported of a model with our layers before anything is written, and see to what may fail.

    Args:
        exporter (Exporter): Upstream's, about to export `exporter.model`.

    Raises:
        PermissionError: If the folder cannot be written to.
        ValueError: If the format or an argument does not go with a selective scan.
    """
    if not any(isinstance(m, StateSpace) for m in exporter.model.modules()):
        return
    args, file = exporter.args, exporter.file.resolve()
    form = canonical(args.format)
    with said_in_a_sentence("yolo export"):
        refuse_format(form, exporter.model, args.dynamic, args.batch)
        refuse(args.opset, file.parent)
    without_softmax(exporter.model, form)
    if export := getattr(exporter, f"export_{form}", None):
        if form in TRIED:
            export = tried(export, exporter, TRIED[form])
        export = of_a_form(export, form, args.dynamic, args.quantize)
        setattr(exporter, f"export_{form}", leaving_nothing(export, form, file.parent, file.stem))
    if form != "onnx":
        exporter.export_onnx = inlined(with_operator(exporter.export_onnx, False))
    else:
        exporter.export_onnx = with_operator(exporter.export_onnx, args.quantize == 16)
        if args.quantize == 8:
            exporter.export_onnx = eight_bits.in_onnx(exporter.export_onnx, exporter.model)
    if form == "openvino" and args.quantize == 8:
        exporter.export_openvino = eight_bits.in_openvino(exporter.export_openvino, exporter.model)
    if form == "onnx" and args.quantize == 16:
        keep_scans_float32()


def refuse(opset: int | None, folder: Path) -> None:
    """Raise where an export cannot succeed, whatever the format.

    Args:
        opset (int, optional): Opset that was asked for.
        folder (Path): Where the file would be written.
    """
    if opset and opset < OPSET:
        raise Refusal(f"opset={opset} is too old for a selective scan; leave it out, or give {OPSET} or later")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to; the exported file would go beside the model")


def of_a_form(export: Callable[..., str], form: str, dynamic: bool, quantize: int | str | None) -> Callable[..., str]:
    """Return an export whose graph has scans in the form that its runtime runs fastest.

    Scans in a loop are left alone by what turns a graph into 16 bits, so there they have loops.
    """
    apart = form == "onnx" and quantize == 16

    @wraps(export)
    def exporting(*args, **kwargs) -> str:
        with exporting_for(form, not dynamic and not apart):
            return export(*args, **kwargs)

    return exporting


def keep_scans_float32() -> None:
    """Keep the state of a scan float32 in a float16 ONNX file, as it is in PyTorch."""
    try:
        from onnxruntime.transformers import float16
    except ImportError:  # upstream says what is missing
        return
    if "Scan" not in float16.DEFAULT_OP_BLOCK_LIST:
        float16.DEFAULT_OP_BLOCK_LIST.append("Scan")


def with_operator(export: Callable[..., str], half: bool) -> Callable[..., str]:
    """Return an export to ONNX whose file runs our operator where its library is, and standard operators elsewhere.

    Args:
        export (Callable[..., str]): Upstream's.
        half (bool): Whether the file is converted to float16 in it.
    """

    @wraps(export)
    def both(*args, **kwargs) -> str:
        with onnx_operator.in_one_file(half):
            return export(*args, **kwargs)

    return both


def inlined(export: Callable[..., str]) -> Callable[..., str]:
    """Return an export to ONNX whose file has standard operators alone, for the converters to other formats."""

    @wraps(export)
    def plain(*args, **kwargs) -> str:
        path = export(*args, **kwargs)
        onnx_operator.inline(path)
        return path

    return plain


def tried(export: Callable[..., str], exporter, tolerance: float) -> Callable[..., str]:
    """Return an export that runs its file once: some converters report success whatever they wrote, or nothing.

    Args:
        export (Callable[..., str]): Upstream's, for one format.
        exporter (Exporter): Upstream's, with the model and an input.
        tolerance (float): Largest error of an output, in units of its largest value or of 1 if that is more.
    """

    @wraps(export)
    def trying(*args, **kwargs) -> str:
        path = export(*args, **kwargs)
        from ultralytics.nn.autobackend import AutoBackend

        im = torch.rand(exporter.im.shape, generator=torch.Generator().manual_seed(0))
        try:
            got = AutoBackend(path, device=torch.device("cpu"), verbose=False)(im)
        except Exception as e:  # whatever the runtime raises
            raise ExportError(f"{Path(path).name} was written, but it cannot be run: {first_line(e)}") from e
        if not (
            exporter.args.nms or getattr(exporter.model, "end2end", False)
        ):  # whose rows have an order of their own
            with torch.no_grad():
                want = exporter.model(im.to(exporter.im.device))
            got, want = (t[0] if isinstance(t, (list, tuple)) else t for t in (got, want))
            got, want = torch.as_tensor(got).float().cpu(), want.float().cpu()
            if got.shape != want.shape:
                raise ExportError(
                    f"{Path(path).name} gives an output {tuple(got.shape)} where the model gives {tuple(want.shape)}"
                )
            scale = want.abs().amax(-1, keepdim=True).clamp(min=1)  # of each box side and each score
            error = float(((got - want).abs() / scale).max())
            if not error <= tolerance:
                raise ExportError(
                    f"{Path(path).name} does not compute what the model does: an output is off by {error:.2g} of its "
                    f"largest value, and {tolerance} is allowed"
                )
        return path

    return trying


def leaving_nothing(export: Callable[..., str], form: str, folder: Path, stem: str) -> Callable[..., str]:
    """Return an export that says in a sentence why it failed, and leaves older exports as it found them.

    An older file of the same format is replaced only by an export that succeeds. One of another format, which a
    converter writes on its way, is not replaced at all.

    Args:
        export (Callable[..., str]): Upstream's, for one format.
        form (str): Name of the format.
        folder (Path): Where the model lies, and what is exported.
        stem (str): The name of the model's file without its ending.
    """
    from ultralytics.engine.exporter import export_formats

    formats = export_formats()
    begins, ends = (f"{stem}.", f"{stem}_"), tuple(formats["Suffix"][1:])  # the first is the model's own
    own = dict(zip(formats["Argument"], formats["Suffix"]))[form]

    def present() -> dict[Path, tuple[int, int]]:
        """Return the files and folders that an export may have written, and how to tell that it did."""
        found = [p for p in folder.iterdir() if p.name.startswith(begins) and p.name.endswith(ends)]
        return {p: stamp(p) for p in found}

    def stamp(path: Path) -> tuple[int, int]:
        stats = [p.stat() for p in ([path, *path.rglob("*")] if path.is_dir() else [path])]
        return max(s.st_mtime_ns for s in stats), sum(s.st_size for s in stats)

    @wraps(export)
    def cleaning(*args, **kwargs) -> str:
        with alone(folder), aside(folder, stem, (own, f"_int8{own}", ".onnx", "_saved_model")) as replaced:
            before = present()
            try:
                path = export(*args, **kwargs)
                written = Path(path if isinstance(path, (str, Path)) else path[0]).resolve()
                if not written.exists():
                    raise ExportError(f"the converter reported success, but there is no {written.name}")
            except BaseException as e:  # Ctrl-C, too
                for path, of in present().items():
                    if before.get(path) != of:
                        remove(path)
                if not isinstance(e, Exception) or isinstance(e, (OSError, Refusal)):
                    raise
                with said_in_a_sentence("yolo export"):
                    instead = ", ".join(f for f in ("onnx", "openvino", "torchscript") if f != form)
                    raise ExportError(
                        f"format='{form}' could not be written: {first_line(e)}. Nothing was kept. "
                        f"The formats that are tested most: {instead}."
                    ) from e
            replaced += [written, *written.parents]
            return path

    return cleaning


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process exports into a folder, and keep others waiting; Windows cannot lock a folder."""
    if os.name != "posix":
        yield
        return
    import fcntl

    from ultralytics.utils import LOGGER

    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOGGER.info(f"VMamba: another export writes to {folder}; this one waits for its end")
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as e:  # a file system without locks
            LOGGER.info(f"VMamba: {folder} cannot be locked ({e.strerror}): start no other export there meanwhile")
        yield
    finally:
        os.close(held)


@contextmanager
def aside(folder: Path, stem: str, endings: Sequence[str]) -> Iterator[list[Path]]:
    """Keep the exports of a model out of the way of a block, and put them back after it.

    Args:
        folder (Path): Where they are.
        stem (str): How their names begin.
        endings (Sequence[str]): How those names end.

    Yields:
        (list[Path]): To be filled by the block: what it has replaced, which is not put back.
    """
    put_back(folder, stem)
    replaced: list[Path] = []
    away = Path(tempfile.mkdtemp(prefix=f"{stem}-older-", dir=folder))
    try:
        for name in dict.fromkeys(f"{stem}{ending}" for ending in endings):
            if (folder / name).exists():
                (folder / name).rename(away / name)
        yield replaced
    finally:
        for older in away.iterdir():
            path = folder / older.name
            if path not in replaced:
                remove(path)
                older.rename(path)
        shutil.rmtree(away)


def put_back(folder: Path, stem: str) -> None:
    """Put back what an export that was killed left aside, but for what is there again, and say so."""
    from ultralytics.utils import LOGGER

    for away in folder.glob(f"{glob.escape(stem)}-older-*/"):
        for older in away.iterdir():
            if not (folder / older.name).exists():
                older.rename(folder / older.name)
                LOGGER.info(f"VMamba: {folder / older.name} is restored, which a killed export had left in {away.name}")
        with suppress(OSError):  # what is there again stays in it
            away.rmdir()


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def first_line(e: BaseException) -> str:
    """Return the first line of an error that says something, with its kind where it has no text."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(e).__name__
