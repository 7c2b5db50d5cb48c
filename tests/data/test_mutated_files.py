"""Whatever the bytes of a file, a reader gives a sound graph or a `GraphError`, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gebt.data.npz import read_npz
from gebt.data.planetoid import read_planetoid
from gebt.data.raw import RawGraph
from gebt.graph.canonical import Graph, GraphError, canonical_graph

pytestmark = pytest.mark.filterwarnings(
    # numpy on a header that a mutation made look like one of Python 2.
    "ignore:Reading `.npy` or `.npz` file required additional header parsing",
    "ignore::DeprecationWarning",
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Where, as a share of the file; what to do there; with which bytes.
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["set", "insert", "cut", "repeat", "truncate"]),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    for share, kind, extra in mutations:
        at = int(share * len(content))
        head, tail = content[:at], content[at:]
        content = {
            "set": head + extra + tail[len(extra) :],
            "insert": head + extra + tail,
            "cut": head + tail[len(extra) :],
            "repeat": head + tail[:64] + tail,
            "truncate": head,
        }[kind]
    return content


def accepted(read) -> Graph | None:
    try:
        raw: RawGraph = read()
        nodes = torch.arange(raw.labels.numel())
        masks = raw.masks or (nodes == 0, nodes == 1, nodes > 1)
        return canonical_graph("mutated", raw.edge_index, raw.features, raw.labels, masks, symmetrise=True)
    except GraphError:
        return None


def assert_sound(graph: Graph | None) -> None:
    if graph is None:
        return
    source, target = graph.pairs
    assert ((source >= 0) & (source < target) & (target < graph.num_nodes)).all()
    assert graph.features.shape[0] == graph.num_nodes
    assert 0 <= graph.labels.min() <= graph.labels.max() < graph.num_classes


@QUICK
@given(part=st.sampled_from(["tx", "allx", "y", "ty", "ally", "graph", "test.index"]), mutations=MUTATIONS)
def test_planetoid(planetoid_folder: Path, planetoid_bytes: dict[str, bytes], part, mutations):
    path = planetoid_folder / f"ind.tiny.{part}"
    path.write_bytes(mutated(planetoid_bytes[part], mutations))
    try:
        assert_sound(accepted(lambda: read_planetoid(planetoid_folder, "tiny")))
    finally:
        path.write_bytes(planetoid_bytes[part])


@QUICK
@given(mutations=MUTATIONS)
def test_npz(tmp_path: Path, npz_arrays: dict[str, np.ndarray], mutations):
    path = tmp_path / "g.npz"
    np.savez(path, **npz_arrays)
    path.write_bytes(mutated(path.read_bytes(), mutations))
    assert_sound(accepted(lambda: read_npz(path)))


@QUICK
@given(member=st.sampled_from(["labels", "adj_indptr", "attr_data", "attr_shape"]), mutations=MUTATIONS)
def test_npy_inside_a_sound_npz(tmp_path: Path, npz_arrays: dict[str, np.ndarray], member, mutations):
    """The zip's checksum would hide most mutations from the code behind it: these are made before zipping."""
    import io
    import zipfile

    path = tmp_path / "g.npz"
    np.savez(path, **{key: value for key, value in npz_arrays.items() if key != member})
    body = io.BytesIO()
    np.save(body, npz_arrays[member])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{member}.npy", mutated(body.getvalue(), mutations))
    assert_sound(accepted(lambda: read_npz(path)))
