# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""GPU backend in Triton, for NVIDIA and AMD; see docs/design/gpu-kernel.md.

kernels.py and block_kernels.py are imported only where a GPU is. With TRITON_INTERPRET=1 and triton imported before,
the backend takes CPU tensors instead, for tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...contract import Backend, Block, Problem, Scan
from . import block, load, scan
from .launch import far_apart, guard

__all__ = ("Gpu",)

MIN_CAPABILITY = (7, 5)


class Gpu(Backend):
    """Kernels for the scan and the block.

    Attributes:
        devices (dict[int, str]): By index, why no kernel runs there; "" if one does. Tried once for each.
    """

    name = "gpu"
    device = "cuda"  # also for ROCm
    dtypes = torch.float32, torch.bfloat16, torch.float16
    max_states = 256
    max_directions = 31  # token orders travel as bits of a 32-bit integer

    def __init__(self) -> None:
        """Import triton and the kernels; no device is touched."""
        self.works, self.about = load.load()
        self.devices: dict[int, str] = {}
        if load.interpreted:  # a thousand times slower than a CPU: only by name
            self.device, self.automatic = "cpu", False

    def refuses(self, problem: Problem) -> str:
        """Return why a device or strides do not do; "" if they do."""
        wide, axes = (("xz",), (2, 1)) if isinstance(problem, Block) else (("u", "delta", "z"), (2, 3))
        for name in wide:
            t = getattr(problem, name)
            if t is not None and far_apart(t, *axes):
                return f"{name} has strides {tuple(t.stride())}: channels more than 2**31 elements apart"
        return self._runs_on(problem[0])

    def _runs_on(self, t: Tensor) -> str:
        """Return why kernels do not run on a tensor's device, found out once for each device by running one."""
        # While a graph is traced nothing can be run, and the compiler at work there needs triton itself.
        if load.interpreted or torch.compiler.is_compiling() or type(t) not in (Tensor, torch.nn.Parameter):
            return ""
        if t.device.index not in self.devices:
            self.devices[t.device.index] = self._try(t.device)
        return self.devices[t.device.index]

    @staticmethod
    def _try(device: torch.device) -> str:
        """Run the smallest kernel on a device."""
        model = torch.cuda.get_device_name(device)
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
            return f"{model} is older than compute capability {'.'.join(map(str, MIN_CAPABILITY))}"
        try:
            x = torch.ones(1, 1, 2, 1, device=device)
            weight = x[:, :, :1]
            call = scan.Call(Scan(x, x, torch.zeros(1, 2, 1, device=device), weight, weight), backward=False)
            with guard(device):
                call.pack(weight, weight)
        except torch.cuda.OutOfMemoryError:  # of this moment: says nothing of the kernels
            raise
        except Exception as e:  # no C compiler, no Python.h, a driver that does not fit: each has its own class
            reason = " ".join(str(e).split())[:300]
            return f"triton cannot build or start a kernel for {model}: {type(e).__name__}: {reason}"
        return ""

    def num_checkpoints(self, length: int) -> int:
        """Return how many states are kept: one after every tile."""
        return scan.num_checkpoints(length)

    def scan(self, s: Scan, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Scan all groups of a batch."""
        return scan.scan(s, keep)

    def scan_backward(self, dout: Tensor, s: Scan, states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `scan`."""
        return scan.scan_backward(dout, s, states)

    @staticmethod
    def fuses(b: Block) -> bool:
        """Return whether the block's own kernels take a block."""
        return b.conv_w is None or b.conv_w.shape[2] <= block.MAX_TAPS

    def block(self, b: Block, keep: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Compute a block; its parts come in one dtype."""
        return block.block(b, keep) if self.fuses(b) else super().block(b, keep)

    def block_backward(
        self, dout: Tensor, b: Block, kept: tuple[Tensor | None, Tensor, Tensor], again: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `block`."""
        if not self.fuses(b):
            return super().block_backward(dout, b, kept, again)
        return block.block_backward(dout, b, kept, again)
