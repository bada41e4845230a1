# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Broken model files and checkpoints of many kinds: an error that is said on purpose, or a model that is right."""

from __future__ import annotations

import copy
import io
import os
import random
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data import FILES
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.Addmodules.hooks import yaml_lint
from ultralytics.nn.Addmodules.hooks.failures import is_ours, sentence
from ultralytics.utils import checks

EXAMPLES = int(os.environ.get("VMAMBA_FUZZ", "20"))  # of each test: VMAMBA_FUZZ=1000 pytest tests/test_fuzz.py
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
REPEATS = 1  # of a row's entries
TEXTS = {name: file.read_text(encoding="utf-8") for name, file in FILES.items()}
# What is no value of a row, or hardly: beyond every bound, of every type
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([-(10**6), 10**5, 0.5, -0.5, 1e30, float("nan"), float("inf"), "", "x", "None", "nc", "nearest"]),
    st.sampled_from([[], [-1], [-1, 4], [1, 2, 3], {}, {"a": 1}, [None], ["SS2D", {"expand": 1}]]),
    st.sampled_from(
        ["MambaLayer", "SS2D", "C2fSS2D", "VSSBlock", "C2fVSS", "Graft", "Conv", "Concat", "Detect", "nn.SS2D"]
    ),
)


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be installed or downloaded."""
    monkeypatch.setattr(checks, "AUTOINSTALL", False)
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setattr("subprocess.check_output", None)


def hold(error: Exception, case: object) -> None:
    """Fail unless an error is a sentence of ours, or a message of upstream's or PyTorch's."""
    assert not is_ours(error) or sentence(error) is not None, f"{case}: {error!r}"


@st.composite
def model_files(draw: st.DrawFn) -> tuple[str, dict, str]:
    """Return a model file of ours with one to three edits, its name, and what was edited."""
    name = draw(st.sampled_from(sorted(FILES)))
    d, said = yaml.safe_load(TEXTS[name]), []
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(["backbone", "head", "head", "top"]))
        if part == "top":
            key = draw(st.sampled_from([*d, "strides", "init_std", "init_dfl", "init_dense", "reg_max", "channels"]))
            d[key] = copy.deepcopy(draw(ODD))
            said.append(f"{key}={d[key]!r}")
            continue
        rows = d.get(part)
        if not isinstance(rows, list) or not rows:
            continue
        i = draw(st.integers(0, len(rows) - 1))
        edit = draw(st.sampled_from(["drop", "twice", "swap", "entry", "argument", "argument", "more", "fewer"]))
        row = rows[i]
        if edit == "drop":
            del rows[i]
        elif edit == "twice":
            rows.insert(i, copy.deepcopy(row))
        elif edit == "swap":
            j = draw(st.integers(0, len(rows) - 1))
            rows[i], rows[j] = rows[j], rows[i]
        elif isinstance(row, list) and row:
            if edit == "entry":
                at, value = draw(st.integers(0, len(row) - 1)), copy.deepcopy(draw(ODD))
                if at == REPEATS and isinstance(value, (int, float)) and value > 30:
                    value = 30  # upstream builds as many layers as a file asks for, until memory ends
                row[at] = value
            elif isinstance(row[-1], list):
                args = row[-1]
                if edit == "argument" and args:
                    args[draw(st.integers(0, len(args) - 1))] = copy.deepcopy(draw(ODD))
                elif edit == "more":
                    args.append(copy.deepcopy(draw(ODD)))
                elif edit == "fewer" and args:
                    args.pop()
        said.append(f"{part}[{i}] {edit}: {rows[min(i, len(rows) - 1)] if rows else rows}")
    return name, d, "; ".join(said)


@QUICK
@given(case=model_files())
def test_edited_model_files(case: tuple[str, dict, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    name, d, said = case
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    scales = d.get("scales")
    if isinstance(scales, dict) and "n" in scales:
        d["scales"] = {"n": scales["n"]}  # small
    file.write_text(yaml.safe_dump(d, sort_keys=False), encoding="utf-8")
    yaml_lint._said.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = YOLO(
                file, task=tasks.guess_model_task(d) if isinstance(d.get("head"), list) and d["head"] else None
            )
    except Exception as e:
        hold(e, f"{name}: {said}")
        return
    built_right(model.model, f"{name}: {said}")


def built_right(model: torch.nn.Module, said: str) -> None:
    """Fail unless the strides of a model that was built without a warning are those of its maps."""
    head = model.model[-1]
    if not hasattr(head, "nl") or isinstance(head, (tasks.SemanticSegment, tasks.Depth)) or yaml_lint._said:
        return  # heads of pixels name the stride of the smallest map alone
    size, seen = 64 * max(1, int(max(model.stride)) // 64), []
    hook = head.register_forward_pre_hook(lambda m, x: seen.extend(t.shape[2] for t in x[0]))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, model.yaml.get("channels", 3), size, size))
    except Exception as e:  # declared strides need no forward pass, so the first one is that of the user
        hold(e, said)
        return
    finally:
        hook.remove()
    assert [size / s for s in seen] == [float(s) for s in model.stride], said


@pytest.mark.parametrize("part", ["backbone", "head"])
def test_a_number_for_rows(part: str, tmp_path: Path) -> None:
    """Found here: the search for grafts came before the check of the rows."""
    d = {**yaml.safe_load(TEXTS["VMamba-yolov8"]), part: 1e30}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(d), encoding="utf-8")
    with pytest.raises(ValueError, match=f"mine.yaml is no model YAML: it has no list of rows called '{part}'"):
        YOLO(tmp_path / "mine.yaml")


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    buffer = io.BytesIO()
    model = YOLO("VMamba-yolon.yaml").model.half()
    torch.save({"epoch": -1, "model": model, "ema": None, "train_args": {}}, buffer)
    return buffer.getvalue()


@QUICK
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_checkpoints(share: float, checkpoint: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "cut.pt"
    file.write_bytes(checkpoint[: int(len(checkpoint) * share)])
    with pytest.raises(Exception) as caught:
        tasks.torch_safe_load(file, safe_only=True)
    hold(caught.value, share)


@cache
def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return two models of the same file and of other weights."""
    return YOLO("VMamba-yolon.yaml").model, YOLO("VMamba-yolon.yaml").model


