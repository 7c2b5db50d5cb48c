"""ROC AUC: against scikit-learn, ties counted half, and accuracy as the share of hits."""

from __future__ import annotations

import sys

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from gebt.graph.metrics import hits_at, link_measure, mean_roc_auc, measure, micro_f1, roc_auc


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


def test_mean_roc_auc_skips_tasks_of_one_class_and_unknown_labels() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.9], [0.4, 0.5, 0.1], [0.8, 0.1, 0.5], [0.6, 0.9, 0.2]])
    labels = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 0, 1], [-1, -1, 1]])
    # task 0: both positives above the negative; task 1: one tie, one above; task 2: positives only
    assert float(mean_roc_auc(scores, labels)) == pytest.approx((1 + 0.75) / 2)
    with pytest.raises(ValueError, match=r"labels \(got 1 tasks with one class each\)"):
        mean_roc_auc(scores[:, 2:], labels[:, 2:])


def test_micro_f1_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, labels = torch.rand(2, 50, 7, generator=generator) < 0.3
    assert float(micro_f1(predicted, labels)) == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert float(micro_f1(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool))) == 0


def mean_reciprocal_rank(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Each positive [p] among the negatives of its own [p, m], as ogbl-citation2 ranks them."""
    return torch.stack(
        [link_measure("mrr", one[None], others) for one, others in zip(positive, negative, strict=True)]
    ).mean()


def test_hits_and_reciprocal_ranks_by_hand() -> None:
    positive, negative = torch.tensor([0.9, 0.5, 0.4, 0.1]), torch.tensor([0.5, 0.3, 0.8])
    # the largest negatives are 0.8, 0.5, 0.3; a tie with the second is no hit
    assert [float(hits_at(k, positive, negative)) for k in (1, 2, 3, 4)] == [0.25, 0.25, 0.75, 1]
    # ranks 1, 2 + a tie's half, 4
    against = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.1], [0.9, 0.9, 0.9]])
    assert float(mean_reciprocal_rank(positive[:3], against)) == pytest.approx((1 + 1 / 2.5 + 1 / 4) / 3)


@pytest.fixture
def ogb(monkeypatch: pytest.MonkeyPatch) -> None:
    # ogb asks PyPI for its newest version in a thread that its import starts, unless `outdated` cannot be imported.
    monkeypatch.setitem(sys.modules, "outdated", None)
    pytest.importorskip("ogb", reason="needs the ogb package: pip install 'gebt[ogb]'")


@pytest.mark.parametrize("levels", [3, 11, 10**6])
def test_numbers_are_those_of_ogbs_evaluators(ogb: None, levels: int) -> None:
    from ogb import linkproppred, nodeproppred

    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (200, 112), generator=generator).double()
    labels = torch.randint(-1, 2, (200, 112), generator=generator)
    labels[:, 5], labels[:, 6] = 1, 0
    known = labels.double().masked_fill(labels < 0, torch.nan)
    theirs = nodeproppred.Evaluator("ogbn-proteins").eval({"y_true": known, "y_pred": scores})
    assert float(mean_roc_auc(scores, labels)) == pytest.approx(theirs["rocauc"], abs=1e-6)

    logits, classes = scores[:, :40], torch.randint(40, (200,), generator=generator)
    asked = {"y_true": classes[:, None], "y_pred": logits.argmax(1, keepdim=True)}
    assert float(measure("accuracy", logits, classes)) == pytest.approx(
        nodeproppred.Evaluator("ogbn-arxiv").eval(asked)["acc"]
    )

    positive, negative = scores[:, 0], scores[:, 1:]
    evaluator = linkproppred.Evaluator("ogbl-collab")
    for others in (negative.ravel(), negative[:49, 0], negative[:50, 0]):
        theirs = evaluator.eval({"y_pred_pos": positive, "y_pred_neg": others})
        assert float(hits_at(50, positive, others)) == pytest.approx(theirs["hits@50"])
    theirs = linkproppred.Evaluator("ogbl-citation2").eval({"y_pred_pos": positive, "y_pred_neg": negative})
    assert float(mean_reciprocal_rank(positive, negative)) == pytest.approx(float(theirs["mrr_list"].mean()))
