# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Weights that cannot be had: those of models of this fork, of which there are none, and those of a failed download."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from .failures import one_line

__all__ = ("refuse_missing", "without_weights")


def without_weights(download: Callable[..., str]) -> Callable[..., str]:
    """Decorate upstream's search for weights: a name of ours that is no file is an error, before the network is asked.

    Where a download fails, the error says what can be done without one: GitHub is slow or closed in many places.

    Args:
        download (Callable[..., str]): Upstream's `attempt_download_asset(file, ...)`.
    """

    @wraps(download)
    def attempt_download_asset(file: str | Path, *args, **kwargs) -> str:
        refuse_missing(Path(str(file).strip().replace("'", "")))
        try:
            return download(file, *args, **kwargs)
        except ConnectionError as e:
            here = Path(Path(file).name if "://" in str(file) else file).absolute()
            there = f"Or fetch the file in another way, and put it here: '{here}'"
            raise ConnectionError(f"{one_line(e).lstrip('❌ ')} {there}") from e

    return attempt_download_asset


def refuse_missing(path: Path) -> None:
    """Raise FileNotFoundError for weights of a model of ours that are no file here; say what to start from."""
    if not (path.name.lower().startswith("vmamba-yolo") and path.suffix == ".pt") or path.exists():
        return
    from ultralytics.utils import SETTINGS

    if not (Path(SETTINGS["weights_dir"]) / path).exists():
        from .scale_names import name_of_file

        raise FileNotFoundError(
            f"there is no file '{path}', and no weights of VMamba models to download: train "
            f"{name_of_file(path.stem) or 'VMamba-yolon.yaml'} from scratch, or start from stock weights by "
            f"`vmamba graft model=yolo11n.pt`"
        )
