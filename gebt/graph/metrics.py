"""What is asked of nodes, how far logits are from it (a loss), and how well they say it (larger is better)."""

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
# Those that read a value back from the device on the way.
WAITING: tuple[Metric, ...] = ("balanced_accuracy", "roc_auc", "mean_roc_auc")


def label_loss(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over nodes of the cross-entropy, over known entries of the binary one, or over nodes of (y - z)^2.

    `logits` z [n, C], [n, T] or [n, 1]; `labels` y [n] in 0..C-1, [n, T] in {0, 1, -1 (unknown)}, or [n] float.
    """
    if target == "class":
        return F.cross_entropy(logits, labels)
    if target == "regression":
        return F.mse_loss(logits[:, 0], labels)
    known = labels >= 0
    return (F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none") * known).sum() / known.sum()


def measure(metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """One number, larger is better, of logits and labels as `label_loss` takes them.

    Classes: accuracy, its mean over the classes that `labels` have, each counting the same however rare it is, or the
    ROC AUC of class 1 of two. Tasks: `micro_f1` of logit > 0 over the known entries, or `mean_roc_auc`. Numbers: `r2`,
    or the mean absolute error times -1. Raises `ValueError` for a metric of links.
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
    """`hits_at` K, `roc_auc`, or the mean of 1 / rank, of scores of real pairs [p] against those of others [m].

    "mrr": every real pair is ranked among all m others, as in `mean_reciprocal_rank`.
    Raises `ValueError` for a metric of nodes.
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
    """P(score of a positive > that of a negative), ties count half; `scores` [n], `positive` [n] bool.

    (sum of the mean ranks of the positives - p (p + 1) / 2) / (p (n - p)); NaN where one of both is missing.
    Mann & Whitney 1947.
    """
    _, tied, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[tied]
    p = positive.sum().double()
    return ((ranks[positive].sum() - p * (p + 1) / 2) / (p * (positive.numel() - p))).float()


def mean_roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean of `roc_auc` over the tasks that have both classes; `scores`, `labels` [n, T], negative where unknown.

    Raises `ValueError` where no task has both. As the ogbn-proteins evaluator of OGB (Hu et al. 2020).
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
    """2 TP / (2 TP + FP + FN) over all entries of `predicted` and `labels`, both [n, T] bool; 0 where all are False."""
    hits = 2 * (predicted & labels).sum()
    return hits / (predicted.sum() + labels.sum()).clamp(min=1)


def r2(predicted: Tensor, labels: Tensor) -> Tensor:
    """1 - sum (y - z)^2 / sum (y - mean y)^2 of numbers z and y [n]; where all y are equal 1 if z = y, else 0.

    The coefficient of determination, with the two exceptions of scikit-learn's `r2_score`.
    """
    wanted = labels.double()
    missed, spread = (wanted - predicted).square().sum(), (wanted - wanted.mean()).square().sum()
    return torch.where(spread > 0, 1 - missed / spread, (missed == 0).double()).float()


def hits_at(k: int, positive: Tensor, negative: Tensor) -> Tensor:
    """The share of `positive` [p] above the k-th largest of `negative` [m]; 1 where m < k. A tie is no hit.

    As the ogbl-collab evaluator of OGB (Hu et al. 2020), with k = 50.
    """
    if negative.numel() < k:
        return torch.ones((), device=positive.device)
    return (positive > negative.topk(k).values[-1]).float().mean()


def mean_reciprocal_rank(positive: Tensor, negative: Tensor) -> Tensor:
    """The mean of 1 / rank of each `positive` [p] among its `negative` [p, m]; of ties it takes the middle.

    rank = 1 + (number above + number not below) / 2. As the ogbl-citation2 evaluator of OGB (Hu et al. 2020).
    """
    mine = positive[:, None]
    rank = 1 + ((negative > mine).sum(1) + (negative >= mine).sum(1)) / 2
    return (1 / rank).mean()
