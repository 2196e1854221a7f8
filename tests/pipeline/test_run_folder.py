"""A run folder belongs to one config; what code has learnt since the run began does not make it another."""

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from pipeline.config import Section
from pipeline.errors import InputError
from pipeline.run_folder import make_folders, prepare


class Before(Section):
    lr: float = 0.1


class Now(Before):
    name: str = "x"
    floor: float = Field(default=0.0, ge=0)
    """A field that came later."""


def test_a_field_that_came_later_is_at_its_default_in_older_runs(tmp_path: Path) -> None:
    make_folders(tmp_path)
    prepare(tmp_path, Before())
    with pytest.raises(InputError, match="belongs to another config: floor differ"):
        prepare(tmp_path, Now(floor=0.5))
    prepare(tmp_path, Now())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"lr": 0.1, "name": "x", "floor": 0.0}


def test_a_key_that_this_code_does_not_know_differs(tmp_path: Path) -> None:
    make_folders(tmp_path)
    prepare(tmp_path, Now())
    with pytest.raises(InputError, match="belongs to another config: floor, name differ"):
        prepare(tmp_path, Before())
