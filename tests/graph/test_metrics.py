"""ROC AUC: against scikit-learn, ties counted half, and accuracy as the share of hits."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from gebt.graph.metrics import measure, roc_auc


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_roc_auc_is_scikit_learns_also_with_ties(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (500,), generator=generator).float()
    positive = torch.rand(500, generator=generator) < 0.3
    assert float(roc_auc(scores, positive)) == pytest.approx(roc_auc_score(positive, scores), abs=1e-6)


def test_measures_read_logits() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.5]]), torch.tensor([0, 1, 0, 1])
    assert float(measure("accuracy", logits, labels)) == 0.5
    # positives at +1 and -0.5, negatives at -2 and +3: two of four pairs in order
    assert float(measure("roc_auc", logits, labels)) == 0.5
    # class 0: one of two, class 1: one of two; with a third node of class 0 wrong, 1/3 and 1/2
    more = torch.cat((logits, torch.tensor([[0.0, 1.0]]))), torch.cat((labels, torch.tensor([0])))
    assert float(measure("balanced_accuracy", *more)) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert torch.isnan(roc_auc(torch.ones(3), torch.ones(3, dtype=torch.bool)))
