# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How a name like VMamba-yolov8d-seg.yaml finds its file and its scale."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from .initial_weights import check_start
from .yaml_lint import refuse_strides, warn
from .yaml_rows import check_rows

__all__ = ("name_of_file", "own_scales")


def own_scales(load: Callable[[str | Path], dict]) -> Callable[[str | Path], dict]:
    """Decorate the model YAML loader: scales that names do not tell, and errors for rows of our layers.

    The scale of a `VMamba-*.yaml` may be any letter. A file of grafts has one scale, which it gets under every name:
    best-vmamba.yaml tells none, and a name that somebody has chosen may tell another. Upstream knows the scales n, s,
    m, l, x behind a version number, and rewrites the whole path, folders included. Other names go to upstream's loader
    first; one that it does not find may be a file of the user's own and any scale that the file declares.

    Args:
        load (Callable): Upstream's `yaml_model_load`.

    Returns:
        (Callable): A function of the same signature.
    """

    @wraps(load)
    def yaml_model_load(path: str | Path) -> dict:
        try:
            d = _load_scaled(Path(path)) or load(path)
        except FileNotFoundError as e:
            d = _load_own(Path(path))
            if d is None and not Path(path).name.lower().startswith("vmamba"):
                raise
            if d is None:
                raise FileNotFoundError(f"there is no model file {Path(path).name}{_nearest(Path(path).stem)}") from e
        check_rows(d, Path(path).name)
        if _grafted(d) and len(d.get("scales") or ()) == 1:
            d["scale"] = next(iter(d["scales"]))
        check_start(d, Path(path).name)
        refuse_strides(d, Path(path).name)
        warn(d, Path(path).name)
        return d

    return yaml_model_load


def _nearest(stem: str) -> str:
    """Return a question about the name of ours that is nearest to one that does not exist, in any case of letters."""
    name = name_of_file(stem)
    return f"; did you mean {name}?" if name else "; docs/models lists those that there are"


def name_of_file(stem: str) -> str | None:
    """Return the model file of ours whose name is nearest to one, in any case of letters; None where none is near."""
    import yaml

    from ultralytics.utils import ROOT

    names = {}
    for file in (ROOT / "cfg/models").rglob("VMamba-*.yaml"):
        family, rest = re.fullmatch(r"(VMamba-yolo(?:v?\d+)?)(.*)", file.stem).groups()
        for scale in yaml.safe_load(file.read_text(encoding="utf-8")).get("scales") or [""]:
            names[f"{family}{scale}{rest}".lower()] = f"{family}{scale}{rest}.yaml"
            names.setdefault(f"{family}{rest}".lower(), f"{family}{scale}{rest}.yaml")
    close = difflib.get_close_matches(stem.lower(), names, n=1, cutoff=0.75)
    return names[close[0]] if close else None


def _grafted(d: dict) -> bool:
    """Return whether a model YAML has grafts."""
    rows = [*(d.get("backbone") or ()), *(d.get("head") or ())]
    return any(isinstance(row, (list, tuple)) and "Graft" in row[2:3] for row in rows)


def _load_scaled(path: Path) -> dict | None:
    """Return the model that a name like VMamba-yolov8d-seg.yaml means, or None where it has not that form."""
    name = re.fullmatch(r"(VMamba-yolo(?:v?\d+)?)([a-z])((?:[-_].+)?)", path.stem)
    if not name:
        return None
    from ultralytics.utils.checks import check_yaml

    family, scale, rest = name.groups()
    base = path.with_name(f"{family}{rest}{path.suffix}")
    file = check_yaml(str(path), hard=False) or check_yaml(str(base), hard=False)
    return _at_scale(path, _read(Path(file)), scale, Path(file).name) if file else None  # upstream's own error


def _load_own(path: Path) -> dict | None:
    """Return the model of a user's own file that a name with a scale means: mine-yolov8d.yaml is mine-yolov8.yaml."""
    for name in re.finditer(r"(?<=.)[a-z](?=[-_.]|$)", path.stem):
        file = path.with_name(f"{path.stem[: name.start()]}{path.stem[name.end() :]}{path.suffix}")
        if path.suffix in (".yaml", ".yml") and file.is_file() and (d := _read(file)).get("scales"):
            return _at_scale(path, d, name[0], file.name)
    return None


def _read(file: Path) -> dict:
    """Return what a model YAML says; upstream's reader has had several names.

    Raises:
        ValueError: If it is no YAML, or not of keys and values.
    """
    import yaml

    try:
        d = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{file.name} is no model YAML: {' '.join(str(e).split())}") from None
    if not isinstance(d, dict):
        raise ValueError(f"{file.name} is no model YAML: it has no keys with values")
    return d


def _at_scale(path: Path, d: dict, scale: str, file: str) -> dict:
    """Return the model of a file at a scale, under the name that tells it.

    Raises:
        ValueError: If the file declares other scales only.
    """
    scales = d.get("scales")
    if scales and (not isinstance(scales, dict) or scale not in scales):
        known = sorted(map(str, scales)) if isinstance(scales, dict) else scales
        raise ValueError(f"{path.name}: {file} has no scale '{scale}', only {known}")
    return {**d, "scale": scale, "yaml_file": str(path)}
