from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gebt.data import (
    RecordedSettings,
    SurrogateSpec,
    check_dataset,
    dataset_info,
    generate,
    load_graph,
    surrogate,
    surrogate_pairs,
)
from gebt.data.surrogate import class_sizes
from gebt.graph.graph import Graph, GraphError, canonical_graph

SPEC = SurrogateSpec(nodes=600, pairs=6000, features=12, classes=5, degree_skew=0.5, split_sizes=(100, 50, 450))
SPECS = {
    "usual": SPEC,
    "even": replace(SPEC, degree_skew=0.0, class_skew=0.0),
    "crowded": SurrogateSpec(nodes=30, pairs=300, features=2, classes=3, homophily=0.3),
    "one class": SurrogateSpec(nodes=20, pairs=60, features=1, classes=1, homophily=1.0),
    "classes of one": SurrogateSpec(nodes=9, pairs=12, features=1, classes=9, homophily=0.0),
    "no pairs": SurrogateSpec(nodes=3, pairs=0, features=1, classes=2),
    "sparse": SurrogateSpec(nodes=2000, pairs=5, features=1, classes=2, degree_skew=0.9),
}


@pytest.fixture(scope="module")
def usual():
    return generate(SPEC, seed=3)


def degrees(graph: Graph) -> torch.Tensor:
    return torch.bincount(graph.pairs.ravel(), minlength=graph.num_nodes)


def inside(graph: Graph) -> torch.Tensor:
    source, target = graph.pairs
    return graph.labels[source] == graph.labels[target]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_count_of_the_spec_comes_out(spec, seed):
    graph = generate(spec, seed)
    found = (graph.num_nodes, graph.num_pairs, graph.num_features, graph.num_classes)
    assert found == (spec.nodes, spec.pairs, spec.features, spec.classes)
    assert int(inside(graph).sum()) == round(spec.homophily * spec.pairs)
    assert torch.bincount(graph.labels).tolist() == class_sizes(spec).tolist()
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    assert tuple(int(mask.sum()) for mask in masks) == spec.sizes
    assert torch.stack(masks).sum(0).eq(1).all()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_is_canonical_as_it_is_made(spec):
    graph = generate(spec, seed=1, name="made")
    both = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    checked = canonical_graph("made", both, graph.features, graph.labels, masks, spec.classes)
    assert checked.fingerprint == graph.fingerprint
    assert (checked.name, checked.num_classes, checked.notes) == (graph.name, graph.num_classes, graph.notes)


def test_a_seed_is_a_graph_and_another_seed_another(usual):
    assert generate(SPEC, seed=3).fingerprint == usual.fingerprint
    other = generate(SPEC, seed=4)
    for part in ("pairs", "labels", "features"):
        assert not torch.equal(getattr(other, part), getattr(usual, part))


def test_the_split_seed_draws_the_split_alone(usual):
    other = generate(SPEC, seed=3, split_seed=1)
    assert not torch.equal(other.train_mask, usual.train_mask)
    assert torch.equal(other.pairs, usual.pairs)
    assert torch.equal(other.features, usual.features)
    assert torch.equal(generate(SPEC, seed=4).train_mask, usual.train_mask)


@pytest.mark.parametrize(("draws", "values"), [(1, 1), (97, 50), (5000, 1 << 20)])
def test_the_size_of_the_blocks_changes_nothing(usual, monkeypatch, draws, values):
    monkeypatch.setattr(surrogate_pairs, "DRAWS_A_BLOCK", draws)
    monkeypatch.setattr(surrogate, "VALUES_A_BLOCK", values)
    assert generate(SPEC, seed=3).fingerprint == usual.fingerprint


def test_generating_leaves_the_global_random_state_alone():
    np.random.random(1000)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    generate(SPECS["crowded"])
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_every_pair_is_as_likely_where_nothing_is_skewed():
    # Pairs inside a class are 2 of 5, and a pair is inside with probability 2 / 5: no pair is favored.
    spec = SurrogateSpec(nodes=6, pairs=5, features=1, classes=2, homophily=0.4, degree_skew=0.0, class_skew=0.0)
    rounds, chance = 250, 5 / 15
    hits = torch.zeros(6, 6)
    for seed in range(rounds):
        hits[tuple(generate(spec, seed).pairs)] += 1
    off = (hits[tuple(torch.triu_indices(6, 6, 1))] - rounds * chance).abs()
    assert float(off.max()) < 4 * math.sqrt(rounds * chance * (1 - chance))


def test_degrees_without_skew_are_those_of_a_random_graph():
    found = degrees(generate(SurrogateSpec(20000, 100000, 1, 4, degree_skew=0.0))).double()
    assert float(found.var() / found.mean()) == pytest.approx(1, abs=0.05)
    assert float(found[:10000].mean()) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize("skew", [0.3, 0.6])
