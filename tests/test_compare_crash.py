# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba compare` after a kill at a bad moment, a loss of power, and among other people's files."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.compare_cases import command, fail, made
from ultralytics import YOLO
from ultralytics.nn.Addmodules.tools import verbs as cli
from ultralytics.nn.Addmodules.tools.compare import Plan, schedule, start, train, verb
from ultralytics.nn.Addmodules.tools.compare.remarks import remarks
from ultralytics.nn.Addmodules.tools.compare.results import PROCEDURE, Comparison, Run, read_json, write_json
from ultralytics.nn.Addmodules.tools.files import in_one_step

# A run that was killed ------------------------------------------------------------------------------------------------


def killed(folder: Path, rows: int, kept: int) -> train.Training:
    """Return a training of two epochs that was killed with so many epochs written down and weights of another one."""
    (folder / "weights").mkdir(parents=True)
    with (folder / train.EPOCHS).open("w", encoding="utf-8") as out:
        for epoch in range(1, rows + 1):
            out.write(json.dumps({"epoch": epoch, "last": epoch == 2}) + "\n")
    for name in ("last.pt", "best.pt"):
        torch.save({"epoch": rows - 1}, folder / "weights" / name)
        torch.save({"epoch": kept - 1}, folder / "weights" / f"kept-{name}")
    return train.Training(folder, {"train": {"epochs": 2}, "start": "start.pt", "seed": 0, "threads": 1})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Return what upstream is told to train, which it does not."""
    asked: list[dict] = []
    model = SimpleNamespace(add_callback=lambda *_: None, train=lambda **given: asked.append(given))
    monkeypatch.setattr("ultralytics.YOLO", lambda file: model)
    return asked


def test_a_run_killed_before_its_last_weights_were_kept_trains_that_epoch_again(
    tmp_path: Path, trained: list[dict]
) -> None:
    killed(tmp_path, rows=2, kept=1).run()
    assert [Path(given["resume"]).name for given in trained] == ["kept-last.pt"]


def test_a_run_killed_after_its_last_weights_were_kept_trains_no_more(tmp_path: Path, trained: list[dict]) -> None:
    killed(tmp_path, rows=2, kept=2).run()
    assert trained == []


def test_a_run_whose_epochs_a_loss_of_power_took_begins_anew(tmp_path: Path, trained: list[dict]) -> None:
    killed(tmp_path, rows=1, kept=2).run()
    assert [given.get("resume") for given in trained] == [None]
    assert not (tmp_path / train.EPOCHS).exists()


def test_a_line_after_one_that_was_cut_short_is_whole(tmp_path: Path) -> None:
    file = tmp_path / train.EPOCHS
    train.append(file, '{"epoch": 1}')
    with file.open("a", encoding="utf-8") as out:
        out.write('{"epoch": 2, "mAP')
    for n in (2, 3):
        train.append(file, f'{{"epoch": {n}}}')
    assert [row["epoch"] for row in Run(tmp_path, "", 0).epochs] == [1, 2, 3]


def test_a_scan_that_changed_in_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = SimpleNamespace(**dict.fromkeys(train.EFFECTIVE, 1))
    trainer = SimpleNamespace(args=args, amp=False, device=torch.device("cpu"))
    run = train.Training(tmp_path, {"train": {}, "seed": 0})
    for name in ("cpu", "cpu", "chunked", "chunked", "chunked"):
        monkeypatch.setattr(train, "scan_backend", lambda device, name=name: name)
        run.note(trainer)
    assert read_json(tmp_path / train.KNOWN)["scan"] == "cpu, then chunked"


def test_last_weights_are_kept_after_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training goes on from last.pt, which says how good the best epoch was: that one must not be older."""
    kept: list[str] = []
    monkeypatch.setattr(train, "copy", lambda source, target: kept.append(target.name))
    monkeypatch.setattr(train, "figures", lambda metrics: {})
    run = killed(tmp_path, rows=1, kept=1)
    run.trained, run.clock = True, {"wall": 0.0, "cpu": 0.0}
    run.norms = SimpleNamespace(take=dict)
    monkeypatch.setattr(run, "note", lambda trainer: None)
    one = torch.ones(1)
    validator = SimpleNamespace(metrics=None)
    run.on_fit_epoch_end(
        SimpleNamespace(epoch=1, loss=one, tloss={"box": one}, metrics={}, validator=validator, stop=True)
    )
    assert kept == ["kept-best.pt", "kept-last.pt"]


def test_a_run_can_go_on_until_its_result_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path, rows=2, kept=2)
    write_json(tmp_path / "run.json", {"train": {"epochs": 2}, "seed": 0, "threads": 1})
    monkeypatch.setattr(train.Training, "run", lambda self: None)

    def no_space(folder: Path, job: dict) -> dict:
        raise OSError(28, "No space left on device")

    kept = [tmp_path / "weights" / name for name in train.KEPT]
    monkeypatch.setattr(train, "evaluate", no_space)
    assert train.main(tmp_path) == 1
    assert all(file.exists() for file in kept)
    monkeypatch.setattr(train, "evaluate", lambda folder, job: {"report": {}})
    assert train.main(tmp_path) == 0
    assert not any(file.exists() for file in kept)


def test_a_stray_file_does_not_fail_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path, rows=2, kept=2)

    def val(**given) -> SimpleNamespace:
        (tmp_path / "report").mkdir()
        (tmp_path / "report/.DS_Store").write_bytes(b"of a file manager")
        return SimpleNamespace(top1=0.5, top5=0.9)

    monkeypatch.setattr("ultralytics.YOLO", lambda file: SimpleNamespace(val=val))
    monkeypatch.setattr("ultralytics.utils.torch_utils.strip_optimizer", lambda file: None)
    job = {"train": {}, "report": {"on": "val", "checkpoint": "last"}}
    assert train.evaluate(tmp_path, job)["report"] == {"top-1": 0.5, "top-5": 0.9}
    assert not (tmp_path / "report").exists()


