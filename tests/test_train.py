# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""train.py: what it takes, what it refuses, what it fills in, and a whole short run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ultralytics.nn.Addmodules.tools.key_value import quoted

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train.py"


@pytest.fixture
def script():
    """Return train.py as a module."""
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Return an empty directory to run in; beside it lie the settings of Ultralytics for that run."""
    settings = tmp_path / "config" / "Ultralytics"
    settings.mkdir(parents=True)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def data(folder):
    """Return the YAML of a tiny data set of two classes, in a folder with a space in its name."""
    from PIL import Image

    root = folder.parent / "my data"
    for split in "train", "val":
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGB", (64, 48), (40 * i, 90, 160))
            image.paste((250, 240, 30 * i), (10, 12, 34, 40))
            image.save(root / "images" / split / f"{i}.png")
            (root / "labels" / split / f"{i}.txt").write_text(
                f"{i % 2} 0.34375 0.541667 0.375 0.583333\n", encoding="utf-8"
            )
    (root / "their.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n", encoding="utf-8")
    return root / "their.yaml"


def run(folder: Path, *args: str) -> subprocess.CompletedProcess:
    """Run train.py in a folder, with all that it writes kept beneath it."""
    config = folder.parent / "config"
    env = {**os.environ, "YOLO_CONFIG_DIR": str(config), "PYTHONIOENCODING": "utf-8", "YOLO_OFFLINE": "true"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["epoch=3"], "'epoch' is not a setting of Ultralytics; did you mean 'epochs'?"),
        (["img_size=64"], "'img_size' is not a setting of Ultralytics; did you mean 'imgsz'?"),
        (["--epoch", "3"], "'epoch' is not a setting of Ultralytics; did you mean 'epochs'?"),
        (["qwertyuiop=1"], "'yolo cfg' prints all settings"),
        (["their.yaml"], "'their.yaml' is not a setting of Ultralytics"),
        (["batch=abc"], "'batch=abc' is of invalid type str"),
        (["epochs=many"], "'epochs=many' is of invalid type str"),
        (["amp=maybe"], "'amp=maybe' is invalid"),
        (["fraction=2.5"], "fraction"),
        (["mosaic=7"], "'mosaic=7' is an invalid value"),
        (["epochs=None"], "'epochs=None' is invalid"),
        (["epochs"], "'epochs' has no value: write epochs=VALUE, for example epochs=100"),
        (["epochs="], "missing 'epochs' value"),
        (["imgsz=[64,"], "unmatched"),
        (["mode=val"], "this script only trains"),
        (["resume=nowhere/last.pt"], "'resume=nowhere/last.pt': there is no such file"),
        (["resume=True", "model=nowhere/last.pt"], "there is no such file"),
        (["cfg=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(script, monkeypatch, args, expected):
    monkeypatch.setattr(script, "check_tree", lambda: None)
    with pytest.raises(SystemExit) as error:
        script.main(args)
    message = str(error.value)
    assert message.startswith("train.py: ")
    assert expected in message
    assert "--help" in message


def test_arguments_are_read_as_yolo_does(script):
    args = ["--data=a b.yaml", "epochs", "=", "3", "lr0=1e-3", "amp=false", "device=[0,1]", "name=7", "cos_lr"]
    assert script.read(args) == {
        "data": "a b.yaml",
        "epochs": 3,
        "lr0": 0.001,
        "amp": False,
        "device": [0, 1],
        "name": "7",
        "cos_lr": True,
    }


def test_the_word_of_yolo_train_is_no_setting(script):
    assert script.read(["train", "epochs=3"]) == {"epochs": 3}


def test_weights_without_a_run_are_not_resumed(script, tmp_path):
    """Ultralytics would start anew, on a data set of its own."""
    torch.save({"model": None, "train_args": {"data": "mine.yaml"}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"cannot be resumed.*model=.*x\.pt data=mine\.yaml"):
        script.complete({"resume": str(tmp_path / "x.pt")})


def test_file_of_settings_counts_less_than_the_command_line(script, tmp_path):
    (tmp_path / "my.yaml").write_text("data: their.yaml\nepochs: 7\nlr0: 0.02\n", encoding="utf-8")
    given = script.read(["epochs=9", f"cfg={tmp_path / 'my.yaml'}"])
    assert given == {"data": "their.yaml", "epochs": 9, "lr0": 0.02}
    assert "mosaic" not in script.complete(given)


def test_file_of_settings_is_checked_too(script, tmp_path):
    (tmp_path / "my.yaml").write_text("epoch: 7\n", encoding="utf-8")
    with pytest.raises(SyntaxError, match="did you mean 'epochs'"):
        script.read([f"cfg={tmp_path / 'my.yaml'}"])


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_accelerator")
def test_no_arguments_mean_the_digits(script):
    settings = script.complete({})
    assert settings == {**script.DIGITS_RUN, "model": "VMamba-yolov8n.yaml"}
    assert Path(settings["data"]).is_file()
    assert Path(settings["data"]).is_absolute()


@pytest.mark.usefixtures("no_accelerator")
def test_digits_run_can_be_changed(script):
    settings = script.complete({"epochs": 3, "model": "yolov8n.yaml", "data": None})
    assert settings == {**script.DIGITS_RUN, "epochs": 3, "model": "yolov8n.yaml"}


@pytest.mark.usefixtures("no_accelerator")
def test_own_data_gets_nothing_of_the_digits_run(script):
    assert script.complete({"data": "their.yaml"}) == {"data": "their.yaml", "model": "VMamba-yolov8n.yaml"}


@pytest.mark.usefixtures("no_accelerator")
def test_recipe_run(script):
    given = script.read("data=their.yaml device=0 epochs=300 batch=70 imgsz=640".split())
    assert script.complete(given) == {
        "data": "their.yaml",
        "device": 0,
        "epochs": 300,
        "batch": 70,
        "imgsz": 640,
        "model": "VMamba-yolov8n.yaml",
    }  # amp is left to Ultralytics, whose default is True


def checkpoint(file: Path) -> Path:
    """Write the least that counts as a checkpoint of a run in its middle."""
    torch.save({"epoch": 2, "model": None}, file)
    return file


@pytest.mark.usefixtures("no_accelerator")
def test_resume_takes_everything_from_the_checkpoint(script, tmp_path):
    last = checkpoint(tmp_path / "last.pt")
    for given in {"resume": str(last)}, {"resume": True, "model": str(last)}:
        assert script.complete(given) == {"resume": True, "model": str(last)}


@pytest.mark.usefixtures("no_accelerator")
def test_resume_alone_takes_the_newest_run(script, tmp_path, monkeypatch):
    import ultralytics.utils

    monkeypatch.setattr(ultralytics.utils, "RUNS_DIR", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no last.pt under"):
        script.complete({"resume": True})
    last = tmp_path / "detect" / "train" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    checkpoint(last)
    assert script.complete({"resume": True})["model"] == str(last)


@pytest.mark.usefixtures("no_accelerator")
def test_mps_is_taken_where_there_is_no_cuda(script, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert script.complete({"data": "their.yaml"})["device"] == "mps"
    assert script.complete({"data": "their.yaml", "device": "cpu"})["device"] == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "device" not in script.complete({"data": "their.yaml"})


THREADS = """
import sys, torch
from ultralytics import YOLO
model = YOLO(sys.argv[1])
model.add_callback("on_train_start", lambda trainer: print("threads:", torch.get_num_threads()))
model.train(data=sys.argv[2], epochs=1, imgsz=64, batch=2, device="cpu", workers=0, plots=False, project=sys.argv[3])
"""


@pytest.mark.parametrize("model", ["VMamba-yolon.yaml", "yolov8n.yaml"])
@pytest.mark.parametrize("chosen", [None, "3"])
def test_training_on_a_cpu_uses_all_cores(model, chosen, data, folder):
    """By every door, here Python's, for models of ours; stock models train as upstream trains them."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    env |= {"OMP_NUM_THREADS": chosen} if chosen else {}
    command = [sys.executable, "-c", THREADS, model, str(data), str(folder)]
    env |= {"YOLO_CONFIG_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    out = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ours = int(chosen or cores)
    expected = ours if model.startswith("VMamba") else min(8, max(1, os.cpu_count() - 1))
    assert f"threads: {expected}" in out.stdout
    assert (f"training with {ours} of {cores} CPU cores" in out.stdout) == model.startswith("VMamba")


def test_digits_run_is_made_of_valid_settings(script):
    from ultralytics.cfg import get_cfg

    get_cfg(overrides=dict(script.DIGITS_RUN))


def test_help_shows_commands_that_parse(script, capsys):
    script.main(["--help"])
    text = capsys.readouterr().out
    commands = re.findall(r"^    python train.py *(.*?)(?: *#.*)?$", text, re.M)
    assert len(commands) == 5
    for command in commands:
        script.read(command.split())
    for key, value in script.DIGITS_RUN.items():
        assert f"{key}={value}" in text


def check_found(script, monkeypatch, origin):
    """Run the check as if Python found Ultralytics there."""
    spec = origin and SimpleNamespace(origin=str(origin / "__init__.py"))
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: spec)
    script.check_tree()


