"""The same DenseNet in torch, the textbook way: channels first, batch norm with its affine part in every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

BLOCKS = 3


class DenseNet:
    """Functional: parameters are a dict with hypertrail's names; kernels (D, C, kh, kw), the dense matrix (classes, F)."""

    def __init__(self, weights: dict[str, np.ndarray], depth: int, dropout: float) -> None:
        self.layers = (depth - BLOCKS - 1) // BLOCKS
        self.dropout = dropout
        self.params = {name: from_hypertrail(name, one).requires_grad_() for name, one in weights.items()}

    def logits(self, x: Any, dropout: float) -> Any:
        w = self.params

        def composite(maps: Any, name: str, padding: int) -> Any:
            h = F.relu(norm(maps, f"{name}.affine"))
            h = F.conv2d(h, w[f"{name}.conv/W"], padding=padding)
            return F.dropout(h, dropout) if dropout else h

        def norm(maps: Any, name: str) -> Any:
            return F.batch_norm(maps, None, None, w[f"{name}/scale"], w[f"{name}/bias"], training=True, eps=1e-4)

        maps = F.conv2d(x, w["first.conv/W"], padding=1)
        for block in range(1, BLOCKS + 1):
            for i in range(1, self.layers + 1):
                maps = torch.cat([maps, composite(maps, f"block{block}.layer{i}", 1)], dim=1)
            if block < BLOCKS:
                maps = F.avg_pool2d(composite(maps, f"transition{block}", 0), 2)
        h = F.relu(norm(maps, "last.affine")).mean(dim=(2, 3))
        return F.linear(h, w["logits/W"], w["logits/b"])

    def loss(self, penalties: dict[str, Any], x: Any, y: Any) -> Any:
        """Mean cross-entropy in training mode and Σ λ w², hypertrail's elementary loss."""
        penalty = sum((one * self.params[name] ** 2).sum() for name, one in penalties.items())
        return F.cross_entropy(self.logits(x, self.dropout), y) + penalty


def from_hypertrail(name: str, one: np.ndarray) -> torch.Tensor:
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[one.ndim]
    return torch.from_numpy(np.ascontiguousarray(one.transpose(order)))


def to_hypertrail(one: torch.Tensor) -> np.ndarray:
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[one.ndim]
    return one.detach().numpy().transpose(order)