# Files that were cut short, and other people's ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", '{"status": "do'])
def test_a_file_that_a_loss_of_power_cut_short_counts_as_none_and_is_told(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ultralytics"), "propagate", True)
    comparison = made(tmp_path / "compare")
    for file in ("models.json", "speed.json", "runs/stock-seed0/result.json", "runs/stock-seed0/run.json"):
        (comparison.folder / file).write_text(text, encoding="utf-8")
    assert (comparison.models, comparison.speed, comparison.runs[0].result) == ({}, {}, {})
    assert not comparison.runs[0].over
    assert "models.json' was cut short" in caplog.text
    (comparison.folder / "settings.json").write_text(text, encoding="utf-8")
    job = verb.Job(Plan({}, "data.yaml", project=str(tmp_path)), print)
    assert job.place({"data": "data.yaml"}) == (tmp_path / "compare-2", False)


@pytest.mark.parametrize("text", ["// of an editor\n{}", "[1, 2]", '{"data": "data.yaml"}'])
def test_settings_of_other_programs_are_no_comparisons(text: str, tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare")
    (tmp_path / ".vscode").mkdir()
    (tmp_path / ".vscode/settings.json").write_text(text, encoding="utf-8")
    assert not any(".vscode" in remark for remark in remarks(comparison))


def test_the_order_of_models_tells_comparisons_apart(tmp_path: Path) -> None:
    settings = made(tmp_path / "compare", procedure=PROCEDURE).settings
    job = verb.Job(Plan({}, "data.yaml", project=str(tmp_path)), print)
    assert job.place(settings) == (tmp_path / "compare", True)
    turned = {**settings, "models": dict(reversed(settings["models"].items()))}
    assert turned == settings
    assert job.place(turned) == (tmp_path / "compare-2", False)


def test_what_an_older_version_began_is_not_gone_on_with(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare")
    old = {**comparison.settings, "device": "cuda"}
    now = {**comparison.settings, "device": "0", "procedure": PROCEDURE, "distill_model_digest": "1"}
    assert verb.differs(comparison.folder, old, now) == ""  # it is over
    assert verb.differs(comparison.folder, old, now | {"seeds": [9]}).startswith("seeds is")
    (comparison.runs[0].folder / "result.json").unlink()
    assert verb.differs(comparison.folder, old, now) == verb.OLDER
    assert verb.differs(comparison.folder, now, now) == ""


def test_a_folder_that_cannot_be_locked_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows")

    def flock(*_) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("ultralytics.utils.LOGGER.propagate", True)
    with schedule.locked(tmp_path):
        pass
    assert "cannot be locked (No locks available)" in caplog.text


def test_a_model_without_a_time_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = made(tmp_path / "compare")
    asked: list[Comparison] = []
    job = verb.Job(Plan({}, "data.yaml"), lambda line: None)
    monkeypatch.setattr(job, "measure", asked.append)
    job.finish(comparison)
    assert not asked
    speed = comparison.speed
    write_json(comparison.folder / "speed.json", {**speed, "models": {"stock": speed["models"]["stock"]}})
    job.finish(comparison)
    assert asked == [comparison]


def test_a_run_that_failed_early_does_not_know_its_scan(tmp_path: Path) -> None:
    comparison = made(tmp_path / "compare")
    fail(comparison, "stock", 0)
    assert not any("scan is" in remark for remark in remarks(comparison))


# Weights for all models -----------------------------------------------------------------------------------------------


def test_weights_for_all_are_part_of_what_was_compared(tmp_path: Path) -> None:
    file = tmp_path / "start.pt"
    assert start.check_weights({}) == start.check_weights({"pretrained": False}) == ""
    digests = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        YOLO("yolov8n.yaml").save(file)
        digests |= {start.check_weights({"pretrained": given}) for given in (file, str(file))}
    assert len(digests) == 2
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        start.check_weights({"pretrained": file})


def test_a_teacher_is_part_of_what_was_compared(tmp_path: Path) -> None:
    digests = set()
    for n in range(2):
        start.save(YOLO("yolov8n.yaml").model, tmp_path / "teacher.pt")
        digests.add(start.check_weights({"distill_model": tmp_path / "teacher.pt"}, "distill_model"))
        assert len(digests) == n + 1
    with pytest.raises(FileNotFoundError, match="distill_model=.*none.pt: there is no such file"):
        start.check_weights({"distill_model": str(tmp_path / "none.pt")}, "distill_model")


def test_weights_that_are_not_there_are_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from tests.data import make_data

    data = make_data(tmp_path / "data", "detect")
    assert cli.main(command(data, tmp_path / "runs", pretrained="nothere.pt")) == 1
    assert "pretrained=nothere.pt: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_file_of_an_interrupted_write_is_not_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "a.json.part").write_text("{", encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert Run(tmp_path, "a", 0).result == {}


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    (tmp_path / "a.txt.part").write_text("of one who was cut short", encoding="utf-8")

    def write(text: str | None) -> None:
        with in_one_step(file) as part:
            if text:
                part.write_text(text, encoding="utf-8")
                raise KeyboardInterrupt

    with pytest.raises(FileNotFoundError):
        write(None)  # the leftover must not become the file
    with pytest.raises(KeyboardInterrupt):
        write("half")
    assert file.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