def test_check_passes_the_tree_beside_the_script(script, monkeypatch, capsys):
    check_found(script, monkeypatch, ROOT / "ultralytics")
    assert capsys.readouterr() == ("", "")


def test_check_refuses_no_tree(script, monkeypatch):
    with pytest.raises(SystemExit, match="not laid out.*\n.*pip install -e"):
        check_found(script, monkeypatch, None)


def test_check_refuses_only_the_files_of_the_fork(script, monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(SystemExit, match="not laid out"):
        script.check_tree()


def test_check_refuses_upstream_itself(script, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="has no VMamba layers"):
        check_found(script, monkeypatch, tmp_path / "ultralytics")


def test_check_tells_of_another_copy_of_the_fork(script, monkeypatch, tmp_path, capsys):
    layers = tmp_path / "ultralytics" / "nn" / "Addmodules" / "VMamba.py"
    layers.parent.mkdir(parents=True)
    layers.touch()
    check_found(script, monkeypatch, tmp_path / "ultralytics")
    assert "not the one beside this script" in capsys.readouterr().err


def test_script_without_a_tree(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "ultralytics" / "nn").mkdir(parents=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-S", str(tmp_path / "train.py")]  # -S: nothing that is installed is seen
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "not laid out" in result.stderr


def test_own_data_from_another_directory(folder, data):
    """A whole run: the script is called by its path, and its last line says what to do next."""
    result = run(folder, f"data={data}", "epochs=1", "imgsz=64", "batch=2", "device=cpu", f"project={folder}", "name=x")
    assert result.returncode == 0, result.stdout + result.stderr
    best = folder / "x" / "weights" / "best.pt"
    assert best.is_file()
    assert (folder / "x" / "results.png").is_file()
    summary = result.stdout[result.stdout.rindex("Trained in") :]
    assert re.search(rf"^Trained in \d+\.\d minutes. Best model: {re.escape(str(best))}$", summary, re.M)
    assert re.search(r"mAP50\(B\) \d\.\d{3}, mAP50-95\(B\) \d\.\d{3}", summary)
    source = data.parent / "images" / "val"
    assert f"yolo detect predict model={best} source={quoted(source)}" in summary
    assert summary.rstrip().endswith("start from pretrained weights: docs/starting-weights.md.")


def test_missing_data_yaml_is_named(script, monkeypatch):
    monkeypatch.setattr(script, "check_tree", lambda: None)
    with pytest.raises(SystemExit, match="^train.py: 'their.yaml' does not exist"):
        script.main(["data=their.yaml"])


def test_missing_folder_is_named(script, monkeypatch, data):
    monkeypatch.setattr(script, "check_tree", lambda: None)
    (data.parent / "images" / "val").rename(data.parent / "images" / "valid")
    with pytest.raises(SystemExit, match=r"^train.py: .*images not found, missing path .*images.val"):
        script.main([f"data={data}"])


def test_data_without_images_is_named(folder, data):
    for image in (data.parent / "images" / "train").iterdir():
        image.unlink()
    result = run(folder, f"data={data}", "device=cpu", f"project={folder}")
    assert result.returncode == 1
    assert re.search(r"^train.py: .*No images found in .*images.train", result.stderr, re.M)
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_first_epoch_on_the_digits(folder, environment):
    """The run without arguments, cut short."""
    datasets = folder.parent / "datasets"
    code = f"from ultralytics import settings; settings.update(datasets_dir={str(datasets)!r})"
    env = {**environment, "YOLO_CONFIG_DIR": str(folder.parent / "config")}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)
    result = run(folder, "epochs=1", "fraction=0.1", "device=cpu", f"project={folder}", "name=x")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (datasets / "vmamba-digits-1" / "images" / "val").is_dir()
    assert "yolo detect predict model=" in result.stdout
    assert "VMamba-yolov8n.yaml" in (folder / "x" / "args.yaml").read_text(encoding="utf-8")


JUNK = "nc: 2\nbackbone:\n  - [-1, 1, Foo, [64]]\nhead: []\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["device=0"], "Invalid CUDA 'device=0' requested"),
        (["model=junk.yaml"], "junk.yaml: layer 0 (Foo): there is no such layer in Ultralytics or in this fork"),
        (["model=nothing.yaml"], "nothing.yaml"),
        (["data=junk.json"], "Not a YAML file: junk.json"),
        (
            ["resume=finished.pt"],
            "'resume=finished.pt' cannot be resumed: its training is finished, or the file is not of a training;",
        ),
        (["project={folder}/junk.json"], "junk.json"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_what_a_user_can_cause_ends_in_one_sentence(args, said, folder, data):
    if args == ["device=0"] and torch.cuda.is_available():
        pytest.skip("there is a device 0")
    (folder / "junk.yaml").write_text(JUNK, encoding="utf-8")
    (folder / "junk.json").write_text("{}", encoding="utf-8")
    if args == ["resume=finished.pt"]:
        from ultralytics import YOLO

        model = YOLO("VMamba-yolov8n.yaml").model
        torch.save(
            {"epoch": -1, "model": model, "train_args": {"data": str(data), "epochs": 1}}, folder / "finished.pt"
        )
    args = [a.replace("{folder}", str(folder)) for a in args]
    given = [] if any(a.startswith(("data", "resume")) for a in args) else [f"data={data}", "epochs=1"]
    more = [] if "device=0" in args else ["device=cpu"]
    result = run(folder, *args, *given, *more)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()
    assert last[-2].startswith("train.py: ")
    assert said in last[-2]
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(script, monkeypatch):
    def broken(settings):
        return {}["missing"]

    monkeypatch.setattr(script, "check_tree", lambda: None)
    monkeypatch.setattr(script, "complete", lambda settings: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        script.main([])
    monkeypatch.setattr(script, "complete", broken)
    with pytest.raises(KeyError):
        script.main([])
