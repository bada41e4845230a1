# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba dataset`: what a training would read of a data set, what is wrong with it, and a picture of its boxes.

Nothing in the data set is changed. (A training repairs broken JPEG files and keeps a cache of labels beside them.)
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure

from .contact_sheet import Labelled, plot_contact_sheet
from .data import DEPTH, RELATIVE, SPLITS, about_data, beside, list_images, mask_ends, same_names
from .models_and_images import read_pictures
from .report_rows import OK, PROBLEM, Row, columns, emit, render
from .upstream import offline, quiet
from .visualize import saving

__all__ = ("Split", "draw_dataset", "problems", "read_splits", "tables")

OVER = 0.01  # of a picture's side: by so much a box may reach beyond the picture, as upstream tolerates
THIN = 2  # pixels: boxes below are dropped by upstream's augmentation
SHOWN = 3  # files named for one problem
BESIDE = {".txt", ".cache", ".npy", ".yaml", ".yml", ".ini", ".db"}  # endings of what may lie among pictures or labels
NOT_LABELS = {"classes", "obj", "labels"}  # text files that labelling tools leave among the labels


@dataclass
class Split:
    """What a training would read of one split.

    Attributes:
        images (list[str]): Picture files.
        without (str): Why there are none: only a test split may have none, which a training does not read.
        labels (dict[str, np.ndarray]): Of each picture that it would take: float (N, 5), class and box, centre and size
            as parts of the picture's sides.
        sizes (dict[str, tuple[int, int]]): Height and width of these pictures.
        missing (list[str]): Pictures without a label file.
        empty (list[str]): Pictures with an empty label file.
        ignored (dict[str, str]): Why it would leave out a picture, by its file.
        remarks (dict[str, str]): What it would mend, by file.
        polygons (int): Pictures whose objects have outlines.
    """

    images: list[str]
    without: str = ""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    polygons: int = 0

    def counts(self) -> Counter:
        """Return the number of objects by class."""
        return Counter(int(c) for rows in self.labels.values() for c in rows[:, 0])


@saving
def draw_dataset(args: SimpleNamespace) -> Figure:
    """Print what a data set holds and what is wrong with it, and draw some of its pictures with their boxes."""
    names, splits = read_splits(args.data)
    if args.out:
        _refuse_among_images(Path(args.out), splits)
    emit(tables(args.data, names, splits))
    emit(render(problems(names, splits)))
    chosen = choose(splits, args.count)
    if not chosen:
        raise ValueError(f"data={args.data}: no picture has an object, so there is nothing to draw")
    pictures = []
    for split, file in chosen:
        picture = read_pictures([file], 1, args.imgsz)[0]
        title = f"{split}/{picture.name}"
        pictures.append(Labelled(title, picture.pixels[picture.content], splits[split].labels[file]))
    return plot_contact_sheet(pictures, names)


# Reading --------------------------------------------------------------------------------------------------------------


def read_splits(data: str) -> tuple[dict[int, str], dict[str, Split]]:
    """Return the classes of a data set and its splits, read with the code that reads them for a training.

    Args:
        data (str): Its YAML.

    Raises:
        FileNotFoundError: If a split that a training reads has no pictures.
        ValueError: If the YAML cannot be used.
    """
    from ultralytics.data.utils import check_det_dataset

    folder = Path(data)
    if folder.is_dir() and not [*folder.glob("*.y*ml")]:
        raise ValueError(
            f"data={data} is a folder without a YAML: a set for classification has no label files to look at"
        )
    try:
        with quiet(), offline():
            found = check_det_dataset(data, autodownload=False)
    except Exception as e:  # of many kinds: a path, YAML or a wrong value
        raise ValueError(about_data(data, e)) from e
    names, keypoints = dict(found["names"]), found.get("kpt_shape")
    splits = {}
    for split in SPLITS:
        if split == "test" and not found.get(split):
            continue
        try:
            images = list_images(found.get(split), f"no pictures in the {split} split")
        except FileNotFoundError as e:
            if split != "test":
                raise FileNotFoundError(f"data={data}: {e}") from e
            splits[split] = Split([], str(e))
            continue
        splits[split] = read_split(images, len(names), keypoints)
    if not any(split.counts() for split in splits.values()):
        refuse_maps(data, str(found.get("masks_dir") or "masks"), splits["train"].images)
    return names, splits


