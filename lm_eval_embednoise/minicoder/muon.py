"""Muon for lists of equally shaped matrices, in float32 and batched (Keller Jordan's update)."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices to `g [n, rows, columns]`, by Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon:
    """Momentum, orthogonalized; one batched update for all matrices of a shape."""

    def __init__(self, matrices: list[Tensor], momentum: float = 0.95, decay: float = 0.01) -> None:
        groups: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            groups.setdefault(matrix.shape, []).append(matrix)
        self.groups = list(groups.values())
        self.momentum, self.decay = momentum, decay
        self.buffers = [torch.zeros(len(g), *g[0].shape) for g in self.groups]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Apply one update; gradients stay as they are."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([m.grad for m in group if m.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(buffer, self.momentum))
            rows, columns = group[0].shape
            scale = lr * max(1.0, rows / columns) ** 0.5
            for matrix, u in zip(group, update.unbind(0), strict=True):
                matrix.mul_(1 - lr * self.decay).sub_(u, alpha=scale)
