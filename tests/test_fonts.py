# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Names that are not Latin: shown where this machine has a font for them, else one warning."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from ultralytics.nn.Addmodules.hooks import fonts
from ultralytics.utils import plotting

NAMES = {0: "猫", 1: "狗"}
UPSTREAMS = plotting.check_font


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a test a machine whose only fonts are matplotlib's, and put back what it changes."""
    fonts.font_with.cache_clear()
    monkeypatch.setattr(fonts, "_said", set())
    own = [f for f in font_manager.fontManager.ttflist if "matplotlib" in f.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    monkeypatch.setattr(plotting, "check_font", lambda font="": None)  # no network
    with matplotlib.rc_context(), warnings.catch_warnings():
        yield
    fonts.font_with.cache_clear()


def squares(file: Path, family: str = "Two Squares", style: str = "Regular", weight: int = 500) -> Path:
    """Write a font of two Chinese characters, squares both."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for i, at in enumerate(((100, 0), (100, 700), (800, 700), (800, 0))):
        (pen.lineTo if i else pen.moveTo)(at)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat", "dog"])
    builder.setupCharacterMap({ord("猫"): "cat", ord("狗"): "dog", ord("."): "dog"})
    builder.setupGlyf(dict.fromkeys([".notdef", "cat", "dog"], pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "cat", "dog"], (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2(usWeightClass=weight)
    builder.setupPost()
    builder.save(file)
    return file


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """Return a font of two Chinese characters."""
    return squares(tmp_path / "squares.ttf")


def complaints(names: dict[int, str]) -> list[str]:
    """Draw names as the plots do and return what matplotlib says."""
    figure = Figure()
    figure.subplots().set_title(" ".join(names.values()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO())
    return [str(w.message) for w in caught]


def trainer(names: dict[int, str]) -> SimpleNamespace:
    """Return what a training's callback gets, after its data is read."""
    found = SimpleNamespace(get_dataset=lambda: {"names": names})
    fonts.show_names_of_training(found)
    assert found.get_dataset() == {"names": names}
    return found


def test_a_font_of_the_machine_is_found(font: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    assert complaints(NAMES)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    trainer(NAMES)
    assert complaints(NAMES) == []
    assert log == []
    assert plotting.check_font("Arial.Unicode.ttf") == str(font)
    picture = plotting.Annotator(np.zeros((60, 200, 3), np.uint8), example="猫", pil=True)
    assert Path(picture.font.path) == font


def test_without_a_font_one_warning(log: list[str]) -> None:
    for _ in range(2):
        trainer(NAMES)
        fonts.show_names(SimpleNamespace(data={"names": NAMES}, model=SimpleNamespace(names=NAMES)))
    assert len(log) == 1
    assert "no font of this machine shows '狗猫'" in log[0]
    assert "fonts-noto-cjk" in log[0]


@pytest.mark.parametrize("names", [{0: "cat"}, {0: "Füchse"}, {}, None])
def test_latin_names_change_nothing(names: dict[int, str] | None, log: list[str]) -> None:
    before, check = list(matplotlib.rcParams["font.family"]), plotting.check_font
    files = SimpleNamespace(dataset=SimpleNamespace(im_files=["数据/cat.jpg"]))  # the folder is not shown
    fonts.show_names(SimpleNamespace(data={"names": names}, model=None, dataloader=files))
    assert list(matplotlib.rcParams["font.family"]) == before
    assert log == []
    if names == {0: "cat"}:
        assert plotting.check_font is check


def test_a_font_of_the_machine_comes_before_a_download(monkeypatch: pytest.MonkeyPatch, font: Path) -> None:
    monkeypatch.setattr(plotting, "check_font", lambda font="": "downloaded.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    trainer(NAMES)
    assert plotting.check_font("Arial.Unicode.ttf") == str(font)


def test_upstreams_own_search_is_replaced(monkeypatch: pytest.MonkeyPatch, font: Path) -> None:
    """It is wrapped itself, which is no sign that it was replaced."""
    monkeypatch.setattr(plotting, "check_font", UPSTREAMS)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    trainer(NAMES)
    picture = plotting.Annotator(np.zeros((60, 200, 3), np.uint8), example="猫", pil=True)
    assert Path(picture.font.path) == font


def test_nothing_is_downloaded_when_data_is_read() -> None:
    from ultralytics.data import utils

    assert utils.check_font("Arial.Unicode.ttf") is None


def test_names_of_files_take_a_font_too(monkeypatch: pytest.MonkeyPatch, font: Path) -> None:
    """Ultralytics writes them into its pictures of batches."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    loader = SimpleNamespace(dataset=SimpleNamespace(im_files=["a/猫.狗"]))
    fonts.show_names(SimpleNamespace(data={"names": ["."]}, train_loader=loader))
    assert plotting.check_font("Arial.ttf") == str(font)


def test_class_names_come_before_names_of_files(monkeypatch: pytest.MonkeyPatch, font: Path, log: list[str]) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    fonts.prepare(["猫", "狗"], ["猫.狗", "\N{RUNIC LETTER FEHU FEOH FE F}.jpg"])
    assert plotting.check_font("Arial.Unicode.ttf") == str(font)
    assert sum("of names of picture files" in line for line in log) == 1


def test_other_names_take_another_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, font: Path) -> None:
    monkeypatch.setattr(plotting, "check_font", lambda font="": "downloaded.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    trainer({0: "鸟"})
    assert plotting.check_font("Arial.Unicode.ttf") == "downloaded.ttf"
    trainer(NAMES)
    assert plotting.check_font("Arial.Unicode.ttf") == str(font)


def test_without_a_font_upstreams_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "check_font", lambda font="": "downloaded.ttf")
    trainer(NAMES)
    assert plotting.check_font("Arial.Unicode.ttf") == "downloaded.ttf"


def with_bitmaps(*families: str):
    """Return a reader of fonts that finds bitmaps for small letters in these families."""

    def face(file: str, index: int = 0):
        found = real(file, index)
        return SimpleNamespace(
            family_name=found.family_name,
            get_charmap=found.get_charmap,
            num_fixed_sizes=5 if found.family_name in families else 0,
        )

    real = fonts.face
    return face


def test_a_collection_gives_a_face_without_bitmaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """WenQuanYi Zen Hei ends with a face whose small letters matplotlib 3.11 leaves out: a legend without words."""
    from fontTools.ttLib import TTCollection, TTFont

    collection = TTCollection()
    for family in ("Zen", "Zen Sharp"):
        collection.fonts.append(TTFont(squares(tmp_path / f"{family}.ttf", family)))
    collection.save(tmp_path / "zen.ttc")
    monkeypatch.setattr(fonts, "face", with_bitmaps("Zen Sharp"))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "zen.ttc")])
    assert fonts.font_families(NAMES.values()) == ["DejaVu Sans", "Zen"]
    assert log == []


def test_regular_comes_before_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noto Sans CJK is two files, and the order in which a system lists files is none."""
    bold = squares(tmp_path / "bold.ttf", style="Bold", weight=700)
    regular = squares(tmp_path / "regular.ttf", weight=400)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(bold), str(regular)])
    trainer(NAMES)
    assert plotting.check_font("Arial.Unicode.ttf") == str(regular)
    chosen = font_manager.fontManager.findfont(font_manager.FontProperties(family="Two Squares"))
    assert Path(chosen) == regular


def test_bitmaps_are_taken_last_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    song, other = squares(tmp_path / "song.ttf", "Song"), squares(tmp_path / "other.ttf", "Other")
    monkeypatch.setattr(fonts, "face", with_bitmaps("Song"))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(song)])
    assert fonts.font_families(NAMES.values()) == ["DejaVu Sans", "Song"]
    assert fonts.font_families(NAMES.values()) == ["DejaVu Sans", "Song"]
    (line,) = log
    assert "Song, the only font for '狗猫', has bitmaps" in line
    fonts.font_with.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(song), str(other)])
    assert fonts.font_families(NAMES.values()) == ["DejaVu Sans", "Other"]