@QUICK
@given(data=st.data())
def test_tensors_of_other_names_and_shapes(data: st.DataObject) -> None:
    """Loaded into a model of ours, they arrive where name and shape fit, and the log's count says how many."""
    source, target = map(copy.deepcopy, pair())
    state = dict(source.state_dict())
    names = sorted(state)
    changed = set()
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(names))
        owner, _, leaf = name.rpartition(".")
        module = source.get_submodule(owner)
        kind = data.draw(st.sampled_from(["wider", "scalar", "gone", "renamed", "half"]))
        tensor = getattr(module, leaf, None)
        if tensor is None:
            continue
        table = module._parameters if leaf in module._parameters else module._buffers
        wrap = torch.nn.Parameter if table is module._parameters and tensor.is_floating_point() else torch.Tensor.detach
        if kind == "gone":
            del table[leaf]
        elif kind == "renamed":
            table[f"{leaf}_2"] = table.pop(leaf)
        elif kind == "half" and tensor.is_floating_point():
            table[leaf] = wrap(tensor.detach().half())
            continue
        else:
            shape = (*tensor.shape, 2) if kind == "wider" else ()
            table[leaf] = wrap(torch.zeros(shape, dtype=tensor.dtype))
        changed.add(name)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    try:
        target.load(source, verbose=True)
    except Exception as e:
        hold(e, changed)
        return
    after, given_ = target.state_dict(), source.state_dict()
    for name, tensor in after.items():
        fits = name in given_ and given_[name].shape == tensor.shape
        want = given_[name].to(tensor.dtype) if fits else before[name]
        assert torch.equal(tensor, want), (name, changed)


def test_random_bytes_are_no_model(tmp_path: Path) -> None:
    g = random.Random(0)
    for length in (0, 1, 2, 100, 5000):
        file = tmp_path / "noise.pt"
        file.write_bytes(bytes(g.randrange(256) for _ in range(length)))
        with pytest.raises(Exception) as caught:
            tasks.torch_safe_load(file, safe_only=True)
        hold(caught.value, length)
