# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Pictures: receptive fields and maps are what they claim to be, orders are the layers' own, errors say what to do."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ultralytics import YOLO
from ultralytics.nn.Addmodules import MambaLayer
from ultralytics.nn.Addmodules.tools import visualize
from ultralytics.nn.Addmodules.tools.activations import REDUCE, activation
from ultralytics.nn.Addmodules.tools.key_value import several
from ultralytics.nn.Addmodules.tools.models_and_images import (
    Picture,
    calibrate,
    capture,
    find_layers,
    load,
    read_pictures,
)
from ultralytics.nn.Addmodules.tools.receptive_fields import Field, receptive_fields
from ultralytics.nn.Addmodules.tools.scan_orders import ORDERS, token_path
from ultralytics.nn.Addmodules.tools.verbs import main as vmamba
from ultralytics.nn.Addmodules.tools.visualize import SCANS
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml


@pytest.fixture(scope="module")
def stock() -> nn.Module:
    return load("yolov8n.yaml")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two images: wide and dark with a bright square at the right, and tall."""
    folder = tmp_path / "photos"
    folder.mkdir()
    wide = np.full((60, 120, 3), 20, np.uint8)
    wide[20:40, 80:100] = 250, 200, 30
    Image.fromarray(wide).save(folder / "a wide one.png")
    Image.new("RGB", (50, 200), (9, 90, 200)).save(folder / "b.jpg")
    return folder


# Effective receptive fields -------------------------------------------------------------------------------------------


def convs(*strides: int) -> nn.Sequential:
    """Return a stack of 3 x 3 convolutions without a weight at zero."""
    model = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, s, 1) for i, s in enumerate(strides)))
    for p in model.parameters():
        nn.init.uniform_(p, 0.1, 1.0)
    return model


@pytest.mark.parametrize(("strides", "side"), [((1,), 3), ((1, 1, 1), 7), ((2,), 3), ((2, 2), 7), ((2, 2, 1, 2), 23)])
def test_field_of_convolutions_is_the_known_square_and_zero_outside(strides: tuple[int, ...], side: int) -> None:
    model = convs(*strides)
    (field,) = receptive_fields(model, [model], [torch.rand(1, 3, 64, 64)])
    y, x = field.unit
    assert (y, x) == (32, 32)
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[y - side // 2 : y + side // 2 + 1, x - side // 2 : x + side // 2 + 1] = True
    assert torch.equal(field.values > 0, expected)
    assert field.values.max() == 1
    assert field.spread([1.0]) == [(side, side**2 / 64**2)]


def test_field_is_the_mean_absolute_gradient() -> None:
    """Written out by the Jacobian: every channel of the middle unit by every pixel, for each image."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.SiLU(), nn.Conv2d(5, 4, 3, 1, 1)).double()
    images = [torch.randn(1, 3, 12, 10, dtype=torch.float64) for _ in range(3)]
    wanted = torch.zeros(12, 10, dtype=torch.float64)
    for image in images:
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0, :, 3, 2], image)  # (4, 1, 3, 12, 10)
        wanted += jacobian.sum(0).abs().sum((0, 1))
    both = receptive_fields(model, [model[2], model[0]], images)  # one forward pass serves both
    torch.testing.assert_close(both[0].values, wanted / wanted.max())
    assert both[0].unit == (6, 4)
    assert int((both[1].values > 0).sum()) == 9


def test_field_of_a_mamba_layer_covers_the_map() -> None:
    torch.manual_seed(0)
    layer = MambaLayer(3).double()
    (field,) = receptive_fields(layer, [layer], [torch.randn(1, 3, 9, 11, dtype=torch.float64)])
    assert (field.values > 0).all()
    conv = convs(1).double()
    (small,) = receptive_fields(conv, [conv], [torch.randn(1, 3, 9, 11, dtype=torch.float64)])
    assert (small.values > 0).sum() == 9


