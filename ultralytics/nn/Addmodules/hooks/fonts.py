# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Names in plots and pictures in every script for which this machine has a font; one warning where it has none.

Matplotlib's own font has no Chinese, and Ultralytics downloads one for its pictures: both give boxes without a network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache, wraps

__all__ = ("font_families", "show_names", "show_names_of_training")

# Fonts with many scripts, looked at first; any other that has the characters will do
KNOWN = ("Microsoft YaHei", "PingFang SC", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Arial Unicode MS")


def show_names_of_training(trainer) -> None:
    """Prepare fonts for the class names of a training; a callback for the time before its data is read."""
    read = trainer.get_dataset

    @wraps(read)
    def get_dataset():
        data = read()
        prepare(data.get("names") if isinstance(data, dict) else None)
        return data

    trainer.get_dataset = get_dataset


def show_names(owner) -> None:
    """Prepare fonts for the class names of a validation or a prediction; a callback for its start.

    Args:
        owner (BaseValidator | BasePredictor): Upstream's.
    """
    data = getattr(owner, "data", None)
    prepare((data or {}).get("names") if isinstance(data, dict) else None)
    prepare(getattr(getattr(owner, "model", None), "names", None))


def prepare(names: dict[int, str] | list[str] | None) -> None:
    """Make matplotlib and Ultralytics' pictures show these names, if they need more than Latin letters."""
    texts = [str(name) for name in (names.values() if isinstance(names, dict) else names or ())]
    if all(text.isascii() for text in texts):
        return
    import matplotlib

    from ultralytics.utils import plotting

    matplotlib.rcParams["font.family"] = font_families(texts, matplotlib.rcParams["font.family"])
    if not hasattr(plotting.check_font, "__wrapped__"):
        plotting.check_font = with_local_font(plotting.check_font, "".join(texts))


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
    if found and found[0] not in families:
        families.append(found[0])
    return families


def with_local_font(upstream: Callable, texts: str) -> Callable:
    """Decorate Ultralytics' search for a font: where it finds none, one of this machine is taken.

    Args:
        upstream (Callable): It returns a file, or None where it cannot download one.
        texts (str): The characters that are to be shown.
    """

    @cache
    @wraps(upstream)
    def check_font(font: str = "Arial.ttf"):
        try:
            file = upstream(font)
        except Exception:  # whatever a download raises
            file = None
        if file is None and "Unicode" in str(font) and (found := font_with(frozenset(texts) - {" "})):
            file = found[1]
        return file

    return check_font


@cache
def font_with(wanted: frozenset[str]) -> tuple[str, str] | None:
    """Return name and file of a font that has some characters, or None, which is said in a warning."""
    from matplotlib import font_manager

    fonts = font_manager.fontManager.ttflist
    for font in sorted(fonts, key=lambda f: KNOWN.index(f.name) if f.name in KNOWN else len(KNOWN)):
        if wanted <= characters(font.fname):
            return font.name, font.fname
    known = {font.fname for font in fonts}
    for file in font_manager.findSystemFonts():  # matplotlib's list is as old as its cache
        if file not in known and wanted <= characters(file):
            font_manager.fontManager.addfont(file)
            return font_manager.fontManager.ttflist[-1].name, file
    from ultralytics.utils import LOGGER

    shown = "".join(sorted(wanted)[:8])
    LOGGER.warning(
        f"VMamba: no font of this machine shows '{shown}', so names in plots and pictures will be boxes; install one "
        f"that does, for Chinese Noto Sans CJK (Debian and Ubuntu: sudo apt install fonts-noto-cjk)"
    )
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    return None


def default_font(families: tuple[str, ...]) -> str:
    """Return the file that matplotlib takes for families."""
    from matplotlib import font_manager

    return font_manager.findfont(font_manager.FontProperties(family=list(families)))


@cache
def characters(file: str) -> frozenset[str]:
    """Return the characters of a font; none where the file cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        if font.family_name.startswith("Last Resort"):  # it has a box for every character
            return frozenset()
        return frozenset(map(chr, font.get_charmap()))
    except (RuntimeError, OSError):  # a font of a kind that FreeType does not read
        return frozenset()
