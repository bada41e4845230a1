# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The studies: their file, their tables, the start of every training, and a comparison from start to file."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.study import __main__ as command
from benchmarks.study import controls, figure, parts, runs, starts, tables, variants
from benchmarks.study.parts import Model, Part
from ultralytics.nn.Addmodules.layers.graft import Graft
from ultralytics.nn.Addmodules.layers.ss2d import SS2D
from ultralytics.nn.Addmodules.tools.compare import schedule
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

# The file


def run(model: str, seed: int, score: float, **other) -> runs.Run:
    """Return a made-up run of two epochs."""
    about = {column: kind(1) for column, kind in runs.RUN.items()}
    about |= {"part": "scratch", "data": "bccd", "model": model, "seed": seed, "imgsz": 320, "uncommitted": 0}
    about |= {"scan": 'cpp, "AVX"', "report/mAP50-95": score, "report/P": None, "report_on": "val", **other}
    return runs.Run(about, [dict.fromkeys(runs.EPOCH, 0.125) | {"epoch": n, "grad_norm": None} for n in (1, 2)])


def test_runs_survive_the_file(tmp_path: Path) -> None:
    file = tmp_path / "study.csv"
    assert runs.read(file) == []
    made = [run("a", 0, 0.5), run("a", 1, 0.25), run("b", 0, 0.1), run("b", 0, 0.2, data="other")]
    runs.write(file, made[::-1])
    assert runs.read(file) == sorted(made, key=lambda r: r.key)
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1 + 2 * len(made)
    assert [p.name for p in tmp_path.iterdir()] == ["study.csv"]
    file.write_text(file.read_text(encoding="utf-8").replace("val_loss", "loss", 1), encoding="utf-8")
    with pytest.raises(SystemExit, match="first line"):
        runs.read(file)


def test_every_column_is_explained() -> None:
    words = runs.__doc__.replace(";", " ").split()
    assert [c for c in (*runs.RUN, *runs.EPOCH) if c not in words] == []


def test_the_studys_file_is_whole() -> None:
    made = runs.checked(runs.read(runs.FILE))
    for r in made:
        assert [e["epoch"] for e in r.history] == list(range(1, r.about["epochs"] + 1)), r.key
        assert re.fullmatch("[0-9a-f]{40}", r.about["commit"]), r.key
        if r.about["part"] in tables.BEFORE:
            assert r.about["model"] in {*variants.VARIANTS, *figure.SHOWN}
            continue
        part = parts.PARTS[r.about["part"]]
        assert r.about["model"] in part.models
        assert (r.about["seed"] in part.seeds, r.about["data"] in part.sets) == (True, True)
        assert (r.about["epochs"], r.about["imgsz"]) == (part.epochs, parts.SETTINGS["imgsz"])


def test_runs_of_uncommitted_code_are_refused() -> None:
    with pytest.raises(SystemExit, match="a, seed 1, bccd is of uncommitted code"):
        tables.render([run("a", 0, 0.5), run("a", 1, 0.5, uncommitted=1)])


# Tables


def test_tables_of_models_and_variants() -> None:
    made = [run("yolov8n", s, 0.25) for s in (0, 1)] + [run("VMamba-yolon", s, 0.5) for s in (1, 2)]
    made += [run("no-scans", s, 0.125 * s) for s in (0, 1, 2)]
    found = tables.render(made)
    row = "| VMamba-yolon | 0.00 M | 1.00 | 1, 2 | 100.0 ± 0.0 | **50.0 ± 0.0** | 50.0 / 50.0 | 0.12 | +25.0 |"
    assert found["study"].index(row) < found["study"].index("| yolov8n |") < found["study"].index("| no-scans |")
    assert "-31.2 [-110.7, +48.2] | - | 0, 1, 2 |" in found["choices"]  # over the seeds that both have
    with pytest.raises(SystemExit, match="different settings"):
        tables.render([*made, run("yolov8n", 2, 0.1, batch=2)])


def test_a_graft_is_called_better_only_if_its_interval_is() -> None:
    def text(*differences: float) -> str:
        stock = [run("stock", s, 0.5, part="report") for s in range(3)]
        grafts = [run("graft", s, 0.5 + d, part="report") for s, d in enumerate(differences)]
        return tables.render([*stock, *grafts])["grafts"]

    assert "### Whether a graft helps, or harms" in text(0.01, 0.011, 0.012)
    assert "| better |" in text(0.01, 0.011, 0.012)
    assert "| worse |" in text(-0.01, -0.011, -0.012)
    assert "0.0 [-0.2, +0.2] | no harm |" in text(-0.001, 0.0, 0.001)
    assert "| no difference shown |" in text(-0.02, 0.0, 0.02)


def test_a_model_that_is_no_graft_is_not_called_harmless() -> None:
    made = [run("yolov5n", s, 0.5, part="scratch-grafts") for s in range(3)]
    made += [run("yolo26n", s, 0.499 + 0.001 * s, part="scratch-grafts") for s in range(3)]
    assert "0.0 [-0.2, +0.2] | no difference shown |" in tables.render(made)["grafts"]