def refuse_maps(data: str, masks: str, images: list[str]) -> None:
    """Raise where pictures have maps instead of objects in label files: maps of classes, or of distances.

    Args:
        data (str): The YAML, for the message.
        masks (str): Folder of the masks, as it stands in the place of `images`.
        images (list[str]): Pictures without objects.
    """
    kinds = {"masks of semantic segmentation": (masks, *mask_ends()), "depth maps": DEPTH}
    for image in images:
        for what, place in kinds.items():
            if there := next((path for path in beside(image, *place) if path.is_file()), None):
                raise ValueError(
                    f"data={data} has {what}, as '{there}', and no objects in label files, which are all that "
                    "vmamba dataset looks at"
                )


def read_split(images: list[str], classes: int, keypoints: Sequence[int] | None) -> Split:
    """Return what a training would read of some pictures.

    Args:
        images (list[str]): Their files.
        classes (int): How many the data set names.
        keypoints (Sequence[int], optional): `kpt_shape` of a set for poses.
    """
    from ultralytics.data.utils import img2label_paths, verify_image_label
    from ultralytics.utils import NUM_THREADS

    points, numbers = keypoints or (0, 0)
    settings = ("", bool(points), classes, points, numbers, False)
    work = zip(images, img2label_paths(images), *map(repeat, settings))
    split = Split(images)
    with read_only(), ThreadPool(NUM_THREADS) as pool:
        for image, result in zip(images, pool.imap(verify_image_label, work)):
            file, rows, shape, segments, _, missing, _, empty, _, message = result
            if file is None:
                split.ignored[image] = _reason(message)
                continue
            split.labels[image], split.sizes[image] = rows, shape
            split.polygons += bool(segments)
            if missing:
                split.missing.append(image)
            if empty:
                split.empty.append(image)
            if message:
                split.remarks[image] = message.removeprefix(f"{image}: ")
    return split


def _reason(said: str) -> str:
    """Return why a picture would be left out, from upstream's message."""
    reason = " ".join(said.rpartition("ignoring corrupt image/label: ")[2].split())
    if reason.startswith("[Errno 2]"):
        return "there is no such file"
    if "pi_heif" in reason or "cannot identify" in reason:
        return "no picture of a format that can be read here (HEIC needs `pip install pi-heif`)"
    return reason or "it cannot be read"


@contextmanager
def read_only() -> Iterator[None]:
    """Keep upstream's check of pictures from repairing JPEG files in place, and from installing readers of formats."""
    from ultralytics.data import utils
    from ultralytics.utils import checks

    places = ((utils, "_replace_image", lambda file, write: None), (checks, "check_requirements", lambda *a, **k: True))
    before = {(module, name): getattr(module, name) for module, name, _ in places if hasattr(module, name)}
    for module, name, nothing in places:
        if (module, name) in before:  # older releases lack the first
            setattr(module, name, nothing)
    try:
        yield
    finally:
        for (module, name), old in before.items():
            setattr(module, name, old)


# What is printed ------------------------------------------------------------------------------------------------------


