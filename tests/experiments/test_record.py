"""Run folders: nothing overwritten unasked, nothing foreign removed, records checked when read."""

import json

import pytest

from gebt.experiments.record import RunFolder, machine, read_record


def test_a_record_comes_back_with_its_schema(tmp_path):
    RunFolder(tmp_path / "run").write({"complete": True})
    assert read_record(tmp_path / "run") == {"schema": 1, "complete": True}


def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--out \(got .*, not empty\).*--force"):
        RunFolder(tmp_path)


def test_force_removes_a_run_and_nothing_else(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.write({})
    ticket = run.ticket(1, 2)
    ticket.parent.mkdir()
    ticket.write_bytes(b"old")
    kept = tmp_path / "run" / "notes.txt"
    kept.write_text("mine")
    mine = tmp_path / "run" / "seed-9" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    again = RunFolder(tmp_path / "run", force=True)
    assert sorted(path.name for path in again.path.iterdir()) == ["notes.txt", "seed-9"]
    assert mine.read_text() == kept.read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        RunFolder(tmp_path / "run", force=True)


def test_default_names_never_collide(tmp_path):
    assert RunFolder.named("a", tmp_path).name == "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert RunFolder.named("a", tmp_path).name == "a-3"


def test_tickets_lie_in_the_folder_or_one_a_seed(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.ticket(0, 1) == tmp_path / "ticket.safetensors"
    assert folder.ticket(3, 10) == tmp_path / "seed-3" / "ticket.safetensors"


@pytest.mark.parametrize("text", ["", "[1]", "{", json.dumps({"schema": 0})])
def test_broken_records_are_refused(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match=r"record .*record.json \(got "):
        read_record(tmp_path)


def test_the_machine_is_named():
    assert {"processor", "threads", "torch", "python"} <= machine().keys()
