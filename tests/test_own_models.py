# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""docs/own-models.md: every model file and fragment on the page builds, and what the page says of each is so."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.data import ROOT
from ultralytics import YOLO
from ultralytics.nn.Addmodules.hooks.yaml_lint import lint
from ultralytics.nn.tasks import DetectionModel, OBBModel, SegmentationModel, SemanticSegmentationModel
from ultralytics.utils import YAML

PAGE = (ROOT / "docs/own-models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(yaml|python|text)\n(.*?)```", PAGE, re.DOTALL)
YAMLS = {text.splitlines()[0].removeprefix("# "): yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"}
SAID = [text.strip() for kind, text in BLOCKS if kind == "text"]
BASE = YAMLS["yolov8-mine.yaml"]


def changed(name: str) -> dict:
    """Return the page's file with one of its fragments: whole parts, or a row instead of the last."""
    d, fragment = copy.deepcopy(BASE), YAMLS[name]
    if isinstance(fragment, dict):
        d.update(fragment)
    else:
        d["head"][-1:] = fragment
    return {**d, "scale": "n"}


def widths(model: torch.nn.Module, size: int = 64) -> dict[int, int]:
    """Return the channels of every row that gives a map."""
    found: dict[int, int] = {}
    hooks = [
        row.register_forward_hook(lambda m, x, y, i=i: found.update({i: y.shape[1]}))
        for i, row in enumerate(list(model.model)[:-1])
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return found


def test_the_file_is_yolov8() -> None:
    ours = DetectionModel({**BASE, "scale": "n"}, verbose=False).state_dict()
    stock = YOLO("yolov8n.yaml").model.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in stock.items()}


# Strides, and the type and channels of the rows that an example is about
EXAMPLES = {
    "replace a C2f": ([8, 16, 32], {6: ("C2fVSS", 128), 8: ("VSSBlock", 256)}, DetectionModel),
    "insert": ([8, 16, 32], {7: ("VSSBlock", 128), 12: ("Concat", 384), 18: ("Concat", 192)}, DetectionModel),
    "scans in the neck": ([8, 16, 32], {12: ("C2fSS2D", 128), 14: ("Concat", 192), 15: ("SS2D", 192)}, DetectionModel),
    "segment": ([8, 16, 32], {21: ("C2f", 256)}, SegmentationModel),
    "obb": ([8, 16, 32], {21: ("C2f", 256)}, OBBModel),
    "semantic": ([32], {12: ("C2f", 128), 15: ("C2f", 64)}, SemanticSegmentationModel),
    "P2": ([4, 8, 16, 32], {18: ("C2f", 32), 27: ("C2f", 256)}, DetectionModel),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_builds(name: str, tmp_path: Path) -> None:
    strides, rows, kind = EXAMPLES[name]
    d = changed(name)
    assert lint(d) == []
    model = kind(copy.deepcopy(d), verbose=False).eval()
    assert model.stride.tolist() == strides
    found = widths(model)
    assert {i: (type(model.model[i]).__name__, found[i]) for i in rows} == rows
    d.pop("scale")
    YAML.save(tmp_path / "yolov8-mine.yaml", d)
    at_s = YOLO(str(tmp_path / "yolov8s-mine.yaml"))  # the task is that of the last row, and scales come by name
    assert type(at_s.model) is kind
    assert at_s.model.yaml["scale"] == "s"


def test_numbers_in_comments_are_those_of_the_rows() -> None:
    for kind, text in BLOCKS:
        if kind != "yaml" or "head:" not in text:
            continue
        numbers = [int(n) for n in re.findall(r"^  - \[.*\] # (\d+)", text, re.MULTILINE)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), text


def test_what_the_log_says_without_new_numbers() -> None:
    """The inserted backbone with the old head builds, and is another model."""
    d = {**BASE, "backbone": YAMLS["insert"]["backbone"], "scale": "n"}
    assert "\n".join(f"yolov8-mine.yaml: {text}" for text in lint(d)) == SAID[0]
    DetectionModel(copy.deepcopy(d), verbose=False)


def test_what_is_said_of_a_wrong_width() -> None:
    d = changed("scans in the neck")
    row = copy.deepcopy(d["head"][5])
    row[3][0] = 256
    d["head"][5] = row
    with pytest.raises(ValueError, match="channels are 64 at this scale") as error:
        DetectionModel(d, verbose=False)
    assert SAID[1] in str(error.value)


def test_own_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [source] = [text for kind, text in BLOCKS if kind == "python"]
    (tmp_path / "my_blocks.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    d = changed("insert")
    [row] = YAMLS["an attention block, after the last row of the backbone"]
    d["backbone"] = [*BASE["backbone"], row]  # as many rows as the inserted one, and the head's numbers but one
    d["head"] = copy.deepcopy(d["head"])
    d["head"][1][0] = [-1, 6]
    assert lint(d) == []
    model = DetectionModel(d, verbose=False).eval()
    graft = model.model[10]
    assert type(graft.block).__name__ == "ChannelAttention"
    assert graft.block.layers[0].out_channels == 256 // 8
    x = torch.randn(1, 256, 4, 4)
    assert torch.equal(graft(x), x)


def test_what_a_row_put_in_by_hand_costs() -> None:
    stock = YOLO("yolov8n.yaml").model.state_dict()
    ours = DetectionModel(changed("insert"), verbose=False).state_dict()
    arrived = sum(k in ours and ours[k].shape == v.shape for k, v in stock.items())
    said = re.search(r"the (\d+) tensors of yolov8n .* takes (\d+),.* all (\d+) \(with", PAGE, re.DOTALL)
    assert tuple(map(int, said.groups())) == (len(stock), arrived, len(stock))