def test_degrees_follow_the_power_law_of_the_skew(skew):
    found = degrees(generate(SurrogateSpec(20000, 100000, 1, 4, degree_skew=skew))).double()
    expected = ((torch.arange(20000) + 0.5) / 20000) ** -skew
    expected *= 10 / expected.mean()
    ranked = found.sort(descending=True).values
    for start, stop in ((10, 100), (100, 1000)):
        assert float(ranked[start:stop].mean() / expected[start:stop].mean()) == pytest.approx(1, abs=0.1)


def test_a_skew_of_degrees_is_seen():
    largest = [int(degrees(generate(replace(SPEC, degree_skew=skew))).max()) for skew in (0.0, 0.4, 0.8)]
    assert largest[0] < 45
    assert largest[1] > 2 * largest[0]
    assert largest[2] > 1.3 * largest[1]


def test_small_classes_keep_to_themselves_as_much_as_large_ones():
    graph = generate(SurrogateSpec(5000, 50000, 1, 6, homophily=0.7, class_skew=1.5))
    ends = graph.labels[graph.pairs].ravel()
    shares = torch.bincount(ends, inside(graph).double().repeat(2)) / torch.bincount(ends)
    assert float(shares.min()) > 0.55
    assert float(shares.max()) < 0.8


@pytest.mark.parametrize(
    ("nodes", "classes", "skew", "sizes"),
    [
        (600, 5, 0.8, [230, 133, 96, 77, 64]),  # 595 by shares of 229.3, 131.7, 95.2, 75.6, 63.3, and one each
        (7, 3, 0.0, [3, 2, 2]),
        (5, 5, 2.0, [1, 1, 1, 1, 1]),
        (12, 3, 50.0, [10, 1, 1]),
    ],
)
def test_class_sizes_are_exact(nodes, classes, skew, sizes):
    assert class_sizes(SurrogateSpec(nodes, 0, 1, classes, class_skew=skew)).tolist() == sizes


def test_features_are_the_mean_of_the_class_under_noise():
    spec = SurrogateSpec(4000, 0, 30, 3, feature_noise=2.0)
    graph = generate(spec)
    assert graph.features.dtype == torch.float32
    assert bool(torch.isfinite(graph.features).all())
    assert float(graph.features.std()) == pytest.approx(1, abs=0.1)
    quiet = generate(replace(spec, feature_noise=0.0)).features
    means = torch.stack([quiet[graph.labels == number][0] for number in range(3)])
    assert torch.equal(quiet, means[graph.labels])
    assert float(torch.pdist(means).min()) > 4
    noise = graph.features * math.sqrt(5) - means[graph.labels]
    assert float(noise.std()) == pytest.approx(2, abs=0.02)
    assert float(noise.mean(0).abs().max()) < 0.15


@pytest.mark.parametrize("skew", [0.0, 0.5])
def test_label_noise_swaps_labels_of_the_least_linked_nodes(skew):
    spec = SurrogateSpec(6000, 60000, 8, 4, homophily=0.6, degree_skew=skew, feature_noise=0.0, label_noise=0.2)
    graph, clean = generate(spec), generate(replace(spec, label_noise=0.0))
    assert torch.equal(graph.features, clean.features)
    assert torch.equal(torch.bincount(graph.labels), torch.bincount(clean.labels))
    swapped = graph.labels != clean.labels
    # Of 1,200 labels in the hat about 3 in 10 come back to a node of their own class.
    assert 1200 * 0.65 < int(swapped.sum()) < 1200 * 0.75
    assert float(degrees(graph)[swapped].double().mean()) == pytest.approx(20 if skew == 0 else 11, abs=1)
    assert float(inside(graph).double().mean()) == pytest.approx(0.6, abs=0.02)


def test_more_label_noise_than_the_homophily_allows_is_refused():
    with pytest.raises(
        GraphError, match=r"homophily of 'g' \(got 0.7\), expected 0\.2\d+ to 0\.3\d+, all that a label"
    ):
        generate(replace(SPEC, label_noise=0.9), name="g")


def test_another_seed_has_other_noise():
    spec = SurrogateSpec(50, 0, 40, 1)
    parts = [generate(spec, seed).features for seed in range(2)]
    noises = torch.stack([(part - part.mean(0)).ravel() for part in parts])
    assert float(torch.corrcoef(noises)[0, 1].abs()) < 0.1


