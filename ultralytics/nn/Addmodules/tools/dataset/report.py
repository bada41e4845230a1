# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What is printed of a data set: tables of what a training reads, and what is wrong."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data import RELATIVE, same_names
from ..maps import IGNORED
from ..report_rows import OK, PROBLEM, Row
from .labels import Labels, box_problems, outline_problems
from .maps import Depths, Masks, depth_problems
from .read import KINDS, DataSet
from .split import Split
from .wording import aligned, some

__all__ = ("problems", "tables")

BESIDE = {".txt", ".cache", ".npy", ".yaml", ".yml", ".ini", ".db"}  # endings of what may lie among pictures or labels
NOT_LABELS = {"classes", "obj", "labels"}  # text files that labelling tools leave among the labels
SMALL = 0.05  # percent: less would be written as 0.0


def tables(data: DataSet) -> str:
    """Return the counts by split, and by class, or the distances."""
    first = next(iter(data.splits.values()))
    rows = [["split", *first.HEAD]]
    rows += [[name, *map(str, split.numbers())] for name, split in data.splits.items()]
    more = _distances(data) if isinstance(first, Depths) else _classes(data)
    return "\n".join([f"{data.file}, as a training reads it", "", *aligned(rows), "", *aligned(more), ""])


def _classes(data: DataSet) -> list[list[str]]:
    """Return the rows of a table by class: objects, or the part of the pixels."""
    splits, masks = data.splits.values(), isinstance(next(iter(data.splits.values())), Masks)
    counts = [split.counts() for split in splits]
    names = [(i, f"{i} {name}") for i, name in data.names.items()]
    if any(count[IGNORED] for count in counts) and masks:
        names.append((IGNORED, f"{IGNORED} (counts for no class)"))
    rows = [["pixels, %" if masks else "class", *data.splits]]
    for i, name in names:
        rows.append([name, *(_part(count[i], count.total()) if masks else str(count[i]) for count in counts)])
    return rows


def _part(n: int, of: int) -> str:
    """Return a part in percent, such that only none is 0."""
    percent = 100 * n / of if of else 0.0
    return f"{percent:.1f}" if percent >= SMALL else "< 0.1" if n else "0"


def _distances(data: DataSet) -> list[list[str]]:
    """Return the rows of a table of distances."""
    found = [[*split.metres.values()] for split in data.splits.values()]
    rows = [["metres", *data.splits]]
    for title, field, of in (
        ("smallest", "smallest", np.min),
        ("median of the pictures' medians", "middle", np.median),
        ("largest", "largest", np.max),
    ):
        rows.append([title, *(f"{of([getattr(m, field) for m in ms]):.3g}" if ms else "-" for ms in found)])
    lack = [f"{100 * np.mean([m.without for m in ms]):.1f}" if ms else "-" for ms in found]
    return [*rows, ["pixels without a distance, %", *lack]]


def problems(data: DataSet) -> list[Row]:
    """Return what is wrong with a data set, a row for each kind; one row that says so where nothing is."""
    rows, splits = [], data.splits
    for name, split in splits.items():
        rows += _unread(name, split)
        if isinstance(split, Labels):
            rows += box_problems(name, split)
        elif isinstance(split, Depths):
            rows += depth_problems(name, split)
    rows += _names(splits)
    if twice := same_names(data.names):
        rows.append(Row("class", PROBLEM, twice, "Give each a name of its own: figures and weights go by it"))
    counts = {name: split.counts() for name, split in splits.items() if not split.without}
    part = next(iter(splits.values())).PART
    for i, label in data.names.items():
        lacking = [name for name in counts if not counts[name][i]]
        if lacking:
            where = "any split" if len(lacking) == len(counts) else " and ".join(lacking)
            advice = "Names and numbers of classes may be shifted" if len(lacking) == len(counts) else ""
            rows.append(Row("class", PROBLEM, f"no {part} of class {i} ({label}) in {where}", advice))
    rows += outline_problems([split for split in splits.values() if isinstance(split, Labels)])
    if data.unread:
        detail = f"label files were read; there are {KINDS[data.unread]}, too"
        rows.append(Row("data set", OK, detail, f"read={data.unread} looks at these"))
    wrong = any(row.state == PROBLEM for row in rows)
    return rows if wrong else [*rows, Row("data set", OK, "nothing wrong was found; look at the picture, too")]