def test_a_part_beside_another_is_compared_with_the_same_seeds_of_its_stock() -> None:
    made = [run("stock", s, 0.5 if s < 3 else 0.9, part="report") for s in range(4)]
    made += [run("not-zero", s, 0.4 + 0.001 * s, part="controls", cpu="Another") for s in range(3)]
    text = tables.render(made)["grafts"].partition("### Further controls")[2]
    assert "| YOLOv5n | 0.00 M | 1.00 | 3 | 50.0 ± 0.0 | - |" in text
    assert "-9.9 [-10.1, -9.7] | worse |" in text
    assert "3 of 6 runs on Another" in text
    alone = tables.render([r for r in made if r.about["part"] == "controls"])["grafts"]
    assert "| 3 | 40.1 ± 0.1 | - |" in alone
    assert "YOLOv5n" not in alone


def test_a_graft_is_compared_with_its_control() -> None:
    made = [run("stock", s, 0.5, part="report") for s in range(3)]
    made += [run("control", s, 0.6, part="report") for s in range(3)]
    made += [run("graft", s, 0.61 + 0.001 * s, part="report") for s in range(3)]
    text = tables.render(made)["grafts"]
    assert "+11.1 [+10.9, +11.3] | better | +1.1 [+0.9, +1.3] |" in text
    assert "+10.0 [+10.0, +10.0] | better |  |" in text


