"""Kinds of targets, their losses, and the metrics of predictions (larger is better)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

# What a node's label is: one of C classes, 0 or 1 in each of T tasks (-1: unknown), or a number.
Target = Literal["class", "multilabel", "regression"]
NodeMetric = Literal[
    "accuracy", "balanced_accuracy", "roc_auc", "micro_f1", "mean_roc_auc", "r2", "negative_mean_absolute_error"
]
LinkMetric = Literal["hits@10", "hits@20", "hits@50", "hits@100", "mrr", "roc_auc"]
Metric = NodeMetric | LinkMetric
METRICS: dict[Target, tuple[NodeMetric, ...]] = {
    "class": ("accuracy", "balanced_accuracy", "roc_auc"),
    "multilabel": ("micro_f1", "mean_roc_auc"),
    "regression": ("r2", "negative_mean_absolute_error"),
}


def label_loss(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a target: cross-entropy, binary cross-entropy over known entries, or squared error.

    Args:
        target: what a label is.
        logits: [n, C], [n, T] or [n, 1].
        labels: [n] in 0..C-1, [n, T] in {0, 1, -1 (unknown)}, or [n] float.

    Returns:
        The mean, [].

    Example:
        >>> label_loss("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])).item()
        2.0
    """
    if target == "class":
        return F.cross_entropy(logits, labels)
    if target == "regression":
        return F.mse_loss(logits[:, 0], labels)
    known = labels >= 0
    return (F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none") * known).sum() / known.sum()


def measure(metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """A metric of node predictions, larger is better.

    Classes: accuracy, its mean over the classes that `labels` have ("balanced_accuracy"), or the ROC AUC of class 1 of
    two. Tasks: `micro_f1` of logit > 0 over the known entries, or `mean_roc_auc`. Regression: `r2`, or the mean
    absolute error times -1.

    Args:
        metric: its name.
        logits: as in `label_loss`.
        labels: as in `label_loss`.

    Returns:
        One number, [].

    Raises:
        ValueError: for a metric of links.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> measure("accuracy", logits, labels).item()
        0.75
    """
    if metric not in get_args(NodeMetric):
        raise ValueError(f"metric of nodes (got {metric!r}), expected one of {get_args(NodeMetric)}")
    if metric == "accuracy":
        return (logits.argmax(1) == labels).float().mean()
    if metric == "balanced_accuracy":
        hits = (logits.argmax(1) == labels).float()
        count = torch.bincount(labels, minlength=logits.shape[1])
        share = torch.zeros(logits.shape[1], device=hits.device).index_add_(0, labels, hits) / count.clamp(min=1)
        return share.sum() / (count > 0).sum()
    if metric == "micro_f1":
        return micro_f1((logits > 0) & (labels >= 0), labels == 1)
    if metric == "mean_roc_auc":
        return mean_roc_auc(logits, labels)
    if metric == "r2":
        return r2(logits[:, 0], labels)
    if metric == "negative_mean_absolute_error":
        return -(logits[:, 0] - labels).abs().mean()
    return roc_auc(logits[:, 1] - logits[:, 0], labels == 1)


def link_measure(metric: Metric, positive: Tensor, negative: Tensor) -> Tensor:
    """A metric of link prediction, larger is better: `hits_at` K, `roc_auc`, or the mean of 1 / rank.

    Args:
        metric: its name; "mrr": the mean of 1 / rank of every real pair among all m others, ties in the middle.
        positive: scores of real pairs, [p].
        negative: scores of pairs without an edge, [m].

    Returns:
        One number, [].

    Raises:
        ValueError: for a metric of nodes.

    Example:
        >>> link_measure("mrr", torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])).item()
        0.75
    """
    if metric not in get_args(LinkMetric):
        raise ValueError(f"metric of links (got {metric!r}), expected one of {get_args(LinkMetric)}")
    if metric == "mrr":
        others = negative.sort().values
        not_below, above = (
            others.numel() - torch.searchsorted(others, positive, right=right) for right in (False, True)
        )
        return (1 / (1 + (above + not_below) / 2)).mean()
    if metric == "roc_auc":
        scores = torch.cat((positive, negative))
        return roc_auc(scores, torch.arange(scores.numel(), device=scores.device) < positive.numel())
    return hits_at(int(metric.removeprefix("hits@")), positive, negative)


def roc_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve: P(score of a positive > that of a negative), ties count half.

    (sum of the mean ranks of the positives - p (p + 1) / 2) / (p (n - p)); NaN where one of both is missing.

    Args:
        scores: [n].
        positive: which are positive, [n] bool.

    Returns:
        One number, [].

    Source:
        Mann & Whitney 1947.

    Example:
        >>> roc_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, True, False, True])).item()
        0.875
    """
    _, tied, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[tied]
    p = positive.sum().double()
    return ((ranks[positive].sum() - p * (p + 1) / 2) / (p * (positive.numel() - p))).float()


def mean_roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean of `roc_auc` over the tasks that have both classes.

    Args:
        scores: [n, T].
        labels: 0 or 1, negative where unknown, [n, T].

    Returns:
        One number, [].

    Raises:
        ValueError: where no task has both.

    Source:
        The ogbn-proteins evaluator of OGB (Hu et al. 2020).
    """
    tasks = []
    for score, label in zip(scores.t(), labels.t(), strict=True):
        known = label >= 0
        positive = label[known] == 1
        if 0 < int(positive.sum()) < positive.numel():
            tasks.append(roc_auc(score[known], positive))
    if not tasks:
        raise ValueError(f"labels (got {labels.shape[1]} tasks with one class each), expected one with both")
    return torch.stack(tasks).double().mean().float()


def micro_f1(predicted: Tensor, labels: Tensor) -> Tensor:
    """2 TP / (2 TP + FP + FN) over all entries; 0 where all are False.

    Args:
        predicted: [n, T] bool.
        labels: [n, T] bool.

    Returns:
        One number, [].

    Example:
        >>> predicted = torch.tensor([[True, True], [False, True]])
        >>> micro_f1(predicted, torch.tensor([[True, False], [False, False]])).item()
        0.5
    """
    hits = 2 * (predicted & labels).sum()
    return hits / (predicted.sum() + labels.sum()).clamp(min=1)


def r2(predicted: Tensor, labels: Tensor) -> Tensor:
    """Coefficient of determination, 1 - sum (y - z)^2 / sum (y - mean y)^2; where all y are equal, 1 if z = y, else 0.

    Args:
        predicted: z, [n].
        labels: y, [n].

    Returns:
        One number, [].

    Source:
        `r2_score` of scikit-learn, with its two exceptions.

    Example:
        >>> r2(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])).item()
        0.5
    """
    y = labels.double()
    residual, total = (y - predicted).square().sum(), (y - y.mean()).square().sum()
    return torch.where(total > 0, 1 - residual / total, (residual == 0).double()).float()


def hits_at(k: int, positive: Tensor, negative: Tensor) -> Tensor:
    """Hits@K: the share of positives above the k-th largest negative; 1 where m < k. A tie is no hit.

    Args:
        k: K.
        positive: scores of real pairs, [p].
        negative: scores of pairs without an edge, [m].

    Returns:
        One number, [].

    Source:
        The ogbl-collab evaluator of OGB (Hu et al. 2020), with k = 50.

    Example:
        >>> hits_at(2, torch.tensor([0.9, 0.5]), torch.tensor([0.8, 0.6, 0.1])).item()
        0.5
    """
    if negative.numel() < k:
        return torch.ones((), device=positive.device)
    return (positive > negative.topk(k).values[-1]).float().mean()