def test_field_needs_a_gradient_and_leaves_no_trace() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    image = torch.rand(1, 3, 8, 8)
    for model in (nn.Sequential(convs(1), Cut()), nn.Sequential(Cut(), convs(1))):
        with pytest.raises(ValueError, match="no finite gradient"):
            receptive_fields(model, [model[1]], [image])
    model = convs(1)
    with torch.no_grad():
        receptive_fields(model, [model], [image])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not image.requires_grad
    assert not model._forward_hooks
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="no finite gradient"):
        receptive_fields(model, [model], [image])


def test_spread() -> None:
    values = torch.zeros(9, 21, dtype=torch.float64)
    values[4, 10], values[4, 12], values[4, 20] = 1, 0.5, 0.5
    assert Field(values, (4, 10)).spread([0.5, 0.75, 1.0]) == [(1, 1 / 189), (5, 2 / 189), (21, 3 / 189)]


# Activations ----------------------------------------------------------------------------------------------------------


def test_letterboxed_maps_lie_over_their_pictures(photos: Path) -> None:
    """A 'model' whose map is the image itself must show the bright square where it is, and no padding."""
    wide, tall = read_pictures([str(photos)], 9, 96)
    assert (wide.name, tall.name) == ("a wide one.png", "b.jpg")
    assert wide.content == (slice(24, 72), slice(0, 96))
    assert tall.content == (slice(0, 96), slice(36, 60))
    assert wide.tensor().shape == (1, 3, 96, 96)
    assert wide.pixels[30, 5].tolist() == [20] * 3
    assert wide.pixels[48, 72].tolist() == [250, 200, 30]  # RGB, not BGR
    pooled = nn.functional.avg_pool2d(wide.tensor(), 4)
    for reduce in REDUCE:
        heat = activation(pooled, wide, reduce)
        assert heat.shape == (48, 96)
        assert (heat.min(), heat.max()) == (0, 1)
        y, x = (heat > 0.5).nonzero()
        assert (y.min(), y.max(), x.min(), x.max()) == pytest.approx((16, 31, 64, 79), abs=1.5)
    assert activation(torch.ones(1, 4, 3, 3), wide).max() == 0  # a flat map has nothing to show


def test_hidden_files_are_no_pictures(photos: Path) -> None:
    (photos / "._a wide one.png").write_bytes(b"of macOS")
    assert [p.name for p in read_pictures([str(photos)], 9, 96)] == ["a wide one.png", "b.jpg"]


def test_padding_does_not_bleed_into_the_heat() -> None:
    picture = Picture("", np.zeros((64, 64, 3), np.uint8), (slice(16, 48), slice(0, 64)))
    output = torch.full((1, 2, 8, 8), 9.0)
    output[:, :, 2:6] = torch.arange(8.0)  # content: a ramp to the right
    heat = activation(output, picture)
    assert heat.shape == (32, 64)
    np.testing.assert_allclose(heat, np.broadcast_to(heat[:1], heat.shape))
    assert (np.diff(heat[0]) >= 0).all()


# Scan orders ----------------------------------------------------------------------------------------------------------


def test_orders_visit_each_cell_once_in_order() -> None:
    paths = {order: token_path(order, 2, 3).tolist() for order in ORDERS}
    assert paths["rows"] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert paths["columns"] == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]
    assert paths["rows-reversed"] == paths["rows"][::-1]
    assert paths["columns-reversed"] == paths["columns"][::-1]
    for path in paths.values():
        assert sorted(path) == sorted(paths["rows"])
    with pytest.raises(ValueError, match="unknown order 'spiral': choose from rows, rows-reversed"):
        token_path("spiral", 2, 2)


def test_orders_of_a_mamba_layer_are_those_that_it_scans() -> None:
    """With one direction silenced, the gradient reaches just the cells that come before in the drawn order."""
    for order, silenced in zip(SCANS["MambaLayer"], ("_b", "")):
        torch.manual_seed(0)
        layer = MambaLayer(3).double()
        with torch.no_grad():
            getattr(layer.mamba, f"D{silenced}").zero_()
            getattr(layer.mamba, f"x_proj{silenced}").weight[-layer.mamba.d_state :] = 0  # C: what is read of the state
        (field,) = receptive_fields(layer, [layer], [torch.randn(1, 3, 5, 6, dtype=torch.float64)])
        path = token_path(order, 5, 6).tolist()
        reached = [bool(field.values[y, x] > 0) for y, x in path]
        middle = path.index([2, 3])
        assert reached == [True] * (middle + 1) + [False] * (len(path) - middle - 1), order


