# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Which file formats take a model with selective scans: what runs, what converts, and what is refused and why."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from torch import nn

from ..layers.state_space import StateSpace
from ..selective_scan.export import MAX_STATE

__all__ = ("FORMATS", "Format", "Refusal", "canonical", "refuse_format")

RUNS, CONVERTS, REFUSED = "runs", "converts", "refused"


class Refusal(ValueError):
    """An export that is known to fail; `yolo` prints its text alone."""


class Format(NamedTuple):
    """What is known of a format.

    Attributes:
        state (str): RUNS where files were run and compared, CONVERTS where they were made only, or REFUSED.
        why (str): Of a refused one, what stands against it; the end of a sentence that begins with the format.
        loops (bool): It takes a loop with a state, so any state size and free sizes.
        packages (dict[str, str]): Modules that the converter needs, and what pip calls them.
    """

    state: str
    why: str = ""
    loops: bool = False
    packages: dict[str, str] = {}


EIGHT_BITS = "computes in 8 bits, and the state of a scan adds up thousands of steps"
VENDOR = "needs a converter of the chip's maker, with which no scan was tried"
ONNX = {"onnx": "onnx", "onnxslim": "onnxslim"}

FORMATS = {
    "torchscript": Format(RUNS, loops=True),
    "onnx": Format(RUNS, loops=True, packages={**ONNX, "onnxruntime": "onnxruntime"}),
    "openvino": Format(RUNS, loops=True, packages={"openvino": "openvino"}),
    "ncnn": Format(RUNS, packages={"ncnn": "ncnn", "pnnx": "pnnx==20260526"}),
    "mnn": Format(RUNS, packages={**ONNX, "MNN": "MNN"}),
    "engine": Format(CONVERTS, loops=True, packages={**ONNX, "tensorrt": "tensorrt"}),
    "coreml": Format(CONVERTS, packages={"coremltools": "coremltools"}),
    "litert": Format(RUNS, packages={"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"}),
    "executorch": Format(RUNS, packages={"executorch": "executorch"}),
    "paddle": Format(REFUSED, "goes through x2paddle, which stops at the graph of a scan"),
    "coreai": Format(REFUSED, "was not tried with a scan; format=coreml is"),
    "saved_model": Format(REFUSED, "goes through onnx2tf, which did not end within four minutes on such a graph"),
    "pb": Format(REFUSED, "goes through onnx2tf, which did not end within four minutes on such a graph"),
    "edgetpu": Format(REFUSED, EIGHT_BITS),
    "imx": Format(REFUSED, EIGHT_BITS),
    "axelera": Format(REFUSED, EIGHT_BITS),
    "deepx": Format(REFUSED, EIGHT_BITS),
    "hailo": Format(REFUSED, EIGHT_BITS),
    "qnn": Format(REFUSED, EIGHT_BITS),
    "xilinx": Format(REFUSED, EIGHT_BITS),
    "rknn": Format(REFUSED, VENDOR),
    "ascend": Format(REFUSED, VENDOR),
}
ALIASES = {
    **dict.fromkeys(("tensorrt", "trt"), "engine"),
    **dict.fromkeys(("mlmodel", "mlpackage", "mlprogram", "apple", "ios"), "coreml"),
    **dict.fromkeys(("huawei", "cann", "om"), "ascend"),
    **dict.fromkeys(("vitis", "vitisai", "versal"), "xilinx"),
    **dict.fromkeys(("tflite", "tfjs"), "litert"),
}
INSTEAD = "Export with format=onnx, openvino or torchscript instead"


def canonical(form: object) -> str:
    """Return Ultralytics' name of a format for one of its aliases."""
    name = str(form).lower()
    return ALIASES.get(name, name)


def largest_state(model: nn.Module) -> int:
    """Return the largest d_state of a model's scans, or 0 if it has none."""
    return max((getattr(m, "d_state", 0) for m in model.modules() if isinstance(m, StateSpace)), default=0)


def refuse_format(form: str, model: nn.Module, dynamic: bool = False, batch: int = 1) -> None:
    """Raise where a format cannot take a model with scans; formats that Ultralytics does not know are left to it.

    Args:
        form (str): Name of the format, or an alias.
        model (nn.Module): The model.
        dynamic (bool): Whether sizes are to be free.
        batch (int): Pictures at once.

    Raises:
        Refusal: With the reason and what to do.
    """
    from ultralytics.utils.checks import check_version

    name, state = canonical(form), largest_state(model)
    of = FORMATS.get(name)
    if of is None or state == 0:
        return
    if of.state == REFUSED:
        more = ", ncnn or mnn" if state <= MAX_STATE else ""
        instead = INSTEAD if not more else f"Export with format=onnx, openvino, torchscript{more} instead"
        raise Refusal(f"format='{name}' does not take this model: it {of.why}. {instead}.")
    if not of.loops and state > MAX_STATE:
        raise Refusal(
            f"format='{name}' cannot hold the scans of this model: it has no loop with a state, and without a loop "
            f"scans are written for d_state {MAX_STATE} or less, not {state}. {INSTEAD}, or train a model with a small "
            f"state, such as VMamba-yolo (d_state 1)."
        )
    if not of.loops and dynamic:
        raise Refusal(
            f"format='{name}' takes scans of one picture size only, because it has no loop with a state: "
            f"leave out dynamic=True and give imgsz."
        )
    if name == "ncnn" and batch > 1:  # its runtime dies of a second one, of stock models too
        raise Refusal(f"format='ncnn' takes one picture at a time, not batch={batch}: leave out batch.")
    if name == "coreml" and not check_version(np.__version__, "<2.3"):
        raise Refusal(
            f"format='coreml' needs NumPy before 2.3, because coremltools 9 stops with a later one such as the "
            f"{np.__version__} here: pip install 'numpy<2.3'"
        )
    missing = [pip for module, pip in of.packages.items() if find_spec(module) is None]
    if missing and not installs():
        several = len(missing) > 1
        raise Refusal(
            f"format='{name}' needs {'packages that are' if several else 'a package that is'} not installed: "
            f"pip install {' '.join(missing)}"
        )


def installs() -> bool:
    """Return whether upstream would install missing packages by itself."""
    from ultralytics.utils import AUTOINSTALL, ONLINE

    return AUTOINSTALL and ONLINE
