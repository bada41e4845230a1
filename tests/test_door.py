# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The command `yolo`: upstream's, and one sentence instead of a traceback where this fork refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ultralytics import YOLO

ROOT = Path(__file__).resolve().parents[1]


def yolo(*args: str, folder: Path, environment: dict[str, str], name: str = "yolo") -> subprocess.CompletedProcess:
    """Run a console script of this fork."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no reader of it
    module, function = re.search(rf'^{name} = "(.+):(.+?)"', project, re.MULTILINE).groups()
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)


def test_a_finished_run_is_not_resumed(tmp_path: Path, environment: dict[str, str]) -> None:
    """Upstream warns, and trains on a data set that it downloads."""
    YOLO("VMamba-yolon.yaml").save(tmp_path / "last.pt")
    for args in (("train", "resume", "model=last.pt"), ("detect", "train", "resume=last.pt")):
        run = yolo(*args, folder=tmp_path, environment=environment)
        assert run.returncode == 1
        (line,) = run.stderr.strip().splitlines()[-1:]
        assert line.startswith("yolo: 'resume=last.pt' cannot be resumed")
        assert "model=last.pt data=" in line
        assert "Traceback" not in run.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_wrong_row_is_one_sentence(tmp_path: Path, environment: dict[str, str]) -> None:
    backbone = "backbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, MambaLayr, []]\n"
    (tmp_path / "mine.yaml").write_text(f"nc: 2\n{backbone}head:\n  - [[1], 1, Detect, [nc]]\n", encoding="utf-8")
    run = yolo("detect", "train", "model=mine.yaml", "data=x.yaml", folder=tmp_path, environment=environment)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "did you mean MambaLayer?" in run.stderr


@pytest.mark.parametrize(
    ("door", "arguments"),
    [
        ("yolo", "predict model=VMamba-yolon.yaml"),
        ("yolo", "detect train model=VMamba-yolon.yaml data=x.yaml"),
        ("vmamba checks", ""),
        ("vmamba visualize orders", ""),
        ("train.py", "data=x.yaml"),
        ("-m ultralytics.nn.Addmodules checks", ""),
    ],
)
def test_a_backend_that_does_not_exist(door: str, arguments: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """No import refuses it; every command does, before it reads or writes a file."""
    environment = {**environment, "VMAMBA_BACKEND": "fast"}
    name, *verbs = door.split()
    if name in ("yolo", "vmamba"):
        run = yolo(*verbs, *arguments.split(), folder=tmp_path, environment=environment, name=name)
    else:
        command = [sys.executable, *([str(ROOT / name)] if name == "train.py" else [name, *verbs]), *arguments.split()]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    said = door.replace("-m ultralytics.nn.Addmodules", "vmamba")
    line = next(line for line in run.stderr.splitlines() if line.startswith(f"{said}: "))
    assert line.startswith(f"{said}: environment variable VMAMBA_BACKEND is 'fast', which is no scan backend; choose")
    assert not [*tmp_path.iterdir()]


def test_upstreams_own_errors_stay_as_they_are(tmp_path: Path, environment: dict[str, str]) -> None:
    run = yolo("detect", "predict", "model=nowhere.pt", folder=tmp_path, environment=environment)
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert yolo("version", folder=tmp_path, environment=environment).stdout.strip().startswith("8.")


def test_the_door_imports_no_model_code(environment: dict[str, str]) -> None:
    code = "import sys, ultralytics.cfg.VMamba_door; sys.exit('ultralytics.nn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics import cfg
    from ultralytics.cfg import VMamba_door
    from ultralytics.nn.Addmodules.tools import resume

    monkeypatch.setattr(cfg, "entrypoint", lambda: resume.resumable(None))  # Path(None): TypeError
    monkeypatch.setattr(sys, "argv", ["yolo"])
    with pytest.raises(TypeError):
        VMamba_door.main()


@pytest.mark.parametrize("door", ["yolo", "train.py"])
def test_ctrl_c_says_how_to_go_on(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from runpy import run_path
    from types import SimpleNamespace

    from ultralytics import cfg
    from ultralytics.cfg import VMamba_door
    from ultralytics.nn.Addmodules.hooks import stops
    from ultralytics.nn.Addmodules.tools.key_value import quoted

    last = tmp_path / "细胞 一" / "last.pt"
    last.parent.mkdir()

    def training(epochs: int, resume: bool = False):
        def interrupted(*_):
            stops.remember_training(SimpleNamespace(last=last, resume=resume))
            if epochs:
                last.write_text("x", encoding="utf-8")
            raise KeyboardInterrupt

        return interrupted

    def said(training) -> str:
        if door == "yolo":
            monkeypatch.setattr(cfg, "entrypoint", training)
            monkeypatch.setattr(sys, "argv", ["yolo"])
            assert VMamba_door.main() == 130
        else:
            script = run_path(str(ROOT / "train.py"))
            monkeypatch.setitem(script["main"].__globals__, "complete", training)
            with pytest.raises(SystemExit) as ended:
                script["main"]([])
            assert ended.value.code == 130
        return capsys.readouterr().err

    monkeypatch.setattr(stops, "_training", [])
    command = {"yolo": "yolo train resume model=", "train.py": "python train.py resume="}[door]
    assert said(training(0)) == f"\n{door}: stopped\n"
    assert said(training(1)) == f"\n{door}: stopped; to go on after the last whole epoch: {command}{quoted(last)}\n"
    # now it is there from another training in the same folder
    assert said(training(0)) == f"\n{door}: stopped\n"
    assert quoted(last) in said(training(0, resume=True))
