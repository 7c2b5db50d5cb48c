"""How well logits say what nodes are: one number, larger is better."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["accuracy", "roc_auc"]


def measure(metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy, or the area under the ROC curve of class 1 of two; of logits [n, C] and labels [n]; a number."""
    if metric == "accuracy":
        return (logits.argmax(1) == labels).float().mean()
    return roc_auc(logits[:, 1] - logits[:, 0], labels == 1)


def roc_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """P(score of a positive > that of a negative), ties count half; `scores` [n], `positive` [n] bool.

    (sum of the mean ranks of the positives - p (p + 1) / 2) / (p (n - p)); NaN where one of both is missing.
    Mann & Whitney 1947.
    """
    _, tied, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[tied]
    p = positive.sum().double()
    return ((ranks[positive].sum() - p * (p + 1) / 2) / (p * (positive.numel() - p))).float()
