"""`gebt early-bird`, `gebt lottery`, `gebt init-prune`: records, pictures, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gebt.cli.main import main
from gebt.data.images import load_images
from gebt.experiments.record import read_record
from gebt.models.vision_registry import image_network
from gebt.prune.mask import Mask
from gebt.prune.slim.slim import slim
from gebt.train.images import accuracy

SMALL = ["--images", "96", "--epochs", "3", "--batch", "32", "--width", "0.1"]
PNG = b"\x89PNG"


def test_early_bird_writes_tickets_that_load_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    main(["early-bird", *SMALL, "--ratios", "0.4", "--ratios", "0.6", "--threshold", "2", "--out", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [(row["variant"], row["ratio"]) for row in told["summary"]] == [
        ("dense", 0.0), ("early bird", 0.4), ("random", 0.4), ("early bird", 0.6), ("random", 0.6)
    ]  # fmt: skip
    record = read_record(out)
    assert record["complete"]
    train = load_images("digits")
    train, _ = train.split(96 / len(train), 0)
    mean, std = train.statistics()
    for row in record["rows"][1:5]:
        assert row["density"] == pytest.approx(1 - row["ratio"], abs=0.02)
        # Draws of the start and of epochs 1 to 3 do not fill a window of four before the newest.
        assert (row["epoch_drawn"], row["fired"]) == (3, False)
        assert 0 < row["parameters"] < 1
        if row["variant"] == "early bird":
            stem = out / f"seed-0-p{100 * row['ratio']:g}"
            mask = Mask(load_file(f"{stem}.mask.safetensors"))
            small = slim(
                image_network("preresnet20", train.shape, len(train.classes), width=0.1),
                mask,
                example=train.pixels[:2].float(),
            )
            small.load_state_dict(load_file(f"{stem}.network.safetensors"))
            assert accuracy(small, load_images("digits", "test"), mean=mean, std=std) == row["accuracy"]
    assert all((out / name).read_bytes().startswith(PNG) for name in ("density.png", "distances.png"))
    pairwise = torch.tensor(record["rows"][-1]["pairwise"])
    assert torch.equal(pairwise, pairwise.t())
    assert not bool(pairwise.diagonal().any())


def test_a_lottery_goes_on_after_its_last_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--ratio", "0.75", "--levels", "2", "--rewind", "1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main(["lottery", *options, "--out", str(whole)])
    main(["lottery", *options, "--out", str(broken), "--empty-controls"])
    rows = read_record(whole)["rows"]
    assert [row["variant"] for row in rows] == ["dense", "ticket", "ticket", *["reinit", "shuffled"] * 2]
    assert [row["density"] for row in rows[:3]] == pytest.approx([1, 0.5, 0.25], abs=0.001)
    (broken / "seed-0" / "level-2.safetensors").unlink()
    (broken / "record.json").unlink()
    first = (broken / "seed-0" / "level-1.safetensors").stat().st_mtime_ns
    main(["lottery", *options, "--out", str(broken), "--resume"])
    again = read_record(broken)["rows"]
    without = [{name: own for name, own in row.items() if name != "seconds"} for row in rows]
    assert [{name: own for name, own in row.items() if name != "seconds"} for row in again] == without
    assert (broken / "seed-0" / "level-1.safetensors").stat().st_mtime_ns == first
    with pytest.raises(SystemExit):
        main(["lottery", *options, "--learning-rate", "0.1", "--out", str(broken), "--resume"])
    assert f"got a run with learning_rate 0.0012 in {broken}" in capsys.readouterr().err


def test_init_prune_prunes_exactly_and_shows_chance_beside(tmp_path: Path) -> None:
    out = tmp_path / "run"
    scores = [part for score in ("synflow", "snip", "gem-miner") for part in ("--score", score)]
    main(["init-prune", *SMALL, *scores, "--ratios", "0.5", "--out", str(out)])
    rows = read_record(out)["rows"]
    assert [row["variant"] for row in rows] == ["dense", "synflow", "snip", "gem-miner", "random"]
    for row in rows[1:]:
        mask = Mask(load_file(out / f"seed-0-{row['variant']}-p50.mask.safetensors"))
        assert mask.kept == sum(row["kept"].values()) == mask.size - mask.size // 2
        assert row["emptied"] == sum(not count for count in row["kept"].values())
    assert (out / "density.png").read_bytes().startswith(PNG)


def test_force_replaces_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(["lottery", *SMALL, "--levels", "1", "--empty-controls", "--out", str(out)])
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["lottery", *SMALL, "--levels", "1", "--out", str(out)])
    main(["init-prune", *SMALL, "--score", "erk", "--ratios", "0.5", "--out", str(out), "--force"])
    assert not (out / "seed-0").exists()
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["early-bird", "--model", "vgg16"], "images (got 8 x 8), expected 32 x 32 or more for vgg16"),
        (["early-bird", "--model", "lenet"], "got no batch normalization with scales"),
        (["early-bird", "--ratios", "1"], "prune ratio (got 1.0), expected 0 <= ratio < 1"),
        (["lottery", "--data", "nowhere"], "images (got 'nowhere'), expected 'digits'"),
        (["lottery", "--levels", "0"], "levels (got 0), expected at least 1"),
        (["init-prune", "--score", "luck"], "luck"),
        (["init-prune", "--seeds", "0"], "--seeds (got 0), expected at least 1"),
        (["init-prune", "--data", "mnist", "--data-root", "."], "expected MNIST's own file of that name"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as left:
        main([*arguments, *SMALL, "--out", str(out)])
    assert left.value.code == 2
    lines: Any = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not out.exists()


def test_mining_needs_an_epoch_before_its_freezing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init-prune", "--score", "gem-miner", "--images", "96", "--epochs", "1", "--out", str(tmp_path / "run")])
    assert "--epochs (got 1), expected at least 2 for gem-miner" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
