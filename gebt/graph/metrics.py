"""How well logits say what nodes are: one number, larger is better."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["accuracy", "balanced_accuracy", "roc_auc"]


def measure(metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy, its mean over the classes, or the ROC AUC of class 1 of two; of logits [n, C] and labels [n].

    The mean is over the classes that `labels` have, each counting the same however rare it is.
    """
    if metric == "accuracy":
        return (logits.argmax(1) == labels).float().mean()
    if metric == "balanced_accuracy":
        hits = (logits.argmax(1) == labels).float()
        count = torch.bincount(labels, minlength=logits.shape[1])
        share = torch.zeros(logits.shape[1], device=hits.device).index_add_(0, labels, hits) / count.clamp(min=1)
        return share.sum() / (count > 0).sum()
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
