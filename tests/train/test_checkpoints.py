"""Checkpoints: what comes back is what was saved, and only what is whole is gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn, optim

from gebt.train.checkpoints import COMPLETE, CheckpointError, Checkpoints, load_state, save_state
from gebt.train.processes import Processes


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    view = torch.arange(6.0)[::2]
    plain = [1, 2.5, "text", None, True, [{"a": {}}]]
    state = {
        "optimizer": optimizer.state_dict(),
        "plain": plain,
        "view": view,
        "none": torch.zeros(0, 3),
        "one": view[1],
    }
    back = load_state(save_state(tmp_path / "state", state))
    assert back["plain"] == plain
    for name in ("view", "none", "one"):
        assert torch.equal(back[name], state[name])  # type: ignore[arg-type]
    other = optim.Adam(nn.Linear(3, 2).parameters())
    other.load_state_dict(back["optimizer"])
    for number, own in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, other.state_dict()["state"][number][name]) for name, value in own.items())


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "search")
    assert kept.load() is None
    kept.save(3, {"epoch": 3})
    kept.save(12, {"epoch": 12})
    assert kept.load() == (12, {"epoch": 12}, {})
    assert [at.name for at in (tmp_path / "search").iterdir()] == ["00000012"]
    (tmp_path / "search" / "00000020").mkdir()  # as one that was being written
    assert kept.load() == (12, {"epoch": 12}, {})
    kept.save(13, {"epoch": 13})
    assert [at.name for at in (tmp_path / "search").iterdir()] == ["00000013"]
    kept.clear()
    assert kept.load() is None


def test_arrays_go_to_files_of_their_own(tmp_path: Path) -> None:
    kept, arrays = Checkpoints(tmp_path), {"value": torch.rand(100), "mean": torch.zeros(0, dtype=torch.float64)}
    kept.save(1, {"epoch": 1}, arrays)
    found = kept.load()
    assert found is not None
    assert found[2].keys() == arrays.keys()
    assert all(torch.equal(found[2][name], array) for name, array in arrays.items())
    path = tmp_path / "00000001" / "rank-0.value.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"rank-0.value.npy \(got .*\), expected one that gebt wrote"):
        kept.load()


def test_a_stop_before_the_last_word_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr("gebt.train.checkpoints.json.dumps", _once_then_full())
        with pytest.raises(OSError, match="No space left"):
            kept.save(2, {"epoch": 2})
    assert kept.load() == (1, {"epoch": 1}, {})


def _once_then_full() -> object:
    """The first state is written, the note that all are there is not."""
    calls: list[object] = []
    from json import dumps

    def write(value: object) -> str:
        calls.append(value)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return dumps(value)

    return write


def test_what_cannot_be_gone_on_from_is_refused(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {"epoch": 1})
    (tmp_path / "00000001" / COMPLETE).write_text('{"regression": 1, "processes": 3}')
    with pytest.raises(CheckpointError, match=r"00000001 \(got one of 3 processes\), expected 1; go on with as many"):
        kept.load()
    kept.save(2, {"epoch": 2})
    whole = (tmp_path / "00000002" / "rank-0.safetensors").read_bytes()
    for broken in (b"", whole[:20], whole.replace(b"gebt", b"gibt")):
        (tmp_path / "00000002" / "rank-0.safetensors").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"rank-0.safetensors \(got .*\), expected one that gebt wrote"):
            kept.load()


@pytest.mark.parametrize(("count", "whole"), [(1, 7), (3, 7), (4, 2), (5, 0)])
def test_shares_of_processes_follow_one_another(count: int, whole: int) -> None:
    shares = [list(Processes(rank, count).part_of(range(10, 10 + whole))) for rank in range(count)]
    assert [number for share in shares for number in share] == list(range(10, 10 + whole))
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
