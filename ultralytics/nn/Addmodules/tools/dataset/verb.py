# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The command: it reads, prints, and draws some of the pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from matplotlib.figure import Figure

from ..models_and_images import read_pictures
from ..report_rows import emit, render
from ..visualize import saving
from .contact_sheet import Described, plot_contact_sheet
from .labels import Labels
from .maps import Depths
from .read import DataSet, read_data
from .report import problems, tables
from .split import Split

__all__ = ("choose", "draw_dataset")


@saving
def draw_dataset(args: SimpleNamespace) -> Figure:
    """Print what a data set holds and what is wrong with it, and draw some of its pictures with what describes them."""
    data = read_data(args.data, args.read)
    if args.out:
        _refuse_in_data(Path(args.out), data.splits)
    emit(tables(data))
    emit(render(problems(data)))
    chosen = choose(data.splits, args.count)
    if not chosen:
        nothing = {"object": "an object", "pixel": "a pixel of a class", "distance": "a distance"}
        what = nothing[next(iter(data.splits.values())).PART]
        raise ValueError(f"data={args.data}: no picture has {what}, so there is nothing to draw")
    return plot_contact_sheet([_described(data, split, file, args.imgsz) for split, file in chosen], data.names)


def _described(data: DataSet, name: str, file: str, imgsz: int) -> Described:
    """Return a picture with what describes it."""
    split, picture = data.splits[name], read_pictures([file], 1, imgsz)[0]
    title, pixels = f"{name}/{picture.name}", picture.pixels[picture.content]
    if isinstance(split, Labels):
        return Described(title, pixels, boxes=split.labels[file])
    if isinstance(split, Depths):
        return Described(title, pixels, metres=split.map(file))
    return Described(title, pixels, classes=split.map(file))


def choose(splits: dict[str, Split], count: int) -> list[tuple[str, str]]:
    """Return pictures to look at, as split and file.

    For each class, rarest first, the picture with most of it; then one for each split; the rest spread.
    """
    shown = {(name, file): classes for name, split in splits.items() for file, classes in split.shown().items()}
    total = sum((split.counts() for split in splits.values()), Counter())
    chosen: list[tuple[str, str]] = []
    for cls, _ in reversed(total.most_common()):
        has = [place for place, classes in shown.items() if classes[cls]]
        if has and len(chosen) < count and not any(place in chosen for place in has):
            chosen.append(max(has, key=lambda place: shown[place][cls]))
    for name in splits:
        of = [place for place in shown if place[0] == name]
        if of and len(chosen) < count and not any(place in chosen for place in of):
            chosen.append(of[len(of) // 2])
    left = [place for place in shown if place not in chosen]
    wanted = min(count - len(chosen), len(left))
    chosen += [left[i * len(left) // wanted] for i in range(wanted)]
    return [place for place in shown if place in chosen]


def _refuse_in_data(out: Path, splits: dict[str, Split]) -> None:
    """Raise ValueError for a picture that would lie among the files of the data set, and so be trained on."""
    folders = {Path(file).resolve().parent for split in splits.values() for file in split.images}
    folders |= {Path(file).resolve().parent for split in splits.values() for file in split.places.values()}
    if folders & {*out.resolve().parents}:
        raise ValueError(f"out='{out}' lies among the files of the data set; give another place")
