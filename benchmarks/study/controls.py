# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a graft would be without a scan: convolutions of equal cost in the same wrapper."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.timing import Timed, interleave  # noqa: E402
from ultralytics.nn.Addmodules.layers.graft import BLOCKS, Graft  # noqa: E402
from ultralytics.nn.modules.conv import Conv  # noqa: E402

__all__ = ("Bottleneck",)

WIDER = 1.37  # width of equal time over that of equal parameters; see `main`


class Bottleneck(nn.Module):
    """Three convolutions, 1 x 1, 3 x 3 and 1 x 1, that cost as much as a graft's scan: (B, C, H, W) -> same shape."""

    def __init__(self, dim: int, cost: str = "parameters") -> None:
        """Build the layer.

        Args:
            dim (int): Channels C of the map.
            cost (str): What is equal: "parameters", or "time" of a CPU.

        Raises:
            ValueError: If cost is neither.
        """
        super().__init__()
        if cost not in ("parameters", "time"):
            raise ValueError(f"Bottleneck: cost must be 'parameters' or 'time', got {cost!r}")
        inner = equal_width(dim)
        inner = inner if cost == "parameters" else round(WIDER * inner)
        self.layers = nn.Sequential(Conv(dim, inner, 1), Conv(inner, inner, 3), Conv(inner, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map (B, C, H, W)."""
        return self.layers(x)


def equal_width(dim: int) -> int:
    """Return the inner channels with which the bottleneck has as many parameters as the default graft's scan."""
    kind, options = BLOCKS["SS2D"]
    with torch.device("meta"):
        wanted = sum(p.numel() for p in kind(dim, **options).parameters())
    return min(range(1, 2 * dim), key=lambda c: abs(2 * dim * c + 9 * c * c + 2 * (2 * c + dim) - wanted))


def main() -> None:
    """Print the time of a training step of both blocks where the study has them: P4 and P5 of YOLOv5n at 320 pixels."""
    torch.set_num_threads(1)
    for dim, side in ((128, 20), (256, 10)):
        calls, x = {}, torch.randn(8, dim, side, side, requires_grad=True)
        for cost in ("scan", "parameters", "time"):
            block = Graft(dim) if cost == "scan" else Graft(dim, "benchmarks.study.controls.Bottleneck", {"cost": cost})
            calls[cost] = Timed(lambda block=block, x=x: block(x).sum().backward())
        times = {cost: time["median_ms"] for cost, time in interleave(calls, 8.0).items()}
        widths = equal_width(dim), round(WIDER * equal_width(dim))
        print(f"{dim} channels, {side} x {side}: widths {widths}, ms", {k: round(v, 2) for k, v in times.items()})


if __name__ == "__main__":
    main()
