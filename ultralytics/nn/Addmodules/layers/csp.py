# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""CSP blocks with scans inside, each in place of one C2f."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from .check_arguments import arguments, positive_int, positive_number
from .ss2d import ConvSS2D
from .vss import VSSBlock

__all__ = ("CSP", "C2fSS2D", "C2fVSS")


class CSP(nn.Module):
    """Base of bottlenecks in the form of C2f; a module adds its n inner blocks of c channels as `m`.

    Attributes:
        c (int): Hidden channels.
        cv1 (Conv): c1 -> 2c, split into two halves.
        cv2 (Conv): (2 + n)c -> c2, over both halves and the output of every inner block.

    Source:
        C2f of Ultralytics YOLOv8.
    """

    def __init__(self, c1: int, c2: int, n: int, e: float) -> None:
        """Build the two convolutions; the arguments are those of `C2fVSS`."""
        super().__init__()
        from ultralytics.nn.modules.conv import Conv  # here, because it takes upstream's tree, which tests do without

        self.c = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv((2 + n) * self.c, c2, 1)

    @classmethod
    def check_widths(cls, a: SimpleNamespace) -> int:
        """Raise unless c1, c2, n and e are right; return the hidden channels."""
        positive_int(cls.__name__, c1=a.c1, c2=a.c2, n=a.n)
        positive_number(cls.__name__, e=a.e)
        hidden = int(a.c2 * a.e)
        positive_int(cls.__name__, hidden_channels=hidden)
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map (B, c1, H, W)."""
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fVSS(CSP):
    """CSP bottleneck of VSS blocks in the form of C2f, which it replaces one for one: (B, c1, H, W) -> (B, c2, H, W).

    Attributes:
        cv1, cv2 (Conv): As in `CSP`.
        m (nn.ModuleList): n VSS blocks of c channels, one behind the other.

    Source:
        C2f of Ultralytics YOLOv8 with the VSS block of Liu et al., 2024 in the bottleneck's place, as Mamba-YOLO (Wang
        et al., 2024) places its own block.

    Examples:
        >>> tuple(C2fVSS(16, 32)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 32, 5, 7)
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        d_state: int = 1,
        expand: int | float = 1,
        mlp_ratio: int | float = 2,
        d_conv: int = 3,
        gate: bool = False,
        e: float = 0.5,
        drop_path: float = 0.0,
    ) -> None:
        """Build the block.

        Args:
            c1 (int): Input channels.
            c2 (int): Output channels.
            n (int): Number of VSS blocks.
            d_state (int): State size N of each inner channel.
            expand (int | float): Inner channels of the scan per hidden channel.
            mlp_ratio (int | float): Hidden channels of the MLP per hidden channel; 0 for no MLP.
            d_conv (int): Side of the depthwise convolution, odd; 1 for none.
            gate (bool): Gate in the SS2D.
            e (float): Hidden channels c per output channel.
            drop_path (float): Probability that a sample skips a branch in training.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a value is out of range.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__(c1, c2, n, e)
        self.m = nn.ModuleList(
            VSSBlock(self.c, d_state, d_conv, expand, mlp_ratio, gate, drop_path, conv_bias=False) for _ in range(n)
        )

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        hidden, gates = cls.check_widths(a), (a.gate, a.drop_path)
        VSSBlock.check(arguments(VSSBlock, hidden, a.d_state, a.d_conv, a.expand, a.mlp_ratio, *gates, conv_bias=False))


class C2fSS2D(CSP):
    """CSP bottleneck in the form of C2f, which it replaces one for one: (B, c1, H, W) -> (B, c2, H, W).

    Attributes:
        cv1, cv2 (Conv): As in `CSP`.
        m (nn.ModuleList): n bottlenecks `ConvSS2D` of c channels, one behind the other.

    Source:
        C2f of Ultralytics YOLOv8.

    Examples:
        >>> tuple(C2fSS2D(16, 32)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 32, 5, 7)
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        d_state: int = 1,
        expand: int | float = 1,
        k: int = 3,
        directions: int = 4,
        shortcut: bool = True,
        e: float = 0.5,
    ) -> None:
        """Build the block.

        Args:
            c1 (int): Input channels.
            c2 (int): Output channels.
            n (int): Number of bottlenecks.
            d_state (int): State size N of each inner channel.
            expand (int | float): Inner channels of the scan per hidden channel.
            k (int): Side of the bottlenecks' convolution, odd.
            directions (int): 4, or 2 for rows and rows reversed.
            shortcut (bool): Residual around each bottleneck.
            e (float): Hidden channels c per output channel.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a value is out of range.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__(c1, c2, n, e)
        self.m = nn.ModuleList(ConvSS2D(self.c, d_state, expand, k, directions, shortcut) for _ in range(n))

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        hidden = cls.check_widths(a)
        ConvSS2D.check(arguments(ConvSS2D, hidden, a.d_state, a.expand, a.k, a.directions, a.shortcut))
