# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Names in plots and pictures in every script for which this machine has a font; one warning where it has none.

Matplotlib's own font has no Chinese, and Ultralytics downloads one for its pictures: both give boxes without a network.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from functools import cache, wraps
from pathlib import Path
from typing import NamedTuple

__all__ = ("font_families", "show_names", "show_names_of_training", "when_drawn")

# Fonts with many scripts, looked at first; any other that has the characters will do
KNOWN = ("Microsoft YaHei", "PingFang SC", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Arial Unicode MS")
_said: set[str] = set()


class Font(NamedTuple):
    """A font of this machine. One with bitmaps has pictures for small letters, which matplotlib 3.11 leaves out."""

    name: str
    file: str
    bitmaps: bool


def show_names_of_training(trainer) -> None:
    """Prepare fonts for the class names of a training; a callback for the time before its data is read."""
    read = trainer.get_dataset

    @wraps(read)
    def get_dataset():
        data = read()
        prepare(class_names(data))
        return data

    trainer.get_dataset = get_dataset


def show_names(owner) -> None:
    """Prepare fonts for the names of classes and picture files; a callback for the start of what draws them.

    Args:
        owner (BaseTrainer | BaseValidator | BasePredictor): Upstream's.
    """
    names = class_names(getattr(owner, "data", None)) or class_names(getattr(owner, "model", None))
    loaders = [getattr(owner, name, None) for name in ("train_loader", "test_loader", "dataloader")]
    files = {file for loader in loaders for file in getattr(getattr(loader, "dataset", None), "im_files", ())}
    prepare(names, [Path(file).name for file in files])


def class_names(owner) -> list[str]:
    """Return the class names of what Ultralytics read from a data file, or of a model."""
    names = owner.get("names") if isinstance(owner, dict) else getattr(owner, "names", None)
    return [str(name) for name in (names.values() if isinstance(names, dict) else names or ())]


def prepare(names: Iterable[str], files: Iterable[str] = ()) -> None:
    """Make matplotlib and Ultralytics' pictures show these texts, if they need more than Latin letters.

    Args:
        names (Iterable[str]): Of classes.
        files (Iterable[str]): Of pictures. Where no font has the letters of all, class names come first.
    """
    classes, shown = frozenset("".join(names)), frozenset("".join([*names, *files]))
    if all(c.isascii() for c in shown):
        return
    if not all(c.isascii() for c in classes) and font_with(visible(shown)) is None and font_with(visible(classes)):
        letters = "".join(sorted(shown - classes - {*map(chr, range(128))})[:8])
        warn("files", f"no font of this machine shows the class names and '{letters}' of names of picture files")
        shown = classes
    import matplotlib

    from ultralytics.utils import plotting

    matplotlib.rcParams["font.family"] = font_families(shown, matplotlib.rcParams["font.family"])
    if not hasattr(plotting.check_font, "shown"):
        plotting.check_font = with_local_font(plotting.check_font)
    plotting.check_font.shown = visible(shown)


def visible(texts: Iterable[str]) -> frozenset[str]:
    """Return the characters that a font must have."""
    return frozenset(c for c in "".join(texts) if c.isprintable() and c != " ")


def font_families(texts: Iterable[str], families: Iterable[str] = ("DejaVu Sans",)) -> list[str]:
    """Return font families for matplotlib, with one behind them that has the characters that they lack.

    Where there is none, one warning says so, and matplotlib's own for each character are silenced.

    Args:
        texts (Iterable[str]): What is to be shown.
        families (Iterable[str]): Families that are tried first.
    """
    families = list(families)
    wanted = frozenset("".join(texts)) - characters(default_font(tuple(families)))
    wanted = frozenset(c for c in wanted if c.isprintable())
    if not wanted:
        return families
    found = font_with(wanted)
    shown = "".join(sorted(wanted)[:8])
    if found is None:
        warn("none", f"no font of this machine shows '{shown}', so names in plots and pictures will be boxes")
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return families
    if found.bitmaps:
        warn(
            "bitmaps", f"{found.name}, the only font for '{shown}', has bitmaps for small letters, which plots may lack"
        )
    if found.name not in families:
        families.append(found.name)
        logging.getLogger("matplotlib.font_manager").addFilter(no_word_on_weight)
    return families


def with_local_font(upstream: Callable) -> Callable:
    """Decorate Ultralytics' search for a font: one of this machine is taken before 23 MB are downloaded from GitHub.

    Its attribute `shown` is what the font must have. That can be names of files, which Ultralytics writes in its font
    for Latin letters.

    Args:
        upstream (Callable): It returns a file, or None where it cannot download one.
    """

    @wraps(upstream)
    def check_font(font: str = "Arial.ttf"):
        if found := font_with(check_font.shown):
            return found.file
        try:
            return upstream(font)
        except Exception:  # whatever a download raises
            return None

    check_font.shown = frozenset()
    return check_font


def when_drawn(upstream: Callable) -> Callable:
    """Decorate the search that comes when data is read: a font of many scripts is looked for when names are drawn.

    Args:
        upstream (Callable): Ultralytics' search, which would download one before anybody knows what it must have.
    """

    @wraps(upstream)
    def check_font(font: str = "Arial.ttf"):
        return None if "Unicode" in str(font) else upstream(font)

    return check_font


@cache
def font_with(wanted: frozenset[str]) -> Font | None:
    """Return a font that has some characters: outlines before bitmaps, known ones before others; None without one."""
    from matplotlib import font_manager

    entries = font_manager.fontManager.ttflist
    if (found := first(entries, wanted)) and not found.bitmaps:
        return found
    known, before = {entry.fname for entry in entries}, len(entries)
    for file in font_manager.findSystemFonts():  # matplotlib's list is as old as its cache
        if file not in known and wanted <= characters(file):
            font_manager.fontManager.addfont(file)  # with all faces of a collection
    added = first(entries[before:], wanted)
    return added if added and (found is None or not added.bitmaps) else found


def first(entries: list, wanted: frozenset[str]) -> Font | None:
    """Return the best of matplotlib's entries that have some characters."""
    from matplotlib.font_manager import weight_dict

    def order(entry) -> tuple[int, int]:
        known = KNOWN.index(entry.name) if entry.name in KNOWN else len(KNOWN)
        return known, abs(weight_dict.get(entry.weight, entry.weight) - 400)  # regular before bold

    last = None
    for entry in sorted(entries, key=order):
        index = getattr(entry, "index", 0)  # older versions of matplotlib read the first face of a collection alone
        if wanted <= characters(entry.fname, index):
            found = Font(entry.name, entry.fname, bool(face(entry.fname, index).num_fixed_sizes))
            if not found.bitmaps:
                return found
            last = last or found
    return last


def warn(kind: str, what: str) -> None:
    """Say once a process what is wrong with the fonts, and which to install."""
    from ultralytics.utils import LOGGER

    if kind in _said:
        return
    _said.add(kind)
    LOGGER.warning(
        f"VMamba: {what}; install one that does, for Chinese Noto Sans CJK (Debian and Ubuntu: sudo apt install "
        "fonts-noto-cjk; without root: put a .ttf, .otf or .ttc file into ~/.local/share/fonts)"
    )


def no_word_on_weight(record: logging.LogRecord) -> bool:
    """Refuse what matplotlib logs, once a size, of a font without a regular weight: it shows the names all the same."""
    return "Failed to find font weight" not in record.getMessage()


def default_font(families: tuple[str, ...]) -> str:
    """Return the file that matplotlib takes for families."""
    from matplotlib import font_manager

    return font_manager.findfont(font_manager.FontProperties(family=list(families)))


def face(file: str, index: int = 0):
    """Return a font of a file, which may be a collection."""
    from matplotlib.ft2font import FT2Font

    return FT2Font(file, face_index=index) if index else FT2Font(file)


@cache
def characters(file: str, index: int = 0) -> frozenset[str]:
    """Return the characters of a font; none where the file cannot be read."""
    try:
        font = face(file, index)
        if font.family_name.startswith("Last Resort"):  # it has a box for every character
            return frozenset()
        return frozenset(map(chr, font.get_charmap()))
    except (RuntimeError, OSError):  # a font of a kind that FreeType does not read
        return frozenset()