def test_a_sample_that_falls_short_is_drawn_again(monkeypatch):
    solved, calls = surrogate_pairs._solved, []

    def short_at_first(expected, goal):
        calls.append(goal)
        return solved(expected, goal) * (1 if len(calls) > 2 else 0.5)

    monkeypatch.setattr(surrogate_pairs, "_solved", short_at_first)
    graph = generate(SPEC)
    assert len(calls) == 4
    assert calls[2] > calls[0]
    assert (graph.num_pairs, int(inside(graph).sum())) == (6000, 4200)
    monkeypatch.setattr(surrogate_pairs, "_solved", lambda expected, goal: solved(expected, goal) / 100)
    with pytest.raises(GraphError, match=r"pairs of 'g' \(got 8 samples that all fell short for 4200 inside"):
        generate(SPEC, name="g")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": 0}, r"nodes of a surrogate \(got 0\), expected at least 3"),
        ({"classes": 601}, r"classes of a surrogate \(got 601\), expected 1 to 600, the number of nodes"),
        ({"classes": 0}, r"classes of a surrogate \(got 0\)"),
        ({"features": 0}, r"features of a surrogate \(got 0\), expected at least 1"),
        ({"pairs": 179701}, r"pairs of a surrogate \(got 179701\), expected 0 to 179700, all that 600 nodes can have"),
        ({"pairs": -1}, r"pairs of a surrogate \(got -1\)"),
        ({"homophily": 1.01}, r"homophily of a surrogate \(got 1.01\), expected 0 to 1"),
        ({"homophily": math.nan}, r"homophily of a surrogate \(got nan\)"),
        ({"degree_skew": 1.0}, r"degree_skew of a surrogate \(got 1.0\), expected 0 <= skew < 1"),
        ({"class_skew": -0.1}, r"class_skew of a surrogate \(got -0.1\)"),
        ({"label_noise": 1.5}, r"label_noise of a surrogate \(got 1.5\), expected 0 to 1"),
        ({"feature_noise": math.inf}, r"feature_noise of a surrogate \(got inf\)"),
        ({"split_sizes": (500, 50, 51)}, r"split_sizes of a surrogate \(got \(500, 50, 51\)\), .* together 600"),
        ({"split_sizes": (0, 300, 300)}, r"split_sizes of a surrogate .*three counts of at least 1"),
        ({"split_sizes": (300, 300)}, r"split_sizes of a surrogate .*three counts"),
    ],
)
def test_a_spec_that_no_graph_can_have_is_refused(changed, message):
    with pytest.raises(GraphError, match=message):
        replace(SPEC, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": 179700}, "got room for 44615 and 135085 for 125790 inside classes and 53910 between"),
        (
            {"homophily": 0.24, "pairs": 177000, "degree_skew": 0.9},
            "got more than 20 draws a pair for 42480 inside classes and 134520",
        ),
        ({"classes": 600, "pairs": 10}, "got room for 0 and 179700 for 7 inside"),
        ({"classes": 1, "pairs": 10}, "got room for 179700 and 0 for 7 inside"),
    ],
)
def test_a_graph_too_dense_to_sample_is_refused(changed, message):
    with pytest.raises(GraphError, match=rf"pairs of 'g' \({message}.*do ask for fewer pairs"):
        generate(replace(SPEC, **changed), name="g")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(GraphError, match=rf"^seed \(got {seed}\), expected 0 to 4294967295"):
        generate(SPEC, seed)
    with pytest.raises(GraphError, match=rf"^split seed \(got {seed}\)"):
        generate(SPEC, split_seed=seed)


def test_a_split_without_sizes_is_60_20_20():
    assert replace(SPEC, split_sizes=None).sizes == (360, 120, 120)
    assert SPECS["no pairs"].sizes == (1, 1, 1)


# nodes, pairs, features, classes, homophily; training, validation, test; hidden, depth
ROWS = {
    "ogbn-arxiv-surrogate": ((169343, 1157799, 128, 40, 0.65), (90941, 29799, 48603), (256, 3)),
    "ogbn-products-surrogate": ((2449029, 61859140, 100, 47, 0.81), (196615, 39323, 2213091), (256, 3)),
    "reddit-surrogate": ((232965, 57307946, 602, 41, 0.76), (153431, 23831, 55703), (128, 2)),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_of_the_manifest_have_the_statistics_of_their_sets(name):
    info, (counts, sizes, model) = dataset_info(name), ROWS[name]
    assert (info.nodes, info.pairs, info.features, info.classes) == counts[:4]
    spec = info.surrogate
    assert (spec.nodes, spec.pairs, spec.features, spec.classes, spec.homophily) == counts
    assert spec.sizes == spec.split_sizes == sizes
    assert info.training == RecordedSettings(*model, 0.5, 0.01, 0.0, 200, 0.0)
    assert (info.format, info.license, info.split, info.seed) == ("surrogate", "generated", "seeded", 0)
    assert f"is not {'Reddit' if name.startswith('reddit') else name.removesuffix('-surrogate')}" in info.source
    assert check_dataset(name) == []


def test_a_row_is_generated_by_name_and_not_hashed(monkeypatch, tmp_path):
    row = replace(dataset_info("reddit-surrogate"), surrogate=SPEC, seed=3)
    monkeypatch.setattr("gebt.data.graphs.dataset_info", lambda name: row)
    graph = load_graph("reddit-surrogate", tmp_path, split_seed=5, download=False)
    assert "fingerprint" not in vars(graph)
    assert graph.fingerprint == generate(SPEC, seed=3, split_seed=5).fingerprint
    assert graph.name == "reddit-surrogate"
    assert not list(tmp_path.iterdir())
