# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""This repository as it stands: its series on the pinned upstream release, nothing copied from it, and its packages."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from patches import ROOT, matrix
from patches.check import COPY, check, check_copies, check_hooks, tracked_files, without_environments
from patches.hooks import HOOKS
from patches.series import load_series
from patches.tree import COMPILED, build, is_ours
from patches.upstream import fetch, load_pin, split_requires

NAMES = [patch.name for patch in load_series()]
TASKS, TRAINER = "ultralytics/nn/tasks.py", "ultralytics/engine/trainer.py"
EXPORTER = "ultralytics/engine/exporter.py"


@pytest.fixture(scope="module")
def built():
    """Pristine files, patched files and requirements of the pinned release."""
    return build(load_pin(), load_series())


@pytest.fixture(scope="module")
def tracked():
    """Files of this repository."""
    files = tracked_files()
    if files is None:
        pytest.skip("needs a git checkout")
    return files


def test_pictures_of_the_user_are_not_read(tracked):
    folder = ROOT / "somebodys-pictures"
    folder.mkdir()
    try:
        (folder / "1.png").write_bytes(b"")
        assert tracked_files() == tracked
        (ROOT / "tests/not-yet-added.py").touch()
        assert {*tracked_files()} - {*tracked} == {"tests/not-yet-added.py"}
    finally:
        (ROOT / "tests/not-yet-added.py").unlink(missing_ok=True)
        shutil.rmtree(folder)


# The series


def test_everything_checks():
    assert len(check()) == 5


@pytest.mark.parametrize("name", NAMES)
def test_patch_only_inserts_and_says_why(name):
    mail = (ROOT / f"patches/{name}.patch").read_text(encoding="utf-8")
    head, _, body = mail.partition("\ndiff --git ")
    assert head.startswith(f"From {'0' * 40} ")
    assert "\nFrom: VMamba-YOLO <vmamba-yolo@users.noreply.github.com>\n" in head
    assert "\n\nDrop when " in head
    assert not re.search(r"(?m)^-(?!-- a/)", body)
    assert body.count("\n+") - body.count("\n+++ ") <= 6


def test_version_of_upstream_is_not_patched(built):
    base, target, _ = built
    assert target["ultralytics/__init__.py"] == base["ultralytics/__init__.py"]
    assert f'__version__ = "{load_pin().version}"'.encode() in base["ultralytics/__init__.py"]


