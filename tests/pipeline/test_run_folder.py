"""A run folder belongs to one config; what code has learnt since the run began does not make it another."""

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from pipeline.config import Section
from pipeline.errors import InputError
from pipeline.run_folder import CHANGEABLE, conflict, has_steps, make_folders, prepare


class Before(Section):
    lr: float = 0.1


class Now(Before):
    name: str = "x"
    floor: float = Field(default=0.0, ge=0)
    """A field that came later."""


def make_a_step(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


def test_a_field_that_came_later_is_at_its_default_in_older_runs(tmp_path: Path) -> None:
    make_folders(tmp_path)
    assert prepare(tmp_path, Before()) == []
    make_a_step(tmp_path)
    with pytest.raises(InputError, match=r"belongs to another config: floor \(0.0 there, 0.5 now\); choose"):
        prepare(tmp_path, Now(floor=0.5))
    assert prepare(tmp_path, Now()) == []
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"lr": 0.1, "name": "x", "floor": 0.0}


def test_a_key_that_this_code_does_not_know_differs(tmp_path: Path) -> None:
    """And no other: the options that both know are compared with defaults filled in."""
    make_folders(tmp_path)
    (tmp_path / "config.yaml").write_text("floor: 0.0\nname: x\n")
    make_a_step(tmp_path)
    with pytest.raises(InputError, match=r"config: floor \(0.0 there, nothing now\), name \(x there, nothing now\); "):
        prepare(tmp_path, Before())


@pytest.mark.parametrize("left", ["checkpoints/step_00000004", "checkpoints/damaged_step_00000004", "metrics.jsonl"])
def test_a_run_that_made_no_step_does_not_burn_its_name(tmp_path: Path, left: str) -> None:
    make_folders(tmp_path)
    prepare(tmp_path, Now(floor=0.5))
    (tmp_path / "metrics.jsonl").touch()  # what a start makes that fails at its first batch
    assert not has_steps(tmp_path)
    (note,) = prepare(tmp_path, Now(floor=0.7))
    assert "made no step yet" in note and "floor (0.5 there, 0.7 now)" in note
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["floor"] == 0.7
    if left == "metrics.jsonl":
        make_a_step(tmp_path)
    else:
        (tmp_path / left).mkdir()
    with pytest.raises(InputError, match=r"floor \(0.7 there, 0.5 now\)"):
        prepare(tmp_path, Now(floor=0.5))


def test_what_may_change_is_no_conflict(tmp_path: Path) -> None:
    class Batch(Section):
        global_batch_size: int = 8
        micro_batches: int = 1

    class Run(Section):
        batch: Batch = Batch()
        log: dict[str, int] = {}

    assert {"batch.micro_batches", "log"} <= set(CHANGEABLE)
    make_folders(tmp_path)
    prepare(tmp_path, Run())
    assert conflict(tmp_path, Run(batch=Batch(micro_batches=2), log={"every_steps": 3})) == ""
    found = conflict(tmp_path, Run(batch=Batch(global_batch_size=9)))
    assert found == "belongs to another config: batch.global_batch_size (8 there, 9 now)"
