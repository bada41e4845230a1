# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How every command of ours reads a model file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..hooks.no_weights import refuse_missing

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ("read_model",)


def located(file: Path) -> Path | None:
    """Return the .pt file that upstream takes for a name: here, in its folder of weights, or one that it downloads.

    Returns:
        (Path | None): The file; the name alone where it will be downloaded; None where there is none.
    """
    from ultralytics.utils import SETTINGS
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    if file.is_file():
        return file
    file = Path(check_yolov5u_filename(str(file), verbose=False))  # yolov5n.pt is yolov5nu.pt
    kept = Path(SETTINGS["weights_dir"]) / file.name
    return next((f for f in (file, kept) if f.is_file()), file if file.name in GITHUB_ASSETS_NAMES else None)


def read_model(file: str | Path) -> tuple[Model, dict]:
    """Return the model of a file, and what its checkpoint holds: nothing for a YAML, whose model is untrained.

    A stock .pt that is not here is fetched as Ultralytics does. No other is looked for, and nothing is installed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or holds no model that has the rows of a YAML.
    """
    from ultralytics import RTDETR, YOLO
    from ultralytics.nn.tasks import torch_safe_load, yaml_model_load

    path, checkpoint = Path(file), {}
    if path.suffix not in {".yaml", ".yml", ".pt"}:
        raise ValueError(f"'{file}' is no model file: give a .yaml (untrained) or a .pt (trained)")
    refuse_missing(path)
    if path.suffix == ".pt" and (path := located(path)) is None:
        raise FileNotFoundError(f"no such model file: '{file}'")
    try:
        with no_installs():
            if path.suffix == ".pt":
                checkpoint, _ = torch_safe_load(str(path))
                if not isinstance(checkpoint.get("ema") or checkpoint.get("model"), nn.Module):
                    raise ValueError(
                        "it is no checkpoint of Ultralytics: it has tensors, but no model; save the whole checkpoint"
                    )
                if checkpoint.get("modelopt"):
                    raise ValueError(
                        "it was trained with quantisation, so its layers are not its YAML's; give the float .pt"
                    )
                model = YOLO(str(path))
            else:
                decoder = yaml_model_load(path)["head"][-1][2] == "RTDETRDecoder"
                model = (RTDETR if decoder else YOLO)(str(path))
            if "backbone" not in (getattr(model.model, "yaml", None) or ()):
                raise ValueError(
                    "it has no rows from a model YAML; a distillation has them in the best.pt that it ends with"
                )
    except Exception as e:  # whatever a parser or unpickler raises on a foreign file is the file's fault
        raise ValueError(f"cannot read the model '{file}': {_sentence(e)}") from e
    return model, checkpoint


@contextmanager
def no_installs() -> Iterator[None]:
    """Keep upstream from installing what a checkpoint's classes are called after: the name may be anybody's package."""
    from ultralytics.utils import checks

    before, checks.AUTOINSTALL = checks.AUTOINSTALL, False
    try:
        yield
    finally:
        checks.AUTOINSTALL = before


def _sentence(e: Exception) -> str:
    """Return an exception's first line, without upstream's decoration."""
    if " is no checkpoint of Ultralytics" in str(e):
        return "it is no checkpoint of Ultralytics"
    text = " ".join(str(e).strip().splitlines()[:1]).removeprefix("ERROR").lstrip(" ❌\ufe0f")
    text = text.split(" (RuntimeError")[0]  # what PyTorch's reader says of a broken file
    return text if isinstance(e, (OSError, TypeError, ValueError)) and text else f"{type(e).__name__}: {text}"
