# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Models whose outputs depend strongly on their scans, so that equality of an exported file says something of them.

With the start of a training the scores do not depend on the scans at all: a file whose scans were wrong would pass.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ("strengthen",)


def strengthen(model: nn.Module, imgsz: int = 320, seed: int = 1) -> nn.Module:
    """Give a detection model weights of unit gain, spread state parameters, and statistics of its norms from data.

    The last layer of each class branch is scaled so that some scores lie above one half and most near zero.

    Args:
        model (nn.Module): A DetectionModel, which is changed and returned.
        imgsz (int): Side of the random pictures whose statistics are taken.
        seed (int): Of the weights and pictures.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("A_log", "A_b_log", "A_logs")):
                p.add_(torch.randn(p.shape, generator=g) * 0.5)
            elif name.endswith(("dt_projs_bias", "dt_proj.bias", "dt_proj_b.bias")):
                p.add_(torch.randn(p.shape, generator=g) + 1)
            elif p.dim() >= 2 and "dfl" not in name:
                inputs = p.shape[-1] if name.endswith(("x_proj_weight", "dt_projs_weight")) else p[0].numel()
                p.copy_(torch.randn(p.shape, generator=g) * (2 / inputs) ** 0.5)
        model.train()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [m.momentum for m in norms]
        for m in norms:
            m.momentum = None  # the mean over all pictures
            m.reset_running_stats()
        for _ in range(3):
            model(torch.rand(2, 3, imgsz, imgsz, generator=g))
        for m, momentum in zip(norms, momenta):
            m.momentum = momentum
        model.eval()
        head = model.model[-1]
        for branch in [b for name in ("cv3", "one2one_cv3") for b in getattr(head, name, None) or ()]:
            branch[-1].weight.mul_(2)
            branch[-1].bias.fill_(-4)
    return model