def tables(data: str, names: dict[int, str], splits: dict[str, Split]) -> str:
    """Return the counts by split and by class."""
    rows = [["split", "pictures", "with objects", "empty", "no label file", "left out", "objects"]]
    for name, split in splits.items():
        filled = sum(bool(len(rows)) for rows in split.labels.values())
        parts = (split.images, None, split.empty, split.missing, split.ignored)
        numbers = [filled if part is None else len(part) for part in parts]
        rows.append([name, *map(str, numbers), str(split.counts().total())])
    counts = [split.counts() for split in splits.values()]
    classes = [["class", *splits]]
    classes += [[f"{i} {name}", *(str(count[i]) for count in counts)] for i, name in names.items()]
    return "\n".join([f"{data}, as a training reads it", "", *_aligned(rows), "", *_aligned(classes), ""])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows with their columns aligned, the first to the left."""
    widths = [max(map(columns, column)) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - columns(first))]
        cells += [cell.rjust(w) for w, cell in zip(widths[1:], rest)]
        lines.append("  ".join(cells).rstrip())
    return lines


def problems(names: dict[int, str], splits: dict[str, Split]) -> list[Row]:
    """Return what is wrong with a data set, a row for each kind; one row that says so where nothing is."""
    rows = []
    for name, split in splits.items():
        rows += _unread(name, split)
        rows += _boxes(name, split)
    rows += _names(splits)
    if twice := same_names(names):
        rows.append(Row("class", PROBLEM, twice, "Give each a name of its own: figures and weights go by it"))
    counts = {name: split.counts() for name, split in splits.items() if not split.without}
    for i, label in names.items():
        lacking = [name for name in counts if not counts[name][i]]
        if lacking:
            where = "any split" if len(lacking) == len(counts) else " and ".join(lacking)
            advice = "Names and numbers of classes may be shifted" if len(lacking) == len(counts) else ""
            rows.append(Row("class", PROBLEM, f"no object of class {i} ({label}) in {where}", advice))
    outlined = sum(split.polygons for split in splits.values())
    filled = sum(bool(len(rows)) for split in splits.values() for rows in split.labels.values())
    if 0 < outlined < filled:
        detail = f"pictures with outlines: {outlined}, with boxes: {filled - outlined}"
        rows.append(Row("kind", PROBLEM, detail, "Ultralytics drops all outlines of such a split"))
    return rows or [Row("data set", OK, "nothing wrong was found; look at the picture, too")]


def _unread(name: str, split: Split) -> Iterator[Row]:
    """Yield what a training would not read of a split, or read and mend."""
    from ultralytics.data.utils import img2label_paths

    if split.without:
        yield Row(name, PROBLEM, split.without, f"Correct {name}: in the YAML, or remove it; it gives no figures")
    if split.ignored:
        reasons = [f"{Path(file).name}: {why}" for file, why in split.ignored.items()]
        detail = f"pictures that a training leaves out: {len(reasons)} ({_some(reasons)})"
        relative = not all(Path(file).is_absolute() for file in split.ignored)
        yield Row(name, PROBLEM, detail, "Mend these labels or pictures" + f"; {RELATIVE}" * relative)
    if split.remarks:
        remarks = [f"{Path(file).name}: {_remark(said)}" for file, said in split.remarks.items()]
        yield Row(name, PROBLEM, f"pictures that a training mends: {len(remarks)} ({_some(remarks)})")
    if split.missing:
        expected = img2label_paths(split.missing[:1])[0]
        yield Row(
            name,
            PROBLEM,
            f"pictures without a label file: {len(split.missing)} ({_some([Path(f).name for f in split.missing])})",
            f"A training takes them as pictures without objects. The first is looked for at '{expected}'. An empty "
            f"file says that there is no object.",
        )


def _remark(said: str) -> str:
    """Return upstream's remark on a picture, in the tense of somebody who has not trained yet."""
    if "corrupt JPEG" in said:
        return "the end of the JPEG file is missing; it writes the file anew"
    return said.replace("duplicate labels removed", "of its boxes there twice")


def _boxes(name: str, split: Split) -> Iterator[Row]:
    """Yield rows on boxes that reach beyond their picture, or are too thin to be learned."""
    over, thin = Counter(), Counter()
    for file, rows in split.labels.items():
        height, width = split.sizes[file]
        centre, size = rows[:, 1:3], rows[:, 3:5]
        beyond = (centre - size / 2 < -OVER) | (centre + size / 2 > 1 + OVER)
        over[Path(file).name] += int(beyond.any(1).sum())
        thin[Path(file).name] += int((size * [width, height] < THIN).any(1).sum())
    for found, what, advice in (
        (
            over,
            "that reach beyond their picture",
            "Are they corners, or of a picture of another size?",
        ),
        (thin, f"thinner than {THIN} pixels", "A training drops them, and those that are as thin at its imgsz"),
    ):
        if total := found.total():
            files = [file for file, n in found.items() if n]
            yield Row(name, PROBLEM, f"boxes {what}: {total}, in {_some(files)}", advice)