def _unread(name: str, split: Split) -> Iterator[Row]:
    """Yield what a training would not read of a split, or read and mend."""
    if split.without:
        yield Row(name, PROBLEM, split.without, f"Correct {name}: in the YAML, or remove it; it gives no figures")
    if split.ignored:
        reasons = [f"{Path(file).name}: {why}" for file, why in split.ignored.items()]
        detail = f"pictures that a training leaves out: {len(reasons)} ({some(reasons)})"
        relative = not all(Path(file).is_absolute() for file in split.ignored)
        yield Row(name, PROBLEM, detail, f"Mend these {split.NOUN}s or pictures" + f"; {RELATIVE}" * relative)
    if split.remarks:
        remarks = [f"{Path(file).name}: {_remark(said)}" for file, said in split.remarks.items()]
        yield Row(name, PROBLEM, f"pictures that a training mends: {len(remarks)} ({some(remarks)})")
    if split.missing:
        expected = split.places[split.missing[0]]
        taken = "takes them as pictures without objects" if isinstance(split, Labels) else "leaves them out"
        empty = " An empty file says that there is no object." * isinstance(split, Labels)
        yield Row(
            name,
            PROBLEM,
            f"pictures without a {split.NOUN}: {len(split.missing)} ({some([Path(f).name for f in split.missing])})",
            f"A training {taken}. The first is looked for at '{expected}'.{empty}",
        )


def _remark(said: str) -> str:
    """Return upstream's remark on a picture, in the tense of somebody who has not trained yet."""
    if "corrupt JPEG" in said:
        return "the end of the JPEG file is missing; it writes the file anew"
    return said.replace("duplicate labels removed", "of its boxes there twice")


def _names(splits: dict[str, Split]) -> Iterator[Row]:
    """Yield rows on pictures that share a label file, labels without a picture, and pictures in two splits."""
    noun = next(iter(splits.values())).NOUN
    places = defaultdict(set)
    for split in splits.values():
        for image, place in split.places.items():
            places[place].add(image)
    shared = sorted(Path(image).name for images in places.values() if len(images) > 1 for image in images)
    if shared:
        detail = f"pictures that share a {noun}: {len(shared)} ({some(shared)})"
        yield Row("names", PROBLEM, detail, "Give pictures in a folder names that differ in more than their endings")
    folders = {Path(place).parent: Path(min(images)).parent for place, images in places.items()}
    folders = {folder: of for folder, of in folders.items() if of.is_dir()}  # a list may name pictures that are gone
    endings, alone = {Path(place).suffix for place in places}, []
    for folder, of in folders.items():
        pictures = {p.stem for p in of.iterdir()}  # also those that no split lists
        labels = [p for p in folder.glob("*") if p.suffix in endings and p.stem not in pictures | NOT_LABELS]
        alone += sorted(p.name for p in labels if not p.name.startswith("."))
    if alone:
        yield Row("names", PROBLEM, f"{noun}s without a picture: {len(alone)} ({some(alone)})")
    yield from _endings(folders, endings)
    yield from _copies(splits)


def _endings(folders: dict[Path, Path], endings: set[str]) -> Iterator[Row]:
    """Yield a row on files among the pictures or the labels that are not read because of the ending of their names.

    Args:
        folders (dict[Path, Path]): Folders of pictures by folders of labels.
        endings (set[str]): Of labels.
    """
    from ultralytics.data.utils import IMG_FORMATS

    taken = {f".{ending}" for ending in IMG_FORMATS}
    maps = taken if ".png" in endings else set()  # a mask may be a picture of any kind
    unread = {p for of in folders.values() for p in of.iterdir() if p.suffix.lower() not in taken | BESIDE}
    labels = (p for of in folders.keys() - {*folders.values()} for p in of.glob("*"))
    unread |= {p for p in labels if p.suffix not in BESIDE | endings and p.suffix.lower() not in maps}
    names = sorted(p.name for p in unread if p.is_file() and not p.name.startswith("."))
    if names:
        kinds = " or ".join(sorted(ending[1:] for ending in endings))
        yield Row(
            "names",
            PROBLEM,
            f"files that are not read because of their ending: {len(names)} ({some(names)})",
            f"Pictures end in {', '.join(sorted(IMG_FORMATS))}; labels in {kinds}, in small letters",
        )


def _copies(splits: dict[str, Split]) -> Iterator[Row]:
    """Yield a row on pictures that are in two splits."""
    copies = defaultdict(set)
    for group in _same_size(splits):
        for name, file in group:
            copies[hashlib.sha256(Path(file).read_bytes()).hexdigest()].add((name, file))
    twice = [sorted(found) for found in copies.values() if len({name for name, _ in found}) > 1]
    if twice:
        shown = [" = ".join(f"{name}/{Path(file).name}" for name, file in found) for found in twice]
        detail = f"pictures in two splits: {len(twice)} ({some(shown)})"
        yield Row("splits", PROBLEM, detail, "Figures of a model that has trained on them are too good")
    stems = [{Path(f).stem for f in split.images} for split in splits.values()]
    again = sum(n > 1 for n in Counter(stem for of in stems for stem in of).values())
    if again and not twice:
        yield Row("names", OK, f"names in two splits, for different pictures: {again}")


def _same_size(splits: dict[str, Split]) -> Iterator[list[tuple[str, str]]]:
    """Yield the pictures that have the same number of bytes as one of another split."""
    by_size = defaultdict(list)
    for name, split in splits.items():
        for file in split.images:
            if Path(file).is_file():
                by_size[Path(file).stat().st_size].append((name, file))
    yield from (group for group in by_size.values() if len({name for name, _ in group}) > 1)