def test_arrows_follow_the_path() -> None:
    picture = Picture("", np.zeros((60, 60, 3), np.uint8), (slice(10, 50), slice(0, 60)))
    fig = visualize.plot_orders(picture, {"columns-reversed": "title"}, grid=3)
    arrows = [(a.xyann, a.xy) for a in fig.axes[0].texts]
    ends = [start for start, _ in arrows] + [arrows[-1][1]]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(arrows))
    cells = [[int(y // 20), int(x // 20)] for x, y in ends]  # 2 x 3 cells of 20 pixels
    assert cells == token_path("columns-reversed", 2, 3).tolist()


# Models and layers ----------------------------------------------------------------------------------------------------


def test_layers_by_level_and_number(stock: nn.Module) -> None:
    found = find_layers(stock, ["P3", "p5", "N4", "2"], 64)
    assert list(found) == ["P3: layer 4, C2f", "P5: layer 9, SPPF", "N4: layer 18, C2f", "layer 2, C2f"]
    assert list(found.values()) == [stock.model[i] for i in (4, 9, 18, 2)]
    p6 = load("yolov8n-p6.yaml")
    assert list(find_layers(p6, ["P6"], 64)) == ["P6: layer 11, SPPF"]
    for name in ("P9", "22", "-1", "C2f"):  # 22 is the head, which gives no map
        with pytest.raises(
            ValueError, match=rf"no layer '{name.upper()}'\. Levels: P1, P2.*Layers: 0 Conv, 1 Conv, 2 C2f"
        ):
            find_layers(stock, [name], 64)


@pytest.mark.parametrize(("file", "n4", "n5"), [("VMamba-yolon.yaml", 13, 10), ("yolov3-tiny.yaml", 19, 15)])
def test_levels_of_the_neck_are_what_the_head_reads(file: str, n4: int, n5: int) -> None:
    model = load(file)
    assert {n4, n5} <= {*model.model[-1].f}
    assert [*find_layers(model, ["N4", "N5"], 64).values()] == [model.model[n4], model.model[n5]]


def test_captured_outputs_are_the_models(stock: nn.Module) -> None:
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, two = capture(stock, [stock.model[1], stock.model[0]], x)
        torch.testing.assert_close(two, stock.model[0](x))
        torch.testing.assert_close(one, stock.model[1](two))


def test_models_are_seeded_and_the_callers_random_state_is_kept(stock: nn.Module) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load("yolov8n.yaml")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(stock.state_dict().values(), again.state_dict().values()))
    assert not again.training
    assert type(load("yolov8n-rtdetr.yaml").model[-1]).__name__ == "RTDETRDecoder"  # told by its head, not by its name


def test_calibration_gives_the_statistics_of_the_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    images = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    calibrate(model, images)
    assert not model[1].training
    outputs = torch.cat([model(x) for x in images])
    torch.testing.assert_close(outputs.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std((0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with `runs` there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ultralytics.utils.RUNS_DIR", tmp_path / "runs")
    return tmp_path


def main(command: list[str]) -> int:
    """Run `vmamba visualize`."""
    return vmamba(["visualize", *command])


def saved(capsys: pytest.CaptureFixture) -> tuple[Path, str]:
    """Return the picture that the command says it saved, if it is one, and what it printed before."""
    text, _, last = capsys.readouterr().out.rstrip().rpartition("Saved: ")
    with Image.open(last) as image:
        assert min(image.size) > 150
        assert np.asarray(image.convert("L")).std() > 10
    return Path(last), text


def test_erf_of_models_beside_each_other(home: Path, capsys: pytest.CaptureFixture) -> None:
    YOLO("yolov8n.yaml").save("mine.pt")
    command = "erf models=VMamba-yolov8n.yaml,mine.pt imgsz=64 count=2 layers=P2,4".split()
    style = dict(matplotlib.rcParams)
    assert main(command) == 0
    assert dict(matplotlib.rcParams) == style
    path, text = saved(capsys)
    assert path == home / "runs/visualize/erf.png"
    assert "2 images of noise, 64 x 64" in text
    assert len([line for line in text.splitlines() if "layer" in line]) == 4
    assert "VMamba-yolov8n (untrained)" in text
    mamba, conv = (next(r for r in text.splitlines() if r.startswith(k) and "P2: " in r) for k in ("VMamba", "mine"))
    assert float(mamba.split()[-1]) == 100.0  # scans reach every pixel
    assert float(conv.split()[-1]) == pytest.approx(100 * 23**2 / 64**2, abs=0.1)  # 3, 7, then two 3 x 3 at stride 4
    assert main(command) == 0
    assert saved(capsys)[0] == home / "runs/visualize/erf-2.png"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_erf_aligns_chinese_names(home: Path, capsys: pytest.CaptureFixture) -> None:
    """They are two columns wide in a terminal."""
    assert main("erf models=yolov8n.yaml,yolov8n.yaml names=我们的,官方 imgsz=64 count=1 layers=P2".split()) == 0
    ours, theirs = (line for line in capsys.readouterr().out.splitlines() if "layer" in line)
    assert ours.startswith("我们的  P2: ")
    assert theirs.startswith("官方    P2: ")


@pytest.mark.filterwarnings("ignore:Glyph")  # few machines for tests have a Chinese font
def test_activations(home: Path, photos: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["activations", "models=yolov8n.yaml", f"images={photos}", "count=2", "imgsz=50"]
    assert main([*command, "out=new/maps.jpg", "reduce=norm", "names=模型"]) == 0  # 50 becomes 64
    assert saved(capsys)[0] == Path("new/maps.jpg")
    before = Path("new/maps.jpg").read_bytes()
    assert main([*command, "out=new/maps.jpg"]) == 1
    assert (
        "'new/maps.jpg' exists: choose another out=, or replace a picture with exist_ok=True" in capsys.readouterr().err
    )
    assert Path("new/maps.jpg").read_bytes() == before
    assert main([*command, "out=new/maps.jpg", "exist_ok"]) == 0
    assert Path("new/maps.jpg").read_bytes() != before


def test_names_in_a_list_are_taken_as_they_stand() -> None:
    assert several(r"['C:\runs\new,1\best.pt', " + '"it\'s.pt"]') == [r"C:\runs\new,1\best.pt", "it's.pt"]
    assert several("['a.pt',]") == ["a.pt"]
    assert several("(1, 2)") == ["1", "2"]
    assert several("a.pt, b.pt") == ["a.pt", "b.pt"]


def test_orders_take_models_of_other_channels_and_small_images_are_named(
    home: Path, photos: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(home)
    grey = YAML.load(check_yaml("VMamba-yolo.yaml")) | {"channels": 1, "scale": "n"}
    YAML.save("grey.yaml", grey)
    assert main(["orders", "models=grey.yaml", "out=orders.png"]) == 0
    capsys.readouterr()
    assert main(["erf", "models=yolov8n.yaml", f"images={photos / 'a wide one.png'}", "imgsz=32"]) == 1
    assert "32 x 32 pixels are too small for an untrained model: give a larger imgsz=" in capsys.readouterr().err


def test_orders_of_models_by_name_and_of_all(home: Path, photos: Path, monkeypatch, capsys) -> None:
    drawn = []
    plot = visualize.plot_orders
    monkeypatch.setattr(visualize, "plot_orders", lambda p, orders, grid: drawn.append(orders) or plot(p, orders, grid))
    image = [f"images={photos / 'a wide one.png'}"]
    assert main(["orders"]) == 0  # over the picture that comes with Ultralytics
    assert saved(capsys)[0] == home / "runs/visualize/orders.png"
    assert main(["orders", *image, "models=VMamba-yolov8n.yaml", "out=a.png"]) == 0
    assert main(["orders", *image, "orders=columns", "grid=3", "out=b.pdf"]) == 0
    assert list(drawn[0]) == list(ORDERS)
    assert drawn[1] == {"rows": "rows\nMambaLayer", "rows-reversed": "rows, reversed\nMambaLayer"}
    assert list(drawn[2]) == ["columns"]
    assert main(["orders", *image, "models=yolov8n.yaml"]) == 1
    assert "no MambaLayer or SS2D or ConvSS2D in yolov8n.yaml" in capsys.readouterr().err
    two = YAML.load(check_yaml("VMamba-yolo.yaml"))
    for row in two["backbone"] + two["head"]:
        if row[2] in ("C2fSS2D", "VSSBlock"):
            row[2:] = "C2fSS2D", [row[3][0], 1, 1, 3, 2]
    YAML.save("two.yaml", {**two, "scales": {"n": two["scales"]["n"]}})
    both = "SS2D, ConvSS2D"
    for model, orders, layers in (("VMamba-yolon.yaml", [*ORDERS], both), ("two.yaml", [*ORDERS][:2], "ConvSS2D")):
        assert main(["orders", *image, f"models={model}", f"out={model}.png"]) == 0
        assert {order: title.split("\n")[1] for order, title in drawn[-1].items()} == dict.fromkeys(orders, layers)


STOCK = ["models=yolov8n.yaml"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["erf", "models=nothing.pt"], "no such model file: 'nothing.pt'"),
        (["erf", "models=nothing.yaml"], "cannot read the model 'nothing.yaml'"),
        (["erf", "models=junk.pt"], "cannot read the model 'junk.pt'"),
        (["erf", "models=junk.yaml"], "cannot read the model 'junk.yaml'"),
        (["erf", "models=photo.png"], "'photo.png' is no model file: give a .yaml (untrained) or a .pt (trained)"),
        (["erf", *STOCK, "layers=99"], "yolov8n.yaml has no layer '99'. Levels: P1, P2"),
        (["erf", *STOCK, "device=nowhere"], "device 'nowhere' cannot be used, device=cpu can"),
        (["erf", "models=yolov8n.yaml,yolov8n.yaml"], "2 models need as many different names="),
        (["erf", *STOCK, "names=a,b"], "1 models need as many different names=, got: a, b"),
        (["activations", *STOCK, "images=nothing.png"], "no such image or folder: 'nothing.png'"),
        (["activations", *STOCK, "images=empty"], "no images in the folder 'empty'"),
        (["activations", *STOCK, "images=junk.pt"], "'junk.pt' cannot be read as an image"),
        (["orders", "out=picture.docx"], "cannot save as 'picture.docx': its name must end with .avif, ."),
        (["orders", "out=junk.pt/a.png"], "cannot write 'junk.pt/a.png': '"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_errors_say_what_is_wrong(command: list[str], message: str, home: Path, capsys) -> None:
    Path("empty").mkdir()
    for name in ("junk.pt", "junk.yaml"):
        Path(name).write_text("a: [", encoding="utf-8")
    assert main(command) == 1
    captured = capsys.readouterr()
    expected = message.replace(".avif, .", "")
    assert captured.err.startswith(f"vmamba visualize {command[0]}: {expected}")
    assert "Saved" not in captured.out
    assert not list(Path().rglob("*.png"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fields"], "vmamba visualize: there is no 'fields'; it has erf, activations, orders"),
        (["erff"], "vmamba visualize: there is no 'erff'; did you mean 'erf'?"),
        (["erf"], "vmamba visualize erf: models= must be given"),
        (["orders", "grid=0"], "vmamba visualize orders: grid must be an integer from 1 to 32, got '0'"),
        (["activations", *STOCK, "reduce=meen"], "reduce must be one of mean, norm, max, got 'meen'"),
    ],
)
def test_wrong_usage_exits_with_2(command: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_command_line_and_untouched_backend(tmp_path: Path) -> None:
    """As a user starts it; and neither importing nor drawing loads pyplot, which would select a backend."""
    code = """
import runpy, sys
try:
    runpy.run_module("ultralytics.nn.Addmodules", run_name="__main__")
except SystemExit as e:
    assert e.code == 0
assert "matplotlib.pyplot" not in sys.modules
"""
    run = [sys.executable, "-c", code, "visualize", "orders", f"out={tmp_path / 'o.png'}"]
    done = subprocess.run(run, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "o.png").is_file()