def test_moving_the_pin_leaves_the_pages_true():
    """The commit that moves it touches patches/ alone: whoever wants the version reads the pin."""
    for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml", "setup.py", "patches/README.md"):
        assert load_pin().version not in (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("row", HOOKS, ids=lambda row: row[3][:40])
def test_hooks_are_missed_where_they_are_absent(built, row):
    assert check_hooks(built[1], (row,)) == []
    assert len(check_hooks(built[0], (row,))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_inserted_line_is_looked_for(name):
    looked_for = {(path, statement(hook)) for path, _, _, hook, _ in HOOKS}
    _, *files = (ROOT / f"patches/{name}.patch").read_text(encoding="utf-8").split("\n+++ b/")
    inserted = [(text.partition("\n")[0], line) for text in files for line in re.findall(r"(?m)^\+ *(\S.*)$", text)]
    assert inserted
    assert {(path, statement(line)) for path, line in inserted} <= looked_for


def statement(line):
    """Return a line of code without its comment, as this Python writes it."""
    return "@" * line.startswith("@") + ast.unparse(ast.parse(line.removeprefix("@")))


def test_hooks_in_the_wrong_place_are_told(built):
    def moved(path, hook, before):
        lines = built[1][path].decode().splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if hook in line)
        line = lines.pop(at)
        to = next(i for i, other in enumerate(lines) if before in other)
        indent = re.match(" *", lines[to])[0]
        return check_hooks({**built[1], path: "".join([*lines[:to], indent + line.lstrip(), *lines[to:]]).encode()})

    assert "after 'c2 = ch[f]'" in moved(TASKS, "c2, args, n = parse_layer(", "m_ = torch.nn.Sequential(*(m(*args)")[0]
    assert "must stand in DetectionModel" in moved(TASKS, "declared_strides(self", "self.model.eval()")[0]
    assert "must stand in yaml_model_load" in moved(TASKS, "@own_scales", "def guess_model_scale(")[0]
    assert "must stand in BaseTrainer" in moved(TRAINER, "@without_ssm_decay", "def __init__(self, cfg")[0]
    assert "must stand in Exporter.__init__" in moved(EXPORTER, "with_refusals(Exporter)", "t = time.time()")[0]
    assert "cannot be read" in check_hooks({**built[1], TASKS: b"def f(:\n"})[0]


def test_the_series_goes_where_a_function_stands_above_the_exporter(built, tmp_path, monkeypatch):
    """In 8.3.114 to 8.3.154 a context manager stands between the exporter's decorator and its class."""
    function = b"@contextmanager\ndef patch(args):\n    yield\n\n\n"
    base = {path: built[0][path] for path in {row[0] for row in HOOKS}}
    other = {**base, EXPORTER: base[EXPORTER].replace(b"class Exporter:", function + b"class Exporter:")}
    assert other != base
    monkeypatch.setattr(matrix, "HOME", tmp_path)
    wrong, rebased, target = matrix.attempt(base, load_series(), other, ("one", "other"))
    assert wrong == ""
    assert [patch.name for patch in rebased] == NAMES
    assert function in target[EXPORTER]


def test_yolo_checks_tells_of_the_scan(tmp_path, environment):
    code = "import sys; sys.argv = ['yolo', 'checks']; from ultralytics.cfg import entrypoint; entrypoint()"
    env = {**environment, "YOLO_CONFIG_DIR": str(tmp_path)}
    where = {"cwd": tmp_path, "env": env, "text": True, "encoding": "utf-8"}
    said = subprocess.run([sys.executable, "-c", code], **where, capture_output=True, check=True).stdout
    assert re.search(r"(?m)^VMamba scan +\w+ on cpu .*vmamba checks$", said), said


# Nothing of upstream's


def test_copies_are_found(built):
    base, _, _ = built
    lines = base[TASKS].split(b"\n")
    long, short = b"\n".join(lines[600 : 620 + 2 * COPY]), b"\n".join(lines[600 : 595 + COPY])
    assert "is upstream's ultralytics/nn/tasks.py" in check_copies({"docs/copy.txt": base[TASKS]}, base)[0]
    assert "ours.py:3: more than 30 lines" in check_copies({"ours.py": b"a = 1\nbb = 2\n" + long}, base)[0]
    assert check_copies({"ours.py": short, "empty.py": b"\n", "picture.jpg": b"\0" * 9000}, base) == []


def test_virtual_environments_are_nobodys_files():
    """Whatever it is called: one beside the tree holds files that are the same as some of upstream's."""
    ours = ["README.md", "envelope/a.py", "patches/pyvenv.cfg.md"]
    assert without_environments([*ours, "env/pyvenv.cfg", "env/lib/a.py", "a/b/pyvenv.cfg", "a/b/c.py"]) == ours
    assert without_environments(ours) == ours


def test_no_file_of_upstream_is_tracked(built, tracked):
    assert [path for path in tracked if path in built[0]] == []
    assert [path for path in tracked if path.startswith("ultralytics/") and not is_ours(path)] == []
    assert check_copies({path: (ROOT / path).read_bytes() for path in tracked}, built[0]) == []


def test_gitignore_and_the_tool_agree(built, tracked):
    ours = ["nn/Addmodules/new/layer.py", "nn/Addmodules/a.cpp", "cfg/models/v9/VMamba-x.yaml", "cfg/VMamba.yaml"]
    ours += ["VMamba.md", "cfg/models/VMamba/x.yaml", "cfg/VMamba-a/b/c.yaml"]
    others = ["nn/tasks2.py", "nn/Addmodules.py", "cfg/models/Other.yaml", "cfg/a-VMamba.yaml"]
    products = ["nn/Addmodules/a.pyc", *(f"nn/Addmodules/a{suffix}" for suffix in COMPILED)]
    ours, others, products = ([f"ultralytics/{path}" for path in paths] for paths in (ours, others, products))
    others += built[0]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    paths = "\n".join([*ours, *others, *products])
    said = subprocess.run(command, cwd=ROOT, input=paths, capture_output=True, text=True, check=False)
    assert said.stdout.split() == [*others, *products]
    assert [path for path in [*ours, *others] if is_ours(path)] == ours


# Windows


def test_paths_leave_room_on_windows(built, tracked):
    """Windows allows 260 characters; the folder of a checkout or an environment comes before ours."""
    assert max(map(len, [*built[1], *tracked])) <= 110


# Packages


def test_requirements_of_the_pinned_wheel_are_understood(built):
    plain, extras = split_requires(built[2])
    assert any(line.startswith("torch>=") for line in plain)
    assert not any("extra" in line for line in plain)
    assert {"export", "export-base", "solutions", "logging"} <= extras.keys()
    assert 'onnx>=1.12.0; platform_system != "Darwin"' in extras["export-base"]
    wanted = {
        match[1] for lines in extras.values() for line in lines if (match := re.match(r"ultralytics\[(.+?)]", line))
    }
    assert wanted <= extras.keys()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, tracked):
    """A copy of this repository's files, as a fresh checkout has them."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in tracked:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path)
    upstream = folder.parent / "upstream"
    upstream.mkdir()
    (upstream / load_pin().wheel).write_bytes(fetch(load_pin()))
    return folder, {**os.environ, "VMAMBA_UPSTREAM_DIR": str(upstream)}


def build_wheel(checkout, out: Path, **env: str) -> tuple[Path, str]:
    """Build a wheel from the checkout with the tools at hand, and return it with what was said."""
    folder, base_env = checkout
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        out,
        ".",
    ]
    done = subprocess.run(command, cwd=folder, env={**base_env, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = out.glob("*.whl")
    return wheel, done.stdout + done.stderr


def test_wheel_without_compiler_is_whole_and_runs(checkout, tmp_path, built, tracked):
    mine = [checkout[0] / "ultralytics" / name for name in ("private/__init__.py", "private/key.py", "nn/mine.py")]
    for path in mine:  # a user's own files are nobody else's
        path.parent.mkdir(exist_ok=True)
        path.touch()
    wheel, said = build_wheel(checkout, tmp_path, CC="no-compiler", CXX="no-compiler", VMAMBA_COMPILER="system")
    for path in mine:
        path.unlink()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = set(archive.namelist())
    info = f"ultralytics-{load_pin().fork_version}.dist-info"
    ours = {path for path in tracked if is_ours(path)}
    found = {name for name in names if not name.startswith(info) and not re.search(r"_cpu\.(so|dll|dylib)$", name)}
    assert found == built[1].keys() | ours
    for path, data in built[1].items():
        assert (tmp_path / "site" / path).read_bytes() == data
    if os.name != "nt" and any(path.endswith(".cpp") for path in ours):
        assert "The C++ selective scan was not compiled" in said
        assert "installation goes on" in said

    metadata = (tmp_path / "site" / info / "METADATA").read_text(encoding="utf-8")
    for line in (f"Version: {load_pin().fork_version}", "Requires-Python: >=3.10", "Requires-Dist: einops>=0.6.0"):
        assert f"\n{line}\n" in metadata
    for extra in ("cuda", "export", "deploy", "test", "dev"):
        assert f"\nProvides-Extra: {extra}\n" in metadata
    assert '\nRequires-Dist: ultralytics[export-base]; extra == "export"\n' in metadata  # upstream's own stays
    scripts = (tmp_path / "site" / info / "entry_points.txt").read_text(encoding="utf-8")
    assert "yolo = ultralytics.cfg.VMamba_door:main" in scripts
    assert "ultralytics = ultralytics.cfg.VMamba_door:main" in scripts

    code = (
        "import sys, ultralytics; from importlib.metadata import version; from ultralytics.nn import tasks\n"
        "print(ultralytics.__file__, version('ultralytics'), tasks.MambaLayer.__module__)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PATH": "", "YOLO_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, version, module = done.stdout.split()[-3:]
    assert Path(file) == tmp_path / "site/ultralytics/__init__.py"
    assert version == load_pin().fork_version
    assert module.startswith("ultralytics.nn.Addmodules")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_wheel_has_the_compiled_scan_and_nothing_stale(checkout, tmp_path):
    stale = checkout[0] / "build/lib/ultralytics/stale.py"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    for path in (checkout[0] / "build").glob("lib*"):
        (path / "ultralytics").mkdir(exist_ok=True)
        (path / "ultralytics/stale.py").touch()
    wheel, said = build_wheel(checkout, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "was not compiled" not in said
    assert any(
        re.fullmatch(r"ultralytics/nn/Addmodules/selective_scan/backends/_cpu\.(so|dll|dylib)", name) for name in names
    )
    assert not any("stale" in name for name in names)


def test_source_archive_holds_this_fork_alone(checkout, built, tracked, tmp_path):
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    folder, env = checkout
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=folder, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path)
    (root,) = (path for path in tmp_path.iterdir() if path.is_dir())
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert not names & built[0].keys()
    needed = {path for path in tracked if is_ours(path) or path.startswith("patches/")}
    assert needed | {"setup.py", "pyproject.toml"} <= names