# Starts


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state dict as that of YOLOv5n: its rows, and a head of another kind."""
    torch.manual_seed(3)
    state = DetectionModel("yolov5n.yaml", verbose=False).state_dict()
    kept = {k: v.half() if v.is_floating_point() else v for k, v in state.items() if not k.startswith("model.24.")}
    file = tmp_path_factory.mktemp("weights") / "coco.pt"
    torch.save({**kept, "model.24.anchors": torch.zeros(3)}, file)
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two sets of four pictures of noise."""
    root = tmp_path_factory.mktemp("sets")
    for name in parts.SETS:
        folder = root / name
        for split in ("train", "val"):
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True)
            for i in range(4):
                picture = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
                Image.fromarray(picture).save(folder / f"images/{split}/{i}.png")
                (folder / f"labels/{split}/{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
        (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: noise}\n", encoding="utf-8")
    return root


def states(models: dict[str, Model], data: Path, coco: Path, folder: Path, seed: int = 0) -> dict[str, dict]:
    """Return the tensors of the models' starts, by name of the row's place among those of stock."""
    files = starts.write(models, data / "bccd/data.yaml", coco, seed, folder)
    found = {}
    for name, file in files.items():
        model, place = load_checkpoint(file)[0], 0
        found[name] = {}
        for row in model.model:
            own = "graft" if isinstance(row, Graft) else place
            place += not isinstance(row, Graft)
            found[name] |= {f"{own}.{row.i if own == 'graft' else ''}{k}": v for k, v in row.state_dict().items()}
    return found


def test_models_of_a_seed_have_all_but_their_grafts_in_common(data: Path, coco: Path, tmp_path: Path) -> None:
    every = {**parts.PARTS["screening"].models, **parts.PARTS["controls"].models}
    models = {name: every[name] for name in ("stock", "graft", "after-N3-N4-N5", "not-zero")}
    found = states(models, data, coco, tmp_path)
    trained = torch.load(coco, weights_only=True)
    for name, state in found.items():
        common = {k: v for k, v in state.items() if not k.startswith("graft")}
        assert common.keys() == found["stock"].keys(), name
        assert all(torch.equal(v, found["stock"][k]) for k, v in common.items()), name
        assert torch.equal(common["0.conv.weight"], trained["model.0.conv.weight"].float())
        last = [v for k, v in state.items() if k.startswith("graft") and k.endswith("proj.weight") and v.ndim == 4]
        assert any(v.any() for v in last) == (name == "not-zero"), name
    few = {name: every[name] for name in ("stock", "graft")}
    again, other = (states(few, data, coco, tmp_path / str(s), s) for s in (0, 1))
    for name in ("stock", "graft"):
        state = found[name]
        assert all(torch.equal(v, again[name][k]) for k, v in state.items())
        head = next(k for k in state if k.startswith("24.") and k.endswith("conv.weight"))
        assert not torch.equal(state[head], other[name][head])


def test_from_scratch_and_variants_need_no_weights(data: Path, tmp_path: Path) -> None:
    models = {**parts.PARTS["scratch-grafts"].models, "no-scans": Model("", "no-scans")}
    files = starts.write(models, data / "bccd/data.yaml", tmp_path / "none.pt", 0, tmp_path)
    assert files["yolo26n"] == "yolo26n.yaml"
    assert Path(files["no-scans"]).name == "no-scans.yaml"
    assert any(isinstance(m, Graft) for m in load_checkpoint(files["yolov5n-graft"])[0].model)


def test_other_weights_are_refused(data: Path, tmp_path: Path) -> None:
    torch.save({"model.0.conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold the 342 tensors of YOLOv5n"):
        starts.write({"a": Model("")}, data / "bccd/data.yaml", tmp_path / "other.pt", 0, tmp_path)


@pytest.mark.parametrize("dim", [128, 256])
def test_the_control_costs_as_many_parameters(dim: int) -> None:
    counts = [sum(p.numel() for p in m.parameters()) for m in (controls.Bottleneck(dim), Graft(dim).block)]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)
    assert isinstance(Graft(dim).block, SS2D)
    with pytest.raises(ValueError, match="got 'money'"):
        controls.Bottleneck(dim, "money")


# From start to file


@pytest.fixture
def study(data: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Return the arguments of a study of one small part."""
    part = Part("", {"stock": parts.STOCK, "graft": parts.GRAFT}, (3,), ("bccd",), 1, "AdamW")
    monkeypatch.setitem(parts.PARTS, "toy", part)
    monkeypatch.setattr(command, "SETTINGS", {"imgsz": 64, "batch": 2, "nbs": 2, "workers": 0})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Namespace(data=data, weights=coco, device="cpu", jobs=1, runs=tmp_path / "runs", csv=tmp_path / "study.csv")


def test_a_comparison_is_in_the_file_and_not_repeated(study: Namespace, capsys: pytest.CaptureFixture) -> None:
    command.compare_once(study, "toy", "bccd", 3)
    stock, graft = sorted(runs.read(study.csv), key=lambda r: r.about["model"], reverse=True)
    assert [r.key for r in (stock, graft)] == [("toy", "bccd", "stock", 3), ("toy", "bccd", "graft", 3)]
    for r in (stock, graft):
        assert [e["epoch"] for e in r.history] == [1]
        assert r.history[0]["grad_norm"] > 0
        assert (r.about["optimizer"], r.about["report_on"], r.about["checkpoint"]) == ("AdamW", "val", "last")
        assert r.about["report/mAP50-95"] is not None
    assert graft.about["parameters"] > stock.about["parameters"]
    assert graft.history[0]["graft_grad_norm"] > 0 == stock.history[0]["graft_grad_norm"]
    before = study.csv.read_bytes()
    command.compare_once(study, "toy", "bccd", 3)
    assert "already there: toy, bccd, seed 3" in capsys.readouterr().out
    assert study.csv.read_bytes() == before


def test_a_comparison_of_what_was_missing_goes_on(study: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock's run came from another machine, so the graft is trained alone; and it was stopped."""
    command.compare_once(study, "toy", "bccd", 3)
    runs.write(study.csv, [r for r in runs.read(study.csv) if r.about["model"] == "stock"])
    study.runs = study.runs.parent / "others"
    with monkeypatch.context() as m:
        m.setattr(schedule, "start_process", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            command.compare_once(study, "toy", "bccd", 3)
    command.compare_once(study, "toy", "bccd", 3)
    assert {r.about["model"] for r in runs.read(study.csv)} == {"stock", "graft"}


def test_a_refusal_keeps_its_reason(study: Namespace) -> None:
    study.device = "7"
    with pytest.raises(ValueError, match="device=7 cannot be used"):
        command.compare_once(study, "toy", "bccd", 3)
    assert not study.csv.exists()


def test_the_list_says_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["study"])
    command.main()
    out = capsys.readouterr().out
    assert re.search(r"^report +\d+ of  36 runs", out, re.MULTILINE)
    assert re.search(r"^scratch +98 runs", out, re.MULTILINE)


# Variants


def test_variants_build_what_the_study_trained() -> None:
    made = [r.about for r in runs.read(runs.FILE) if (r.about["part"], r.about["data"]) == ("scratch", "bccd")]
    sizes = {about["model"]: about["parameters"] for about in made}
    assert sizes.keys() >= variants.VARIANTS.keys()
    for name in (*variants.VARIANTS, *variants.BASES):
        model = DetectionModel(variants.build(name) | {"scale": "n"}, nc=3, verbose=False)  # as bccd
        assert sum(p.numel() for p in model.parameters()) == sizes[name], name


def test_a_variant_is_its_base_with_one_change(tmp_path: Path) -> None:
    for name, variant in variants.VARIANTS.items():
        new, old = (
            yaml.safe_load(variants.write(name, tmp_path).read_text(encoding="utf-8")),
            variants.build(variant.base),
        )
        rows, others = (m["backbone"] + m["head"] for m in (new, old))
        changed = [i for i, pair in enumerate(zip(rows, others)) if pair[0] != pair[1]]
        assert changed == sorted(variant.rows) or variant.behind, name
        assert {k for k in new.keys() | old.keys() if new.get(k) != old.get(k)} - {"backbone", "head"} == set(
            variant.keys
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.yaml" for name in variants.VARIANTS)
    deeper = variants.build("scans-at-p3")
    assert deeper["backbone"][5] == [-1, 1, "VSSBlock", [256, 1, 3, 1, 0, False]]
    assert [row[0] for row in deeper["head"] if row[2] in ("Concat", "Detect")] == [[-1, 8], [-1, 5], [17, 14, 11]]