def test_matplotlib_says_nothing_of_a_fonts_weight(
    font: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    trainer(NAMES)
    font_manager.fontManager.findfont(
        font_manager.FontProperties(family="Two Squares", size=6.28), fallback_to_default=False
    )
    assert caplog.messages == []


def test_pictures_of_ours_take_it_too(font: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ultralytics.nn.Addmodules.tools.draw import plot_receptive_fields
    from ultralytics.nn.Addmodules.tools.receptive_fields import Field

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    figure = plot_receptive_fields({"猫狗": {"P3": Field(torch.eye(9, dtype=torch.double), (4, 4))}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())


def test_orders_and_contact_sheets_show_names_to_the_letter() -> None:
    """Matplotlib takes `$...$` for a formula and fails where it is none."""
    from ultralytics.nn.Addmodules.tools.dataset.contact_sheet import Described, plot_contact_sheet
    from ultralytics.nn.Addmodules.tools.draw import plot_orders
    from ultralytics.nn.Addmodules.tools.models_and_images import Picture

    odd, pixels = r"$\foo$", np.zeros((64, 64, 3), np.uint8)
    picture = Picture(odd, pixels, (slice(0, 64), slice(0, 64)))
    plot_orders(picture, {"rows": odd}).savefig(io.BytesIO())
    labels = np.array([[0, 0.5, 0.5, 0.2, 0.2]])
    plot_contact_sheet([Described(odd, pixels, labels)], {0: odd}).savefig(io.BytesIO())
