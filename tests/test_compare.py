# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba compare`: its statistics and tables on figures made by hand, its checks, and comparisons on tiny data."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.compare_cases import FIGURES, command, fail, made
from tests.data import make_data
from ultralytics import YOLO
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.nn.Addmodules import graft
from ultralytics.nn.Addmodules.tools import data as data_set
from ultralytics.nn.Addmodules.tools import verbs as cli
from ultralytics.nn.Addmodules.tools.compare import Plan, checks, compare, schedule, start, train, verb
from ultralytics.nn.Addmodules.tools.compare.figures import bars, draw
from ultralytics.nn.Addmodules.tools.compare.plan import read_models, read_seeds
from ultralytics.nn.Addmodules.tools.compare.remarks import remarks
from ultralytics.nn.Addmodules.tools.compare.results import (
    Comparison,
    Run,
    first_difference,
    read_json,
    uncommitted,
    write_json,
    write_runs,
)
from ultralytics.nn.Addmodules.tools.compare.statistics import Difference, deviation, mean, paired, student
from ultralytics.nn.Addmodules.tools.compare.tables import latex, markdown, tables, write_tables
from ultralytics.nn.Addmodules.tools.key_value import UsageError
from ultralytics.utils import YAML
from ultralytics.utils.metrics import DepthMetrics

ROOT = Path(__file__).resolve().parents[1]


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "t"),  # as printed in tables of Student's distribution, two-sided 95 %
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (29, 2.045), (120, 1.980)],
)
def test_quantiles_are_those_of_printed_tables(freedom: int, t: float) -> None:
    assert student(freedom) == pytest.approx(t, abs=5e-4)


