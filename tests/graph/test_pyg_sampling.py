"""PyG's sampler as a cut into batches: its draws are its own, pair numbers are ours, seeds settle it."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.typing as installed

from gebt.data.mapped.convert import convert
from gebt.data.mapped.mapped_graph import open_mapped
from gebt.experiments.options import RunOptions
from gebt.graph import Edges, Graph
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings
from gebt.graph.batches import Sampler

native = pytest.mark.skipif(
    not (installed.WITH_PYG_LIB or installed.WITH_TORCH_SPARSE), reason="PyG has no native parts here"
)
SETTINGS = BatchSettings("neighbor", size=10, fanouts=(3, 2), sampler="pyg")


def plan_of(graph: Graph, settings: BatchSettings = SETTINGS, seed: int = 0) -> BatchSchedule:
    return BatchSchedule(Sampler(Edges.from_pairs(graph.pairs, graph.num_nodes)), torch.arange(40), settings, seed)


@native
def test_a_batch_has_its_targets_and_pairs_of_the_graph_no_more_than_the_fanouts(sparse: Graph) -> None:
    plan = plan_of(sparse)
    assert len(plan) == 4
    for number in range(4):
        batch = plan.batch(1, number)
        assert batch.targets.numel() == 10
        assert torch.equal(batch.nodes, torch.unique(batch.nodes))
        assert torch.equal(batch.nodes[batch.pairs], sparse.pairs[:, batch.pair_ids])
        assert torch.equal(batch.pair_ids, torch.unique(batch.pair_ids))
        assert batch.pair_ids.numel() <= 10 * 3 + 10 * 3 * 2
    targets = torch.cat([plan.batch(1, number).nodes[plan.batch(1, number).targets] for number in range(4)])
    assert torch.equal(targets.sort().values, torch.arange(40))


@native
def test_the_batch_is_settled_by_seed_epoch_and_number_and_no_random_state_moves(sparse: Graph) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, later = plan_of(sparse).batch(1, 0), plan_of(sparse).batch(1, 0), plan_of(sparse).batch(2, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.pair_ids, again.pair_ids)
    assert not torch.equal(first.pair_ids, later.pair_ids)


@native
def test_with_room_for_all_neighbors_both_samplers_give_the_same(sparse: Graph) -> None:
    all_of_them = {"size": 10, "fanouts": (100, 100)}
    own, theirs = (plan_of(sparse, BatchSettings("neighbor", **all_of_them, sampler=name)) for name in ("own", "pyg"))  # type: ignore[arg-type]
    for number in range(4):
        a, b = own.batch(1, number), theirs.batch(1, number)
        for name in ("nodes", "pairs", "pair_ids"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(a.nodes[a.targets], b.nodes[b.targets])


def test_without_native_parts_it_is_refused(sparse: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "WITH_PYG_LIB", False)
    monkeypatch.setattr(installed, "WITH_TORCH_SPARSE", False)
    with pytest.raises(
        ValueError, match=r"--sampler \(got 'pyg' without its native parts\), expected pyg-lib or torch"
    ):
        plan_of(sparse)


def test_it_is_for_neighbors_of_graphs_in_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(
        ValueError, match=r"--sampler \(got 'pyg' for 'random'\), expected 'own', or 'pyg' for 'neighbor'"
    ):
        RunOptions(batching="random", sampler="pyg").resolved()
    mapped = open_mapped(convert("digits", tmp_path_factory.mktemp("set") / "mapped"))
    with pytest.raises(ValueError, match=r"--sampler \(got 'pyg' for a graph that is read from disk\), expected 'own'"):
        BatchSchedule(Sampler(mapped), torch.arange(10), SETTINGS, 0)
