# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba`: its verbs, its settings in the manner of `yolo`, and one line for a command line that is wrong."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ultralytics.nn.Addmodules.tools import verbs as command
from ultralytics.nn.Addmodules.tools.key_value import (
    Option,
    UsageError,
    Verb,
    choice,
    count,
    flag,
    near,
    parse,
    quoted,
    several,
    usage,
)

ROOT = Path(__file__).resolve().parents[1]
VERB = Verb(
    "draw",
    "draws",
    "here:run",
    (
        Option("models", several, ..., "model files"),
        Option("size", count, 32, "side"),
        Option("how", choice("mean", "max"), "mean", "channels"),
        Option("exist_ok", flag, False, "replace"),
        Option("json", str, None, "file", alone="-"),
    ),
)


def verbs(kinds: tuple[Verb, ...], where: str = "") -> list[tuple[str, Verb]]:
    """Return every verb that runs, with the words that call it."""
    found = []
    for kind in kinds:
        name = f"{where} {kind.name}".strip()
        found += verbs(kind.kinds, name) if kind.kinds else [(name, kind)]
    return found


def test_values_are_read() -> None:
    args = ["--models=a.pt, b c.yaml", "size", "=", "64", "--exist-ok", "json"]
    expected = {"models": ["a.pt", "b c.yaml"], "size": 64, "how": "mean", "exist_ok": True, "json": "-"}
    assert parse(VERB, "draw", args) == SimpleNamespace(**expected)
    assert parse(VERB, "draw", ["models=['a, b.pt', 'c.pt']", "exist_ok=false"]).models == ["a, b.pt", "c.pt"]
    assert parse(VERB, "draw", ["models=用户/模型.pt"]).models == ["用户/模型.pt"]


PATHS = [
    "/a b/$HOME/x.pt",
    "/a/`id`/x.pt",
    '/a/"b/x.pt',
    "/a/(1)/x&y",
    "x'y",
    "",
    "a\\b",
    "~/x",
    "*",
    "/用户/模型.pt",
    "C:/a.pt",
]


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("path", PATHS)
def test_a_quoted_path_is_what_the_shell_reads(path: str) -> None:
    said = subprocess.run(["sh", "-c", f"printf %s {quoted(path)}"], capture_output=True, text=True, check=True).stdout
    assert said == path
    assert runpy.run_path(str(ROOT / "train.py"))["quoted"](path) == quoted(path)


def test_paths_are_quoted_on_windows_and_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quoted("/用户/模型_1.pt") == "/用户/模型_1.pt"
    with monkeypatch.context() as m:
        m.setattr(os, "name", "nt")
        found = [quoted(path) for path in (r"C:\a\x.pt", r"C:\a b\x.pt", "a'b", "")]
    assert found == [r"C:\a\x.pt", r'"C:\a b\x.pt"', '"a\'b"', '""']


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "draw: models= must be given; see `draw help`"),
        (["models=a", "sise=3"], "draw: there is no setting 'sise'; did you mean 'size'?"),
        (
            ["models=a", "zzz=3"],
            "draw: there is no setting 'zzz'; it takes ['models', 'size', 'how', 'exist_ok', 'json']",
        ),
        (["models=a", "models=b"], "draw: 'models' is given twice"),
        (["models"], "draw: 'models' has no value; write models=VALUE (model files)"),
        (["models=a,,b"], "draw: models must be names with commas between them, got 'a,,b'"),
        (["models="], "draw: models must be names with commas between them, got ''"),
        (["models=a", "size=0"], "draw: size must be a positive integer, got '0'"),
        (["models=a", "how=meen"], "draw: how must be one of mean, max, got 'meen'"),
        (["models=a", "exist_ok=maybe"], "draw: exist_ok must be True or False, got 'maybe'"),
    ],
)
def test_wrong_settings_are_named_in_one_line(args: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(VERB, "draw", args)
    assert str(error.value) == message


def test_help_tells_defaults_and_what_must_be_given() -> None:
    text = usage(VERB, "vmamba draw")
    assert "model files (must be given)" in text
    assert "side (default: 32)" in text
    assert near("modles", ["models"]) == "; did you mean 'models'?"


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 0, "vmamba checks "),
        (["help"], 0, "vmamba visualize "),
        (["--help"], 0, "vmamba visualize "),
        (["help", "checks"], 0, "time the backends"),
        (["checks", "help"], 0, "time the backends"),
        (["visualize"], 0, "vmamba visualize erf "),
        (["visualize", "erf", "-h"], 0, "models=   "),
        (["chekcs"], 2, "vmamba: there is no 'chekcs'; did you mean 'checks'?"),
        (["train"], 2, "vmamba: there is no 'train'; it has "),
        (["checks", "jsn"], 2, "vmamba checks: there is no setting 'jsn'; did you mean 'json'?"),
        (["checks", "json=/no/such/folder/x.json", "speed=False"], 1, "vmamba checks: "),
    ],
)
def test_command_lines(args: list[str], status: int, said: str, capsys: pytest.CaptureFixture) -> None:
    assert command.main(args) == status
    out, err = capsys.readouterr()
    assert said in (err if status else out)
    assert not status or "Traceback" not in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("words", "verb"), verbs(command.VERBS))
def test_every_verb_has_its_function_and_a_page(words: str, verb: Verb) -> None:
    module, function = verb.run.split(":")
    assert callable(getattr(importlib.import_module(f"ultralytics.nn.Addmodules.tools.{module}"), function))
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert f"vmamba {words}" in pages


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from ultralytics.nn.Addmodules.tools import checks

    def stop(args: SimpleNamespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "run", stop)
    assert command.main(["checks"]) == 130
    assert capsys.readouterr().err == "vmamba checks: stopped\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of Windows do not tell that nobody reads them")
def test_output_that_nobody_reads_to_its_end() -> None:
    read, write = os.pipe()
    os.close(read)
    run = [sys.executable, "-m", "ultralytics.nn.Addmodules", "checks", "speed=False"]
    done = subprocess.run(run, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_script_and_long_form_are_the_same_command() -> None:
    line = 'vmamba = "ultralytics.nn.Addmodules.tools.verbs:main"'  # which calls the long form's function
    assert line in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    run = [sys.executable, "-m", "ultralytics.nn.Addmodules", "chekcs"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "vmamba: there is no 'chekcs'; did you mean 'checks'?\n")


def test_console_that_lacks_a_letter(environment) -> None:
    """A pipe on Windows has the code page of the system: a letter of another language must not end a command."""
    command = [sys.executable, "-m", "ultralytics.nn.Addmodules", "checks", "文件=1"]
    done = subprocess.run(command, env={**environment, "PYTHONIOENCODING": "cp1252"}, capture_output=True, cwd=ROOT)
    assert done.returncode == 2
    assert b"??" in done.stderr
    assert b"Traceback" not in done.stderr