def test_quantiles_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in range(1, 60):
        for level in (0.5, 0.9, 0.95, 0.99):
            assert student(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def test_a_paired_difference_and_its_interval() -> None:
    """Differences 2, 4, 3: mean 3, deviation 1, so 3 -+ 4.302653 / sqrt(3)."""
    found = paired({0: 12.0, 1: 25.0, 2: 33.0, 7: 1.0}, {2: 30.0, 1: 21.0, 0: 10.0, 8: 9.0})
    assert found.mean == pytest.approx(3)
    assert found.low == pytest.approx(0.5158621)
    assert found.high == pytest.approx(5.4841379)
    assert found.pairs == 3
    assert found.shown
    assert not paired({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0}).shown  # 2 -+ 12.7
    assert paired({0: 1.0}, {0: 0.5}) == Difference(0.5, None, None, 1)
    assert paired({0: 1.0}, {1: 0.5}) is None
    assert mean([1, 2, 6]) == 3
    assert deviation([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(math.sqrt(32 / 7))
    assert deviation([1.0]) is None


# Tables, of figures made by hand --------------------------------------------------------------------------------------


def test_tables_hold_means_deviations_and_paired_intervals(tmp_path: Path) -> None:
    """graft_a - stock: 2, 4, 3 points, so 3.0 [0.5, 5.5]; graft-b - stock: 1, -1, 2, so 0.7 [-3.1, 4.5]."""
    comparison = made(tmp_path / "compare")
    scores, differences, classes, costs = tables(comparison)
    assert scores.head == ["model", "P", "R", "F1", "mAP50", "mAP50-95", "seeds"]
    assert scores.rows[0][4:] == ["72.0 ± 2.0", "52.0 ± 2.0", "3"]
    assert scores.rows[1][5] == "55.0 ± 2.6"
    assert differences.head == ["", "graft_a", "graft-b"]
    assert differences.rows[4] == ["mAP50-95", "+3.0 [+0.5, +5.5]", "+0.7 [-3.1, +4.5]"]
    assert classes.rows == [
        ["a", "52.0 ± 2.0", "55.0 ± 2.6", "52.7 ± 2.9"],
        ["b", "62.0 ± 2.0", "65.0 ± 2.6", "62.7 ± 2.9"],
    ]
    assert costs.rows[1] == ["graft_a", "3.00 M", "8.1", "21.0", "47.6", "900 MB"]

    write_tables(comparison, remarks(comparison))
    with (tmp_path / "compare/table.csv").open(newline="", encoding="utf-8") as file:
        tidy = {(row["model"], row["quantity"]): row for row in csv.DictReader(file)}
    row = tidy["graft_a", "mAP50-95"]
    assert row["runs"] == "3"
    assert [float(row[k]) for k in ("mean", "sd", "difference")] == pytest.approx([0.55, 0.0264575, 0.03])
    assert [float(row[k]) for k in ("low", "high")] == pytest.approx([0.005158621, 0.054841379])
    assert tidy["stock", "class:b"]["difference"] == ""
    assert float(tidy["graft-b", "fps"]["mean"]) == pytest.approx(1000 / 22)
    page = (tmp_path / "compare/table.md").read_text(encoding="utf-8")
    assert "| mAP50-95 | +3.0 [+0.5, +5.5] | +0.7 [-3.1, +4.5] |" in page
    assert "WARNING: graft-b: no difference to stock shown in mAP50-95; the 95 % interval holds zero." in page
    assert "graft_a: no difference" not in page
    assert "graft_a and stock have 20 tensors of the same row, name and shape: 18 start with the same numbers" in page


def test_runs_csv_has_a_line_a_run_and_epoch(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare")
    fail(comparison, "graft_a", 1)
    write_runs(comparison)
    with (comparison.folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 18
    assert {line["model"] for line in lines} == {*FIGURES}
    first = lines[1]
    assert (first["model"], first["seed"], first["epoch"], first["status"]) == ("stock", "0", "2", "done")
    assert float(first["mAP50-95"]) == float(first["report/mAP50-95"]) == 0.5
    assert (first["commit"], first["torch"], first["threads"], first["imgsz"]) == ("c0ffee", "2.9", "2", "64")
    failed = [line for line in lines if line["status"] == "failed"]
    assert [(f["model"], f["seed"], f["reason"]) for f in failed] == [("graft_a", "1", "out of memory: of 8 GB")] * 2


def test_a_run_that_failed_is_left_out_of_both_sides_of_a_pair(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare")
    fail(comparison, "stock", 1)
    scores, differences, *_ = tables(comparison)
    assert scores.rows[0][5:] == ["52.0 ± 2.8", "2 of 3"]
    assert differences.rows[4][1].startswith("+2.5 [")  # of seeds 0 and 2
    assert "FAILED: stock, seed 1, after 2 epochs: out of memory: of 8 GB" in remarks(comparison)
    draw(comparison)


def test_latex_is_escaped_and_has_the_rules_of_booktabs(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare", {"a_b & c%": [0.5, 0.6], "{x}~^\\": [0.6, 0.7]})
    text = latex(tables(comparison)[0])
    assert r"a\_b \& c\% & 55.0 $\pm$ 7.1" in text
    assert r"\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} & " in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert text.count(r"\\") == 3  # the head and two rows
    assert latex(tables(comparison)[1]).count(r"$+10.0\ [") == 5
    assert markdown(tables(comparison)[0]).splitlines()[1] == "|---|---:|---:|---:|---:|---:|---:|"
    names = {"+SS2D_p4": [0.5, 0.6], "-1_x": [0.6, 0.7]}
    text = "\n".join(map(latex, tables(made(tmp_path / "signed", names))))
    assert text.count("\n    +SS2D\\_p4 & ") == text.count("\n    -1\\_x & ") == 2  # in the figures and the costs
    assert "$+S" not in text
    assert "$-1" not in text
    assert text.count(r"$+10.0\ [") == 5


def has_booktabs() -> bool:
    """Return whether LaTeX is here, with the one package that tables need."""
    found = shutil.which("pdflatex") and shutil.which("kpsewhich")
    return bool(found) and not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode


@pytest.mark.skipif(not has_booktabs(), reason="no pdflatex with booktabs")
def test_latex_compiles(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare", {"a_b & c%": [0.5, 0.6], "{x}~^\\": [0.6, 0.7]})
    write_tables(comparison, remarks(comparison))
    paper = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    (comparison.folder / "paper.tex").write_text(paper, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=comparison.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_figures_are_drawn_as_png_and_pdf(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare")
    names = draw(comparison)
    assert names == [f"{name}.{ending}" for name in ("curves", "pr", "bars") for ending in ("png", "pdf")]
    assert all((comparison.folder / name).stat().st_size > 1000 for name in names)


def test_names_are_shown_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib takes `$...$` for a formula, which may be wrong, and leaves `_x` out of a legend."""
    names = (r"a$\frac$b", "_mine", "stock")
    comparison = made(tmp_path / "compare", dict.fromkeys(names, FIGURES["stock"]))
    looked_for = []
    monkeypatch.setattr("ultralytics.nn.Addmodules.tools.draw.font_families", lambda *x: looked_for.append(x) or x[1])
    assert draw(comparison)
    assert list(looked_for[0][0]) == comparison.names
    (legend,) = bars(comparison).legends
    assert [text.get_text().split(" (")[0].strip() for text in legend.get_texts()] == [r"a\$\frac\$b", "_mine", "stock"]


# Warnings -------------------------------------------------------------------------------------------------------------


def test_a_fair_comparison_with_a_shown_difference_has_no_warning(tmp_path: Path) -> None:
    pair = {name: FIGURES[name] for name in ("stock", "graft_a")}
    assert remarks(made(tmp_path / "compare", pair, report_on="test", checkpoint="best")) == []


def test_warnings(tmp_path: Path) -> None:
    models = {"a": {"trained": True}, "b": {"trained": False}}
    comparison = made(tmp_path / "compare", {"a": [0.5], "b": [0.6]}, checkpoint="best", models=models)
    speed = read_json(comparison.folder / "speed.json")
    write_json(comparison.folder / "speed.json", {**speed, "about": {**speed["about"], "busy": 60.0}})
    made(tmp_path / "compare-2", {"c": [0.5, 0.6]})
    made(tmp_path / "elsewhere", {"c": [0.5, 0.6]}, data="other.yaml")
    write_json(comparison.folder / "models.json", {"a": {"trained_on": "data.yaml"}, "b": {"trained_on": ""}})
    b = comparison.runs[1]
    job, result = read_json(b.folder / "run.json"), read_json(b.folder / "result.json")
    job["about"] |= {"threads": 1, "uncommitted": 1}
    write_json(b.folder / "run.json", {**job, "mixed": ["torch"]})
    result["effective"]["batch"] = 2
    write_json(b.folder / "result.json", result)
    lines = (b.folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    (b.folder / "epochs.jsonl").write_text(lines[0] + "\n" + lines[1][:20], encoding="utf-8")  # cut short in a line
    text = "\n".join(remarks(comparison))
    for said in (
        "a start from trained weights, b from random ones",
        "Trained on these data before, as their files say: a.",
        "One seed: there is no spread",
        "Seed 0 is also in compare-2, on the same data: if you chose a model or setting by that one, report",
        "as in seeds=[1]",
        "Settings are unequal: batch is 4 (a seed 0); 2 (b seed 0)",
        "unequal: threads is 2 (a seed 0); 1 (b seed 0)",
        "b seed 0 went on after a change of torch",
        "uncommitted changes",
        "Do not quote the times: other programs took 60 % of the CPU",
        "on the pictures that chose the checkpoint",
        "b, seed 0 ended after 1 of 2 epochs (patience=)",
    ):
        assert said in text
    assert "elsewhere" not in text


# Command lines --------------------------------------------------------------------------------------------------------


def test_seeds_and_models_are_read() -> None:
    assert read_seeds("3") == (0, 1, 2)
    assert read_seeds("0,1,2") == (0, 1, 2)
    assert read_seeds("[10]") == read_seeds("10,") == (10,)
    for wrong in ("", "0", "-1", "a", "1,1"):
        with pytest.raises(ValueError, match=r"^(a count|seeds of)"):
            read_seeds(wrong)
    assert read_models(["stock=y5n.pt", "runs/mine/weights/best.pt"]) == {
        "stock": "y5n.pt",
        "mine": "runs/mine/weights/best.pt",
    }
    with pytest.raises(
        UsageError, match="names 'a' and 'A' would be one name of a folder; give others: models=a=x.yaml,b=y"
    ):
        read_models(["a=x.yaml", "A=y.yaml"])
    with pytest.raises(UsageError, match="two models are called 'a'; name them"):
        read_models(["x/a.pt", "y/a.pt"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a detection set of 12 and 4 pictures."""
    return make_data(tmp_path_factory.mktemp("data"), "detect")


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"modles": "a"}, 2, "there is no setting 'modles'; did you mean 'models'?"),
        ({"optimiser": "SGD"}, 2, "there is no setting 'optimiser'; did you mean 'optimizer'?"),
        ({"zzzz": "1"}, 2, "there is no setting 'zzzz'; `vmamba compare help` and `yolo cfg` list what it takes"),
        ({"seed": "1"}, 2, "'seed' cannot be set: give seeds="),
        ({"batch": "-1"}, 2, "batch=-1 would give each model another batch size; give a number, as in 16"),
        ({"lr0": "fast"}, 2, "'lr0=fast'"),
        ({"epochs": "many"}, 2, "epochs must be a positive integer, got 'many'"),
        ({"models": None}, 2, "models= must be given"),
        ({"models": "no.pt"}, 1, "no such model file: 'no.pt'"),
        ({"models": "no-such.yaml"}, 1, "cannot read the model 'no-such.yaml'"),
        ({"models": "train.py"}, 1, "'train.py' is no model file"),
        ({"models": "yolov8n.yaml,yolov8n-seg.yaml"}, 1, "models of two tasks: yolov8n is for detect, yolov8n-seg for"),
        ({"models": "yolov8n-seg.yaml"}, 1, "the models are for segment, but "),
        ({"models": "yolov8n-pose.yaml"}, 1, "has no kpt_shape:, which models for poses need"),
        ({"models": "yolov8n-cls.yaml"}, 1, "no such folder"),
        ({"models": "yolov8n.yaml,yolov8n-p6.yaml", "imgsz": "96"}, 1, "(yolov8n 96, yolov8n-p6 128): give imgsz=128"),
        ({"data": "no-such.yaml"}, 1, "data=no-such.yaml: "),
        ({"report_on": "test"}, 1, "has no test split; leave it out or give report_on=val"),
        (
            {"jobs": "2", "device": "0"},
            1,
            "device=0 cannot be used" if not torch.cuda.is_available() else "jobs=2 is for",
        ),
        ({"device": "0,1"}, 1, "a run takes one device"),
        ({"optimizer": "Adamm"}, 1, "optimizer=Adamm: Optimizer 'Adamm' not found in list of available optimizers"),
        ({"workers": "-1"}, 1, "workers=-1 must be 0 or more"),
        ({"freeze": "x"}, 1, "freeze=x must be a number of rows, or a list of rows; VMamba-yolon has 18, 0 to 17"),
        ({"freeze": "[3,23]"}, 1, "freeze=[3, 23] must be"),
        ({"classes": "[9]"}, 1, "classes=[9] must be a list of classes that the data have: [0, 1]"),
    ],
)
def test_a_wrong_command_ends_in_one_line_and_writes_nothing(
    changes: dict, status: int, said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(command(data, tmp_path / "runs", **changes)) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("vmamba compare: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def broken(folder: Path, how: str) -> Path:
    """Write a data set with one fault."""
    file = make_data(folder, "detect")
    if how == "labels":
        shutil.rmtree(folder / "labels/train")
    elif how == "empty":
        for label in (folder / "labels/val").iterdir():
            label.write_text("", encoding="utf-8")
    elif how == "images":
        shutil.rmtree(folder / "images/train")
    elif how == "class":
        (folder / "labels/train/3.txt").write_text("2 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    elif how == "grey":
        YAML.save(file, {**YAML.load(file), "channels": 1})
    elif how == "names":
        YAML.save(file, {**YAML.load(file), "names": ["bar", "bar"]})
    elif how == "test":
        YAML.save(file, {**YAML.load(file), "test": "images/tset"})
    return file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"jobs": 0}, "jobs=0 must be a whole number from 1 on"),
        ({"checkpoint": "bets"}, "checkpoint=bets must be best or last"),
        ({"report_on": "Test"}, "report_on=Test must be val or test"),
        ({"seeds": (0, 0)}, "seeds=(0, 0) must be seeds of which none stands twice"),
        ({"seeds": ()}, "seeds=() must be whole numbers from 0 on"),
        ({"seeds": (-1,)}, "seeds=(-1,) must be whole numbers from 0 on"),
        ({"models": {"a b": "yolov8n.yaml", "a_b": "yolo11n.yaml"}}, "'a b' and 'a_b' would be one name of a folder"),
        ({"settings": {"split": "test"}}, "'split' cannot be set: give report_on=val or report_on=test"),
        ({"settings": {"time": 1}}, "'time' cannot be set: it would give each model another number of epochs"),
        ({"settings": {"epoch": 1}}, "there is no setting 'epoch'"),
        ({"settings": {"epochs": 0}}, "epochs=0 must be a whole number from 1 on"),
        ({"settings": {"mosaic": "x"}}, "mosaic"),
        ({"settings": {"device": "cpu"}}, "'device' must stand beside settings, as in Plan(..., device=...)"),
    ],
)
def test_a_plan_of_a_program_is_checked_like_a_command(changes: dict, said: str, data: Path, tmp_path: Path) -> None:
    given = {"models": {"a": "yolov8n.yaml"}, "data": str(data), "device": "cpu", "project": str(tmp_path / "runs")}
    with pytest.raises(ValueError, match="^vmamba compare: ") as e:
        compare(Plan(**(given | changes)))
    assert said in str(e.value)
    assert not (tmp_path / "runs").exists()


def test_cuda_is_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert {checks.device_of(Plan({}, "", device=name)) for name in ("cuda", "cuda:0", "0")} == {"0"}


def test_results_and_docs_are_not_code(tmp_path: Path) -> None:
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in ("code.py", "benchmarks/results/study.csv"):
        (tmp_path / name).write_text("1", encoding="utf-8")
    me = "-c", "user.name=me", "-c", "user.email=me@here"
    for what in (("init", "-q"), ("add", "."), (*me, "commit", "-qm", "all")):
        subprocess.run(["git", *what], cwd=tmp_path, check=True)
    assert not uncommitted(tmp_path)
    (tmp_path / "benchmarks/results/study.csv").write_text("2", encoding="utf-8")
    assert not uncommitted(tmp_path)
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    assert uncommitted(tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("labels", "no labels for the train split, expected for example"),
        ("empty", "no labels for the val split"),
        ("images", "no images in the train split"),
        ("class", "names class 2, but the data name 2 classes, 0 to 1"),
        ("grey", "yolov8n takes pictures of 3 channels"),
        (
            "names",
            "data.yaml: classes 0 and 1 are called 'bar'; give each a name of its own, because tables and weights",
        ),
        ("test", "tset does not exist; put its pictures there, take test out, or give report_on=val"),
    ],
)
def test_faults_of_data_are_found_before_training(
    how: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(command(broken(tmp_path / "data", how), tmp_path / "runs", models="yolov8n.yaml")) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("task", "suffix", "setting", "said"),
    [
        ("depth", "depth", "classes=[0]", "classes=[0] is not for depth, which has no classes; leave it out"),
        ("depth", "depth", "single_cls=True", "single_cls=True is not for depth; leave it out"),
        ("semantic", "sem", "single_cls=True", "single_cls=True is not for semantic; leave it out"),
    ],
)
def test_settings_without_a_meaning_for_pixels_are_refused(
    task: str, suffix: str, setting: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = make_data(tmp_path / "data", task)
    given = [*command(data, tmp_path / "runs", models=f"yolo26n-{suffix}.yaml"), setting]
    assert cli.main(given) == 1
    assert capsys.readouterr().err.splitlines() == [f"vmamba compare: {said}"]
    assert not (tmp_path / "runs").exists()


def test_depth_maps_without_a_distance_give_no_figures() -> None:
    metrics = DepthMetrics()
    metrics.process()
    with pytest.raises(ValueError, match="no picture to validate on has a distance above zero"):
        train.figures(metrics)


def test_a_test_split_is_not_needed_to_report_on_val(tmp_path: Path) -> None:
    (subject,) = subjects("yolov8n.yaml")
    file = str(broken(tmp_path / "boxes", "test"))
    plan = Plan({"a": "yolov8n.yaml"}, file, (0,), report_on="val")
    assert checks.check_data(plan, subject).images == {"train": 12, "val": 4}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folders_of_classes_are_read_as_in_a_training(name: str, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "set", "classify")
    (folder / "val").rename(folder / name)
    if os.name != "nt":  # links need a right there
        (folder / "train/bar").rename(tmp_path / "bar")
        (folder / "train/bar").symlink_to(tmp_path / "bar", target_is_directory=True)
    data = data_set.check_classes(str(folder))
    assert (data.names, data.images) == ({0: "bar", 1: "square"}, {"train": 12, "val": 4})
    data_set.read_once(data, "classify", {})
    (folder / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="test': a set for classification has test/CLASS/PICTURE; put its"):
        data_set.check_classes(str(folder))
    assert data_set.check_classes(str(folder), tested=False) == data
    (folder / name).rename(folder / "vall")
    with pytest.raises(FileNotFoundError, match="val': a set for classification has val/CLASS/PICTURE$"):
        data_set.check_classes(str(folder))


def test_a_full_disk_is_found_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000_000))
    assert cli.main(command(data, tmp_path / "runs")) == 1
    assert "no disk space: about " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_other_settings_is_never_gone_on_with(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path / "mine")
    before = {p: p.read_bytes() for p in (tmp_path / "mine").rglob("*") if p.is_file()}
    assert cli.main(command(data, tmp_path, name="mine")) == 1
    assert f"'{tmp_path / 'mine'}' has other settings: data is data.yaml, not {data}" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "mine").rglob("*") if p.is_file()} == before
    (tmp_path / "other").mkdir()
    assert cli.main(command(data, tmp_path, name="other")) == 1
    assert "exists and holds no comparison" in capsys.readouterr().err


def test_the_first_difference_of_settings_is_named() -> None:
    old = {"seeds": [0], "models": {"a": {"digest": "1"}, "b": {"digest": "2"}}, "train": {"epochs": 3}}
    assert first_difference(old, json.loads(json.dumps(old))) == ""
    assert first_difference(old, {**old, "train": {"epochs": 4}}) == "train: epochs is 3, not 4"
    assert first_difference(old, {**old, "train": {"epochs": 3, "lr0": 1}}) == "train: lr0 is not set, not 1"
    turned = dict(reversed(old["models"].items()))
    assert first_difference(old, {**old, "models": turned}) == "models in the order a, b, not b, a"


# Start files ----------------------------------------------------------------------------------------------------------


def subjects(*files: str) -> list[checks.Subject]:
    """Return models as a plan has them."""
    return checks.check_models(Plan(models={f"m{i}": str(f) for i, f in enumerate(files)}, data=""))


def starts(files: list, seed: int = 0, names: tuple[str, ...] = ("x", "y", "z"), **settings) -> list[dict]:
    """Return the state dicts of models at their start, for data with these classes."""
    facts = data_set.Data("data.yaml", dict(enumerate(names)), 3, {"train": 1, "val": 1})
    found = [start.build(s, facts, settings, seed) for s in subjects(*files)]
    start.equalize(found)
    return [s.model.state_dict() for s in found]


def common(a: dict, b: dict) -> list[str]:
    """Return tensors that two models have in common."""
    return [n for n, t in a.items() if t.is_floating_point() and n in b and b[n].shape == t.shape]


def test_what_models_have_in_common_starts_with_the_same_numbers(tmp_path: Path) -> None:
    files = ["yolov8n.yaml", "yolov8n-p2.yaml", "VMamba-yolov8n.yaml"]
    a, *others = starts(files)
    for b in others:
        shared = common(a, b)
        assert any(n.startswith("model.0.") for n in shared)
        assert all(torch.equal(a[n], b[n]) for n in shared)
    heads = common(*starts(["yolov8n.yaml", "VMamba-yolov8n.yaml"])[:2])
    assert a["model.22.cv3.0.2.weight"].shape[0] == 3  # the classes of the data
    assert heads
    again, other = starts(files)[0], starts(files, seed=1)[0]
    assert all(torch.equal(a[n], again[n]) for n in a)
    assert not torch.equal(a["model.0.conv.weight"], other["model.0.conv.weight"])


def test_a_declared_start_is_kept_and_scales_the_common_numbers() -> None:
    stock, ours = starts(["yolov8n.yaml", "VMamba-yolon.yaml"])
    name = "model.1.conv.weight"
    factor = YAML.load(ROOT / "ultralytics/cfg/models/vmamba/VMamba-yolo.yaml")["init_dense"]
    assert torch.allclose(ours[name], factor * stock[name])
    first, second = starts(["VMamba-yolon.yaml", "yolov8n.yaml"])  # also when it is the first
    assert torch.allclose(first[name], factor * second[name])


def test_a_graft_starts_as_its_stock_model_does(tmp_path: Path) -> None:
    """From scratch, and from weights of other classes, whose heads are new."""
    made = YOLO("yolov8n.yaml")
    for name, module in (("stock", made.model), ("graft", graft(made).model)):
        start.save(module, tmp_path / f"{name}.pt")
    facts = data_set.Data("data.yaml", {0: "x", 1: "y", 2: "z"}, 3, {"train": 1, "val": 1})
    for files in (["yolov8n.yaml", "VMamba-yolov8n-graft.yaml"], [tmp_path / "graft.pt", tmp_path / "stock.pt"]):
        found = [start.build(s, facts, {}, 0) for s in subjects(*files)]
        counts = start.equalize(found)
        few, many = sorted((start.named(s.model) for s in found), key=len)
        assert few.keys() < many.keys()
        assert all(torch.equal(few[n], many[n]) for n in few)
        assert few["model.22.cv3.0.2.weight"].shape[0] == 3
        floating = sum(t.is_floating_point() for t in few.values())
        assert counts[1] == (floating, floating)


def test_rows_of_classes_that_weights_name_are_not_made_equal(tmp_path: Path) -> None:
    """Upstream takes over the class rows of the same names, and draws the rest of the branch anew."""
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        module = YOLO("yolov8n.yaml").model
        module.names = {n: f"thing {n}" for n in module.names}  # of mere numbers upstream takes none over
        start.save(module, tmp_path / f"{name}.pt")
    name = "model.22.cv3.0.2.weight"
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    a, b = starts(files, names=("x", "y", "z"))
    assert torch.equal(a[name], b[name])
    a, b = starts(files, names=("x", "thing 7", "z"))
    theirs = YOLO(tmp_path / "b.pt").model.state_dict()[name]
    assert torch.equal(b[name][1], theirs[7])
    assert not torch.equal(a[name][1], b[name][1])


def test_a_count_of_frozen_rows_does_not_count_grafts() -> None:
    stock, grafted = subjects("yolov8n.yaml", "VMamba-yolov8n-graft.yaml")
    assert checks.frozen(9, stock.model) == 9
    rows = checks.frozen(9, grafted.model)
    assert [type(grafted.model.model[i]) for i in rows] == [type(m) for m in stock.model.model[:9]]
    assert rows != [*range(9)]
    assert checks.frozen(None, grafted.model) is None
    assert checks.frozen([2], grafted.model) == [2]
    checks.check_freeze(22, [stock, grafted])
    checks.check_freeze([2], [stock])
    checks.check_freeze([2], [grafted, grafted])
    with pytest.raises(ValueError, match=r"freeze=\[2\] means other layers in m1 than in m0, because grafts move rows"):
        checks.check_freeze([2], [stock, grafted])
    with pytest.raises(ValueError, match="freeze=24 must be"):
        checks.check_freeze(24, [stock, grafted])


def test_each_run_is_told_which_rows_freeze(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "run_all", lambda c, jobs, prepare, say: [prepare(run) for run in c.runs])
    monkeypatch.setattr(verb.Job, "finish", lambda *_: None)
    models = {"stock": "yolov8n.yaml", "graft": "VMamba-yolov8n-graft.yaml"}
    plan = Plan(models, str(data), (0,), device="cpu", project=str(tmp_path / "runs"), settings={"freeze": 6})
    stock, grafted = Comparison.read(compare(plan)).runs
    assert stock.job["train"]["freeze"] == 6
    assert grafted.job["train"]["freeze"] == [0, 1, 2, 3, 4, 5]
    plan = Plan(models, str(data), (0,), device="cpu", project=str(tmp_path / "runs"), settings={"freeze": 9})
    assert Comparison.read(compare(plan)).runs[1].job["train"]["freeze"] == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_the_order_of_pictures_after_a_stop_is_that_of_a_training_without_one(tmp_path: Path) -> None:
    def orders(first: int, last: int, count: int) -> list[list[int]]:
        loader = InfiniteDataLoader(
            range(count), batch_size=4, shuffle=True, num_workers=0, generator=torch.Generator()
        )
        run, trainer, found = (
            train.Training(tmp_path, {"train": {}, "seed": 3}),
            SimpleNamespace(train_loader=loader),
            [],
        )
        for trainer.epoch in range(first, last):
            run.on_train_epoch_start(trainer)
            found.append(torch.cat(list(loader)).tolist())
        return found

    for count in (8, 10):
        whole = orders(0, 4, count)
        assert orders(2, 4, count) == whole[2:]
        assert sorted(whole[0]) == sorted(whole[1]) == [*range(count)]
        assert whole[0] != whole[1]


def test_steps_that_amp_skips_are_not_in_the_norms() -> None:
    norms = train.Norms.__new__(train.Norms)
    norms.seen = [
        tuple(map(torch.tensor, step)) for step in ((math.inf, math.nan, True), (12.0, 3.0, True), (4.0, 1.0, False))
    ]
    assert norms.take() == {"grad_norm": 8.0, "graft_grad_norm": 2.0, "clipped": 0.5}
    norms.seen = [(torch.tensor(math.nan), torch.tensor(0.0), torch.tensor(False))]
    assert norms.take() == {}


def test_a_projection_that_starts_at_zero_in_one_model_stays_at_zero() -> None:
    a, b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(b.weight)
    assert not start.alike(a.weight, b.weight)
    assert not start.alike(b.weight, a.weight)
    assert start.alike(a.weight, torch.nn.Linear(8, 8).weight)
    assert not start.alike(a.weight, 3 * torch.nn.Linear(8, 8).weight)


def test_any_kind_of_model_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RT-DETR is told by its head: a YOLO of that YAML has no task."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "ultralytics/cfg/models/v8/yolov8-rtdetr.yaml", "mine.yaml")
    (fresh,) = subjects("mine.yaml")
    torch.save({"epoch": -1, "model": fresh.model.half(), "train_args": {"task": "detect", "lr0": 0.5}}, "mine.pt")
    (trained,) = subjects("mine.pt")
    assert [type(s.model).__name__ for s in (fresh, trained)] == ["RTDETRDetectionModel"] * 2
    assert [(s.trained, s.args, s.model.task) for s in (fresh, trained)] == [
        (False, {}, "detect"),
        (True, {"task": "detect", "lr0": 0.5}, "detect"),
    ]
    assert torch.equal(trained.model.model[0].conv.weight, fresh.model.model[0].conv.weight.float())
    assert len(starts(["mine.yaml", "mine.pt"])) == 2


def test_weights_of_a_file_are_kept_and_a_new_head_is_the_same_for_all(tmp_path: Path) -> None:
    """Two .pt of 80 classes: their own numbers stay, class branches are new for 3 classes, and equal."""
    files = []
    for i in range(2):
        torch.manual_seed(10 + i)
        model = YOLO("yolov8n.yaml", verbose=False)
        files.append(tmp_path / f"{i}.pt")
        model.save(files[-1])
    a, b = starts(files)
    own = YOLO(files[1], verbose=False).model.state_dict()
    assert torch.equal(b["model.0.conv.weight"], own["model.0.conv.weight"])
    assert not torch.equal(b["model.0.conv.weight"], a["model.0.conv.weight"])
    fresh = [n for n in common(a, b) if re.search(r"cv3\.\d\.2\.weight", n)]
    assert len(fresh) == 3
    assert all(torch.equal(a[n], b[n]) for n in fresh)
    lines: list[str] = []
    job = verb.Job(Plan({}, ""), lines.append)
    job.subjects, job.data = subjects(*files), data_set.Data("data.yaml", {0: "x"}, 3, {})
    job.tell_of_heads()
    assert lines == [f"m{i} has 80 classes, the data 1: it gets a new class output" for i in range(2)]
    scratch = starts(["yolov8n.yaml", files[1]], pretrained=False)
    assert torch.equal(*(s["model.0.conv.weight"] for s in scratch))


# Processes ------------------------------------------------------------------------------------------------------------

CHILD = """
import json, os, sys, time
folder = sys.argv[-1]
if "a-seed1" in folder:
    os.kill(os.getpid(), 9)
if "b-seed1" in folder:
    sys.exit(7)
open(folder + "/epochs.jsonl", "a").write(json.dumps({"epoch": 1, "mAP50-95": 0.5}) + "\\n")
time.sleep(0.5)
json.dump({"status": "done", "report": {}}, open(folder + "/result.json", "w"))
"""


def test_a_run_that_dies_is_kept_as_failed_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = made(tmp_path / "compare", {"a": [0.5] * 3, "b": [0.5] * 3}, train={"epochs": 1})
    for run in comparison.runs:
        (run.folder / "result.json").unlink()
        (run.folder / "epochs.jsonl").unlink()
    write_json(comparison.runs[0].folder / "result.json", {"status": "done", "report": {}})
    begun, lines = [], []

    def fake(module: str, argument: Path, log: Path, threads: int | None) -> subprocess.Popen:
        begun.append(argument.name)
        return subprocess.Popen([sys.executable, "-c", CHILD, str(argument)], stdin=subprocess.PIPE)

    monkeypatch.setattr(schedule, "start_process", fake)
    schedule.run_all(comparison, 2, lambda run: 1, lines.append)
    assert begun == ["b-seed0", "a-seed1", "b-seed1", "a-seed2", "b-seed2"]  # what is done is not run again
    status = {r.folder.name: r.result["status"] for r in comparison.runs}
    assert [n for n, s in status.items() if s == "failed"] == ["a-seed1", "b-seed1"]
    said = "\n".join(lines)
    assert "run 4 of 6, b, seed 1: FAILED after 0 epochs: its process ended with status 7" in said
    if os.name == "posix":
        assert "its process was ended by SIGKILL (the system does so when memory runs out)" in said
    assert "run 2 of 6, b, seed 0: epoch 1 of 1, mAP50-95 0.500" in said
    assert re.search(r"; about \d+ s left$", said, re.MULTILINE)


def test_a_loss_that_is_not_finite_and_a_batch_that_was_halved_end_a_run(tmp_path: Path) -> None:
    run = train.Training(tmp_path, {"train": {"batch": 4}, "seed": 0, "threads": 1})
    trainer = SimpleNamespace(epoch=2, metrics={"val/box_loss": 1.0}, loss=torch.tensor(math.nan), batch_size=4)
    run.clock = {"wall": 0.0, "cpu": 0.0}
    run.on_train_epoch_end(trainer)
    with pytest.raises(train.NotFinite, match=r"the loss is not finite \(NaN or infinite\) in epoch 3"):
        run.on_fit_epoch_end(trainer)
    trainer.batch_size, run.clock = 2, {"wall": 0.0, "cpu": 0.0}
    with pytest.raises(MemoryError, match="batch=4 does not fit"):
        run.on_train_epoch_end(trainer)


def test_a_failure_is_written_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "run.json", {"train": {"batch": 4}, "seed": 0, "threads": 1})
    for error, reason, final in (
        (train.NotFinite("the loss is not finite"), "the loss is not finite", True),
        (RuntimeError("CUDA out of memory.\nTried"), "out of memory: CUDA out of memory. Tried", False),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device", False),
    ):

        def broken_run(self, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(train.Training, "run", broken_run)
        assert train.main(tmp_path) == 1
        result = Run(tmp_path, "a", 0).result
        assert (result["status"], result["reason"], result["final"]) == ("failed", reason, final)


def test_a_folder_is_held_by_one_command(tmp_path: Path) -> None:
    with schedule.locked(tmp_path), pytest.raises(ValueError, match="another `vmamba compare` is at work"):
        with schedule.locked(tmp_path):
            pass
    with schedule.locked(tmp_path):
        pass


# Lives ----------------------------------------------------------------------------------------------------------------


def test_two_models_a_seed_and_an_epoch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way once: both runs, the tables, and the same call again, which trains nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = {"epochs": 1, "imgsz": 64, "batch": 4, "optimizer": "AdamW", "mosaic": 0.0}
    models = {"stock": "yolov8n.yaml", "ours": "VMamba-yolon.yaml"}
    plan = Plan(models, str(data), (3,), device="cpu", jobs=2, project=str(tmp_path / "runs"), settings=settings)
    lines: list[str] = []
    before = {p for p in data.parent.rglob("*") if p.suffix != ".cache"}
    folder = compare(plan, lines.append)
    assert {p for p in data.parent.rglob("*") if p.suffix != ".cache"} == before
    assert folder == tmp_path / "runs/compare"
    comparison = Comparison.read(folder)
    assert [(r.model, r.seed, r.done, len(r.epochs)) for r in comparison.runs] == [
        ("stock", 3, True, 1),
        ("ours", 3, True, 1),
    ]
    for run in comparison.runs:
        effective = run.result["effective"]
        assert (effective["batch"], effective["imgsz"], effective["optimizer"]) == (4, 64, "AdamW")
        assert run.result["memory_mb"] > 100
        row = run.epochs[0]
        assert row["grad_norm"] > row["graft_grad_norm"] == 0  # no grafts
        assert 0 <= row["clipped"] <= 1
        assert {p.name for p in (run.folder / "weights").iterdir()} == {"best.pt", "last.pt"}
        assert run.job["about"]["threads"] == 1
        args = YAML.load(run.folder / "args.yaml")
        assert (args["seed"], args["mosaic"], args["deterministic"]) == (3, 0.0, True)
    first, second = (YOLO(comparison.start_file(n, 3)).model.state_dict() for n in models)
    both = [k for k, t in first.items() if t.is_floating_point() and k in second and second[k].shape == t.shape]
    same = sum(torch.equal(first[k], second[k]) for k in both)
    assert comparison.models["ours"]["equal"] == same > 0
    assert comparison.models["ours"]["common"] == len(both)
    assert all(m["equal"] for m in comparison.models.values())
    assert {*comparison.speed["models"]} == {*models}
    for name in ("runs.csv", "table.md", "table.csv", "table.tex", "curves.png", "bars.pdf"):
        assert (folder / name).stat().st_size
    assert any("all training is over" in line for line in lines)

    weights = comparison.runs[0].folder / "weights/last.pt"
    stamp, lines[:] = weights.stat().st_mtime_ns, []
    assert compare(plan, lines.append) == folder
    assert weights.stat().st_mtime_ns == stamp
    assert not any("epoch 1" in line or "training is over" in line for line in lines)


def running(data: Path, project: Path, **changes: str) -> subprocess.Popen:
    """Start a comparison as a command of its own."""
    args = [sys.executable, "-m", "ultralytics.nn.Addmodules", *command(data, project, **changes)]
    return subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(what, seconds: float = 180) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_kills_and_ctrl_c_lose_at_most_an_epoch(data: Path, tmp_path: Path) -> None:
    """Ctrl-C in the first run, SIGKILL of the command a little later, SIGKILL of the second run."""
    given = {"epochs": "8", "name": "mine", "models": "a=yolov8n.yaml,b=yolov8n.yaml,c=yolov8n.yaml", "mosaic": "0"}
    a, b, c = (Run(tmp_path / f"mine/runs/{n}-seed0", n, 0) for n in "abc")

    process = running(data, tmp_path, **given)
    wait_for(lambda: len(a.epochs) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("vmamba compare: stopped with 0 of 3 runs done; give the same command again to go on in ")
    assert len(err.splitlines()) == 1
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children)
    before = a.epochs
    assert 2 <= len(before) < 8

    process = running(data, tmp_path, **given)
    wait_for(lambda: len(a.epochs) > len(before))
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert a.epochs[: len(before) - 1] == before[:-1]

    process = running(data, tmp_path, **given)
    wait_for(lambda: len(b.epochs) >= 1)
    assert a.done
    for child in psutil.Process(process.pid).children():
        child.kill()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "run 2 of 3, b, seed 0: FAILED after" in out
    assert "its process was ended by SIGKILL" in out
    assert (b.done, c.done) == (False, True)
    kept = b.epochs

    process = running(data, tmp_path, **given)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "3 runs in " in out
    assert ", 1 to go" in out
    assert [len(r.epochs) for r in (a, b, c)] == [8, 8, 8]
    assert b.epochs[: len(kept) - 1] == kept[:-1]
    # the same start, order and augmentation: runs of one model and seed are one run, but for what a stop rounds
    first, last = a.epochs[0], c.epochs[0]
    assert {k: v for k, v in first.items() if "seconds" not in k} == {
        k: v for k, v in last.items() if "seconds" not in k
    }


@pytest.mark.slow
def test_a_run_whose_loss_is_nan_is_kept_as_failed_and_not_tried_again(data: Path, tmp_path: Path) -> None:
    given = {"models": "yolov8n.yaml", "box": "1e39", "name": "nan"}
    process = running(data, tmp_path, **given)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "FAILED after 0 epochs: the loss is not finite" in out
    assert "FAILED: yolov8n, seed 0" in (tmp_path / "nan/table.md").read_text(encoding="utf-8")
    out, _ = running(data, tmp_path, **given).communicate(timeout=400)
    assert ", 0 to go" in out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify", "semantic", "depth"])
def test_every_task(task: str, tmp_path: Path) -> None:
    suffix = {"segment": "seg", "classify": "cls", "semantic": "sem"}.get(task, task)
    stock = "yolo26n" if task in {"semantic", "depth"} else "yolov8n"
    files = f"{stock}-{suffix}.yaml,VMamba-yolon-{suffix}.yaml"
    process = running(make_data(tmp_path / "data", task), tmp_path, models=files, jobs="2")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    page = (tmp_path / "compare/table.md").read_text(encoding="utf-8").splitlines()
    head = [line for line in page if line.startswith("| model")][0]
    heads = {
        "classify": "| top-1 | top-5 |",
        "semantic": "| mIoU | accuracy |",
        "depth": "| delta1 | delta2 | delta3 | abs-rel |",
    }
    assert heads.get(task, "| P | R | F1 | mAP50 | mAP50-95 |") in head
    figure = {
        "segment": "mask mAP50-95",
        "pose": "pose mAP50-95",
        "classify": "top-1",
        "semantic": "mIoU",
        "depth": "delta1",
    }
    assert any(line.startswith(f"| {figure.get(task, 'mAP50-95')} |") for line in page)
    assert any(line.startswith("| background |") for line in page) == (task == "semantic")
    assert any(line.startswith("IoU by class in %") for line in page) == (task == "semantic")
    assert any("(abs-rel: less is better)" in line for line in page) == (task == "depth")


def test_the_verb_asks_for_nothing_that_its_help_lacks() -> None:
    options = {o.name for v in cli.VERBS if v.name == "compare" for o in v.options}
    assert options - {"epochs", "imgsz"} == {*Plan.__dataclass_fields__} - {"settings"}
    assert verb.COMMAND == "vmamba compare"
