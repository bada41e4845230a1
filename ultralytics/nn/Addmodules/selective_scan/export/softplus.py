# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Softplus of elementary operators, where a runtime's own is slow.

softplus(x) = max(x, 0) + log(1 + z) with z = exp(-|x|), and log(1 + z) = 2 atanh(s) with s = z / (2 + z) <= 1/3. So
2 atanh(s) / s is a smooth function of q = s^2 in [0, 1/9], and a polynomial of degree 4 has it to 4e-9 of its value:
every digit of a float32, of small steps, too. ONNX Runtime takes 9.5 ns a value for Softplus, 1.4 for Log, and 0.1 to
0.2 for Mul and Add.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ("SERIES", "softplus")

# 2 atanh(s) / s as a polynomial in s^2, constant term first: least squares at 400 Chebyshev nodes of [0, 1/9].
SERIES = (2.00000000788, 0.666663159351, 0.400248537236, 0.279614188333, 0.28174657271)


def softplus(x: Tensor, own: bool) -> Tensor:
    """Apply softplus, by the polynomial (own) or by PyTorch's operator, whose error suits a float32 only."""
    if x.dtype == torch.float64:
        return F.relu(x) + torch.log1p(torch.exp(-x.abs()))
    if not own:
        return F.softplus(x)
    z = torch.exp(-x.abs())
    s = z / (z + 2)
    q = s * s
    p = q * SERIES[-1] + SERIES[-2]
    for c in SERIES[-3::-1]:
        p = p * q + c
    return F.relu(x) + s * p
