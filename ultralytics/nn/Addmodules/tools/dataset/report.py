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
from .maps import Depths, Masks, depth_problems, map_problems
from .read import KINDS, DataSet
from .split import Split
from .wording import aligned, digits, part, some

__all__ = ("problems", "tables")

BESIDE = {".txt", ".cache", ".npy", ".yaml", ".yml", ".ini", ".db"}  # endings of what may lie among pictures or labels
NOT_LABELS = {"classes", "obj", "labels"}  # text files that labelling tools leave among the labels


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
    names = {i: f"{i} {name}" for i, name in data.names.items()}
    if masks:
        names = {i: name for i, name in names.items() if i < IGNORED}
        if any(count[IGNORED] for count in counts):
            names[IGNORED] = f"{IGNORED} (counts for no class)"
    rows = [["pixels, %" if masks else "class", *data.splits]]
    for i, name in names.items():
        rows.append([name, *(part(count[i], count.total()) if masks else str(count[i]) for count in counts)])
    return rows


def _distances(data: DataSet) -> list[list[str]]:
    """Return the rows of a table of distances."""
    found = [[*split.metres.values()] for split in data.splits.values()]
    known = [[m for m in ms if m.without < 1] for ms in found]
    rows = [["metres", *data.splits]]
    for title, field, of in (
        ("smallest", "smallest", np.min),
        ("median of the pictures' medians", "middle", np.median),
        ("largest", "largest", np.max),
    ):
        rows.append([title, *(digits(of([getattr(m, field) for m in ms])) if ms else "-" for ms in known)])
    lack = [part(sum(m.without for m in ms), len(ms)) if ms else "-" for ms in found]
    return [*rows, ["pixels without a distance, %", *lack]]


def problems(data: DataSet) -> list[Row]:
    """Return what is wrong with a data set, a row for each kind; one row that says so where nothing is."""
    rows, splits = [], data.splits
    kind = type(next(iter(splits.values())))
    for name, split in splits.items():
        rows += _unread(name, split)
        if kind is Labels:
            rows += box_problems(name, split)
        elif kind is Depths:
            rows += depth_problems(name, split)
    rows += outline_problems([*splits.values()]) if kind is Labels else map_problems(splits)
    rows += _names(splits)
    if twice := same_names(data.names):
        rows.append(Row("class", PROBLEM, twice, "Give each a name of its own: figures and weights go by it"))
    if kind is Masks and len(data.names) > IGNORED:
        detail = f"{len(data.names)} classes, but a mask has room for {IGNORED}: 0 to {IGNORED - 1}"
        rows.append(Row("class", PROBLEM, detail, f"{IGNORED} counts for no class"))
    rows += _lacking(data)
    if data.unread:
        there = " and ".join(KINDS[name] for name in data.unread)
        looks = " or ".join(f"read={name}" for name in data.unread)
        noun = next(iter(splits.values())).NOUN
        rows.append(Row("data set", OK, f"{noun}s were read; there are {there}, too", f"{looks} looks at these"))
    wrong = any(row.state == PROBLEM for row in rows)
    return rows if wrong else [*rows, Row("data set", OK, "nothing wrong was found; look at the picture, too")]


def _lacking(data: DataSet) -> Iterator[Row]:
    """Yield rows on classes that a split has nothing of."""
    counts = {name: split.counts() for name, split in data.splits.items() if not split.without}
    part_of = next(iter(data.splits.values())).PART
    where: dict[str, list[str]] = defaultdict(list)
    for i, label in data.names.items():
        lacking = [name for name in counts if not counts[name][i]]
        if lacking:
            everywhere = len(lacking) == len(counts)
            where["any split" if everywhere else " and ".join(lacking)].append(f"{i} ({label})")
    for place, classes in where.items():
        advice = "Names and numbers of classes may be shifted" if place == "any split" else ""
        if part_of == "pixel" and len(data.names) == 2 and any(count[IGNORED] for count in counts.values()):
            advice = f"{IGNORED} counts for no class; the line label_mapping: {{{IGNORED}: 1}} makes it class 1"
        of = f"class {classes[0]}" if len(classes) == 1 else f"{len(classes)} classes: {some(classes, between=', ')}"
        yield Row("class", PROBLEM, f"no {part_of} of {of} in {place}", advice)


def _unread(name: str, split: Split) -> Iterator[Row]:
    """Yield what a training would not read of a split, or read and mend."""
    if split.without:
        yield Row(name, PROBLEM, split.without, f"Correct {name}: in the YAML, or remove it; it gives no figures")
    if split.ignored:
        reasons = [f"{Path(file).name}: {why}" for file, why in split.ignored.items()]
        detail = f"pictures that a training leaves out: {len(reasons)} ({some(reasons)})"
        relative = not all(Path(file).is_absolute() for file in split.ignored)
        advice = f"Mend these {split.NOUN}s or pictures" + f"; {RELATIVE}" * relative
        if any("which are no classes" in why for why in split.ignored.values()):
            advice += (
                ". label_mapping: in the YAML gives the numbers in masks other classes, as {7: 0, 9: ignore_label}"
            )
        yield Row(name, PROBLEM, detail, advice)
    if split.remarks:
        remarks = [f"{Path(file).name}: {_remark(said)}" for file, said in split.remarks.items()]
        yield Row(name, PROBLEM, f"pictures that a training mends: {len(remarks)} ({some(remarks)})")
    if split.missing:
        expected = split.place(split.missing[0])
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
    endings, alone = {ending for split in splits.values() for ending in split.endings()}, []
    for folder, of in folders.items():
        if folder == of and ".txt" not in endings:
            continue  # maps among the pictures
        pictures = {p.stem for p in of.iterdir()}  # also those that no split lists
        labels = [p for p in folder.glob("*") if p.suffix in endings and p.stem not in pictures | NOT_LABELS]
        alone += sorted(p.name for p in labels if not p.name.startswith("."))
    if alone:
        yield Row("names", PROBLEM, f"{noun}s without a picture: {len(alone)} ({some(alone)})")
    yield from _endings(noun, folders, endings)
    yield from _copies(splits)


def _endings(noun: str, folders: dict[Path, Path], endings: set[str]) -> Iterator[Row]:
    """Yield a row on files among the pictures or the labels that are not read because of the ending of their names.

    Args:
        noun (str): What describes a picture.
        folders (dict[Path, Path]): Folders of pictures by folders of labels.
        endings (set[str]): Of labels.
    """
    from ultralytics.data.utils import IMG_FORMATS

    taken = {f".{ending}" for ending in IMG_FORMATS}
    unread = {p for of in folders.values() for p in of.iterdir() if p.suffix.lower() not in taken | BESIDE}
    labels = (p for of in folders.keys() - {*folders.values()} for p in of.glob("*"))
    unread |= {p for p in labels if p.suffix not in BESIDE | endings}
    names = sorted(p.name for p in unread if p.is_file() and not p.name.startswith("."))
    if names:
        kinds = ", ".join(sorted(ending[1:] for ending in endings))
        yield Row(
            "names",
            PROBLEM,
            f"files that are not read because of their ending: {len(names)} ({some(names)})",
            f"Pictures end in {', '.join(sorted(IMG_FORMATS))}; {noun}s in {kinds}, in small letters",
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
