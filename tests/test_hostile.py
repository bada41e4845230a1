# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba` for people who give it anything: one sentence with the value, a status that is not 0, never a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data import make_data
from ultralytics import YOLO
from ultralytics.nn.Addmodules.hooks.failures import sentence
from ultralytics.nn.Addmodules.tools.verbs import main

BLOCKS = """
from torch import nn


class Divides(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.x = dim / 0


class Recurs(nn.Module):
    def __init__(self, dim):
        super().__init__()
        Recurs(dim)


class Fails(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.layer = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        return self.leyer(x)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    YOLO("VMamba-yolon.yaml").save(folder / "v.pt")
    broken = YOLO("VMamba-yolon.yaml")
    torch.nn.init.constant_(broken.model.model[0].conv.weight, float("nan"))
    broken.save(folder / "nan.pt")
    whole = (folder / "v.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "noise.pt").write_bytes(b"\xaa\x01" * 500)
    torch.save({"a": 1}, folder / "dict.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "layer.pt")
    make_data(folder, "detect", 2, 2)
    text = (folder / "data.yaml").read_text(encoding="utf-8")
    (folder / "letters.yaml").write_text(text.replace("0: square", "a: square"), encoding="utf-8")
    torch.save({"model": torch.nn.Linear(2, 2)}, folder / "linear.pt")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    (folder / "list.yaml").write_text("[1, 2]", encoding="utf-8")
    (folder / "headless.yaml").write_text("nc: 2\nbackbone:\n- [-1, 1, Conv, [16, 3, 2]]\n", encoding="utf-8")
    (folder / "hostile_syntax.py").write_text("from torch import nn\nx =\n", encoding="utf-8")
    (folder / "hostile_raises.py").write_text("raise RuntimeError('my own trouble')\n", encoding="utf-8")
    (folder / "hostile_blocks.py").write_text(BLOCKS, encoding="utf-8")
    (folder / "folder").mkdir()
    Image.new("L", (1, 1)).save(folder / "one.png")
    return folder


GRAFT = ["graft", "model=v.pt", "out=g.pt"]
ORDERS = ["visualize", "orders", "out=o.png"]
ERF = ["visualize", "erf", "count=1", "imgsz=64", "out=o.png"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*ORDERS, "grid=100000"], "grid must be an integer from 1 to 32, got '100000'"),
        ([*ORDERS, "imgsz=100000"], "imgsz must be an integer from 1 to 4096"),
        ([*ERF[:2], "models=v.pt", "count=99999999999"], "count must be an integer from 1 to 10000"),
        ([*ERF, "models=v.pt", "device=meta"], "device 'meta' cannot be used, device=cpu can"),
        ([*ERF, "models=half.pt"], "empty, truncated or corrupted"),
        ([*ERF, "models=VMamba-yolon.pt"], "no weights of VMamba models to download: train VMamba-yolon.yaml"),
        (["visualize", "activations", "models=nan.pt", "imgsz=64", "out=o.png"], "not finite"),
        ([*ORDERS[:2], "out="], "out must be the name of a file, got ''"),
        (["compare", "data=d", "models=a,b", "seeds=1000000000"], "of at most 1000, got '1000000000'"),
        (["compare", "data=d", "models=a,b", "seeds=[99999999999999999999]"], "at most 1000 seeds below 2147483648"),
        (["checks", "json="], "json must be the name of a file, got ''"),
        (["graft", "model=", "out=g.pt"], "'' is no model file"),
        ([*GRAFT, "options=expand:1e30"], "SS2D cannot be built for"),
        ([*GRAFT, "options=d_state:1000000000"], "not enough memory"),
        ([*GRAFT, "options=d_state:99999999999999999999"], "SS2D cannot be built for"),
        ([*GRAFT, "options=dt_min:nan"], "dt_min must be a number, got 'nan'"),
        ([*GRAFT, "options=dt_init_floor:x"], "dt_init_floor must be a number"),
        ([*GRAFT, "options=bias:x"], "bias must be True or False, got 'x'"),
        ([*GRAFT, "block=MambaLayer", "options=expand:1e30"], "MambaLayer cannot be built for"),
        ([*GRAFT, "block=VSSBlock", "options=expand:1e30"], "VSSBlock cannot be built for"),
        ([*GRAFT, "block=hostile_syntax.X"], "'hostile_syntax' cannot be imported for the block"),
        ([*GRAFT, "block=hostile_raises.X"], "RuntimeError: my own trouble"),
        ([*GRAFT, "block=hostile_blocks.Divides"], "ZeroDivisionError: division by zero"),
        ([*GRAFT, "block=hostile_blocks.Recurs"], "RecursionError"),
        ([*GRAFT, "block=hostile_blocks.Fails"], "no attribute 'leyer'"),
        ([*GRAFT, "block=a..b"], "'a..b' is no name of a class"),
        ([*GRAFT, "block=.x"], "there is no block '.x'"),
        (["graft", "model=half.pt"], "half.pt is not a loadable checkpoint"),
        (["graft", "model=empty.pt"], "empty.pt is not a loadable checkpoint"),
        (["graft", "model=noise.pt"], "noise.pt is not a loadable checkpoint"),
        (["graft", "model=dict.pt"], "it is no checkpoint of Ultralytics"),
        (["graft", "model=linear.pt"], "has no rows from a model YAML"),
        (["graft", "model=bytes.yaml"], "it has no list of rows called 'backbone'"),
        (["graft", "model=list.yaml"], "not a valid YAML mapping"),
        (["graft", "model=headless.yaml"], "it has no list of rows called 'head'"),
    ],
    ids=lambda x: " ".join(x[1:])[-40:] if isinstance(x, list) else "",
)
def test_one_sentence(
    args: list[str], said: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    before = sorted(p.name for p in made.iterdir() if p.name != "__pycache__")
    assert main(args) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert said in lines[-1]
    assert len(lines[-1]) < 600
    assert sorted(p.name for p in made.iterdir() if p.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["model=tensor.pt", "data=data.yaml"], "'tensor.pt' is no checkpoint of Ultralytics but a Tensor"),
        (["model=layer.pt", "data=data.yaml"], "'layer.pt' is no checkpoint of Ultralytics but a Linear"),
        (["resume=tensor.pt"], "'tensor.pt' is no checkpoint of Ultralytics but a Tensor"),
        (["model=VMamba-yolon.pt", "data=data.yaml"], "no weights of VMamba models to download"),
        (["data=letters.yaml"], "'data=letters.yaml' is no data file: ValueError: invalid literal for int()"),
        (
            ["data=data.yaml", "task=pose"],
            "'task=pose': the model file lacks 'kpt_shape', which that task needs; leave",
        ),
        (["data=data.yaml", "task=x"], "does not support '_new' mode for 'x' task"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_train_py_says_one_sentence(args: list[str], said: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train

    def never(self, **settings) -> None:
        raise AssertionError("a training begins")

    monkeypatch.setattr(YOLO, "train", never)
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit) as caught:
        train.main([*args, "device=cpu"])
    assert said in str(caught.value)


@pytest.mark.parametrize("door", ["graft", "yolo"])
def test_weights_that_cannot_be_downloaded_can_be_fetched_in_another_way(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from ultralytics import cfg
    from ultralytics.cfg import VMamba_door
    from ultralytics.utils import SETTINGS, downloads

    def no_network(*_, **__) -> None:
        raise ConnectionError("❌  Download failure for URL. Environment may be offline.")

    monkeypatch.setattr(downloads, "safe_download", no_network)
    monkeypatch.setitem(SETTINGS, "weights_dir", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    if door == "graft":
        assert main(["graft", "model=yolo11n.pt"]) == 1
    else:
        monkeypatch.setattr(cfg, "ARGV", ["yolo", "detect", "train", "model=yolo11n.pt", "data=x.yaml"])
        assert VMamba_door.main() == 1
    said = capsys.readouterr().err
    assert f"may be offline. Or fetch the file in another way, and put it here: '{tmp_path / 'yolo11n.pt'}'" in said
    assert "Traceback" not in said


def test_options_are_looked_at_before_the_target(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(made)
    (made / "taken.pt").touch()
    assert main(["graft", "model=v.pt", "out=taken.pt", "options=expand:0"]) == 1
    assert "expand must be positive, got 0" in capsys.readouterr().err
    assert main(["graft", "model=v.pt", "out=taken.pt"]) == 1
    assert "'taken.pt' exists" in capsys.readouterr().err
    (made / "taken.pt").unlink()


def test_pytorchs_words_on_a_broken_file_are_left_out(made: Path) -> None:
    """They are 300 characters on what a miniz error may mean."""
    with pytest.raises(TypeError) as caught:
        YOLO(made / "half.pt")
    said = sentence(caught.value)
    assert "half.pt is not a loadable checkpoint" in said
    assert "miniz" not in said


def test_another_width_is_not_called_another_number_of_channels() -> None:
    from ultralytics.nn.Addmodules.hooks.transfer import report

    small, wide = (YOLO(f"VMamba-yolo{scale}.yaml").model for scale in "ns")
    assert not [line for line in report(wide, small, []) if "image channels" in line]
    grey = YOLO("VMamba-yolon.yaml").model
    grey.model[0].conv.weight.data = grey.model[0].conv.weight.data[:, :1]
    assert [line for line in report(grey, small, []) if "another number of image channels" in line]
    assert not any("untrained: 1 tensor of row 0 " in line for line in report(grey, small, [])), "it is filled"


def test_train_py_says_in_a_sentence_what_the_data_lack(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream raises a KeyError with its words on it."""
    import train

    monkeypatch.chdir(made)
    with pytest.raises(SystemExit, match="^train.py: No `kpt_shape` in the data.yaml"):
        train.main(["model=VMamba-yolov8n-pose.yaml", "data=data.yaml", "device=cpu", f"project={made / 'runs'}"])


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written_to_comes_with_a_way_out(number: int, tmp_path: Path) -> None:
    error = OSError(number, "No such right", str(tmp_path / "runs"))
    way_out = "choose a folder that you can write to, for a training by its full path: project=FOLDER"
    assert sentence(error) == f"No such right: '{tmp_path / 'runs'}'; {way_out}"
    (tmp_path / "a.jpg").touch()  # which cannot be read
    assert sentence(OSError(number, "No such right", str(tmp_path / "a.jpg"))).endswith("a.jpg'")