def _names(splits: dict[str, Split]) -> Iterator[Row]:
    """Yield rows on pictures that share a label file, labels without a picture, and pictures in two splits."""
    from ultralytics.data.utils import img2label_paths

    places = defaultdict(set)
    for split in splits.values():
        for image, label in zip(split.images, img2label_paths(split.images)):
            places[label].add(image)
    shared = sorted(Path(image).name for images in places.values() if len(images) > 1 for image in images)
    if shared:
        detail = f"pictures that share a label file: {len(shared)} ({_some(shared)})"
        yield Row("names", PROBLEM, detail, "Give pictures in a folder names that differ in more than their endings")
    folders = {Path(label).parent: Path(min(images)).parent for label, images in places.items()}
    folders = {folder: of for folder, of in folders.items() if of.is_dir()}  # a list may name pictures that are gone
    alone = []
    for folder, of in folders.items():
        pictures = {p.stem for p in of.iterdir()}  # also those that no split lists
        labels = [p for p in folder.glob("*.txt") if p.stem not in pictures | NOT_LABELS]
        alone += sorted(p.name for p in labels if not p.name.startswith("."))
    if alone:
        yield Row("names", PROBLEM, f"label files without a picture: {len(alone)} ({_some(alone)})")
    yield from _endings(folders)
    copies = defaultdict(set)
    for group in _same_size(splits):
        for name, file in group:
            copies[hashlib.sha256(Path(file).read_bytes()).hexdigest()].add((name, file))
    twice = [sorted(found) for found in copies.values() if len({name for name, _ in found}) > 1]
    if twice:
        shown = [" = ".join(f"{name}/{Path(file).name}" for name, file in found) for found in twice]
        detail = f"pictures in two splits: {len(twice)} ({_some(shown)})"
        yield Row("splits", PROBLEM, detail, "Figures of a model that has trained on them are too good")
    stems = [{Path(f).stem for f in split.images} for split in splits.values()]
    again = sum(n > 1 for n in Counter(stem for of in stems for stem in of).values())
    if again and not twice:
        yield Row("names", OK, f"names in two splits, for different pictures: {again}")


def _endings(folders: dict[Path, Path]) -> Iterator[Row]:
    """Yield a row on files among the pictures or the labels that are not read because of the ending of their names.

    Args:
        folders (dict[Path, Path]): Folders of pictures by folders of labels.
    """
    from ultralytics.data.utils import IMG_FORMATS

    taken = {f".{ending}" for ending in IMG_FORMATS}
    unread = {p for of in folders.values() for p in of.iterdir() if p.suffix.lower() not in taken | BESIDE}
    unread |= {p for of in folders.keys() - {*folders.values()} for p in of.glob("*") if p.suffix not in BESIDE}
    names = sorted(p.name for p in unread if p.is_file() and not p.name.startswith("."))
    if names:
        yield Row(
            "names",
            PROBLEM,
            f"files that are not read because of their ending: {len(names)} ({_some(names)})",
            f"Pictures end in {', '.join(sorted(IMG_FORMATS))}; labels in txt, in small letters",
        )


def _same_size(splits: dict[str, Split]) -> Iterator[list[tuple[str, str]]]:
    """Yield the pictures that have the same number of bytes as one of another split."""
    by_size = defaultdict(list)
    for name, split in splits.items():
        for file in split.images:
            if Path(file).is_file():
                by_size[Path(file).stat().st_size].append((name, file))
    yield from (group for group in by_size.values() if len({name for name, _ in group}) > 1)


def _some(items: Sequence[str]) -> str:
    """Return the first of some texts, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


# The picture ----------------------------------------------------------------------------------------------------------


def choose(splits: dict[str, Split], count: int) -> list[tuple[str, str]]:
    """Return pictures to look at, as split and file: one for each class, rarest first, and split; the rest spread."""
    filled = [(name, file) for name, split in splits.items() for file, rows in split.labels.items() if len(rows)]
    total = sum((split.counts() for split in splits.values()), Counter())
    chosen: list[tuple[str, str]] = []
    for cls, _ in reversed(total.most_common()):
        has = [(name, file) for name, file in filled if cls in splits[name].labels[file][:, 0]]
        if len(chosen) < count and not any(place in chosen for place in has):
            chosen.append(has[0])
    for name in splits:
        of = [place for place in filled if place[0] == name]
        if of and len(chosen) < count and not any(place in chosen for place in of):
            chosen.append(of[len(of) // 2])
    left = [place for place in filled if place not in chosen]
    wanted = min(count - len(chosen), len(left))
    chosen += [left[i * len(left) // wanted] for i in range(wanted)]
    return [place for place in filled if place in chosen]


def _refuse_among_images(out: Path, splits: dict[str, Split]) -> None:
    """Raise ValueError for a picture that would lie among those of the data set, and so be trained on."""
    folders = {Path(file).resolve().parent for split in splits.values() for file in split.images}
    if folders & {*out.resolve().parents}:
        raise ValueError(f"out='{out}' lies among the pictures of the data set; give another place")
