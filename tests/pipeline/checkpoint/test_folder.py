"""Damage in any file is seen and the checkpoint before is taken; what a crash leaves behind is no checkpoint."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from pipeline import retry
from pipeline.checkpoint.folder import (
    COMPLETE,
    checkpoint_name,
    file_fact,
    find_damage,
    list_checkpoints,
    newest_intact,
    read_latest,
    remove_checkpoint,
    remove_staging,
    seal,
    set_aside,
    step_of,
    to_remove,
    write_atomically,
)
from pipeline.checkpoint.restore import choose_checkpoint
from pipeline.errors import InputError, RunError
from tests.pipeline.faults import failing

FILES = ("engine/mp_rank_00_model_states.pt", "model.safetensors", "rng.safetensors", "state.json", "config.yaml")


def write_checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / checkpoint_name(step)
    (folder / "engine").mkdir(parents=True)
    for number, name in enumerate(FILES):
        (folder / name).write_bytes(bytes((step + number + place) % 251 for place in range(200 + 37 * number)))
    seal(folder, {"step": step, "num_ranks": 1, "torch": "2"})
    write_atomically(run / "latest", f"checkpoints/{folder.name}\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    return tmp_path


def damage(path: Path, kind: str, where: float) -> None:
    content = bytearray(path.read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    if kind == "removed":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[:place])
    elif kind == "appended":
        path.write_bytes(content + b"\0")
    else:
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, COMPLETE])
@pytest.mark.parametrize(
    ("kind", "where"),
    [("removed", 0.0), ("appended", 0.0)]
    + [("truncated", where) for where in (0.0, 0.01, 0.5, 0.999)]
    + [("flipped", where) for where in (0.0, 0.13, 0.37, 0.61, 0.83, 1.0)],
)
def test_damage_is_seen_and_the_checkpoint_before_is_taken(run, name, kind, where):
    newest = run / "checkpoints/step_00000020"
    damage(newest / name, kind, where)
    if find_damage(newest) is None:
        # A flip within white space, or a letter's case in an escape, can leave the same JSON.
        assert name == COMPLETE
        assert json.loads((newest / COMPLETE).read_text())["step"] == 20
        return
    found, problems = newest_intact(run)
    assert found == run / "checkpoints/step_00000010"
    assert len(problems) == 1
    assert "step_00000020" in problems[0]


def test_an_intact_run_has_no_problem(run):
    assert newest_intact(run) == (run / "checkpoints/step_00000020", [])


def test_latest_may_be_missing_stale_or_nonsense(run):
    assert read_latest(run) == run / "checkpoints/step_00000020"
    for text in (None, "", "checkpoints/step_00000099\n", "\0\xff"):
        (run / "latest").unlink(missing_ok=True)
        if text is not None:
            (run / "latest").write_bytes(text.encode("latin-1"))
        assert read_latest(run) is None
        assert newest_intact(run)[0] == run / "checkpoints/step_00000020"


def test_a_crash_leaves_nothing_that_counts(run):
    staging = run / "checkpoints/.staging-00000030-ab"
    staging.mkdir()
    (staging / "model.safetensors").write_bytes(b"half")
    (run / "checkpoints/step_00000030").mkdir()
    (run / ".latest.1.tmp").write_text("half")
    found, problems = newest_intact(run)
    assert found == run / "checkpoints/step_00000020"
    assert "not finished" in problems[0]
    remove_staging(run)
    assert not staging.exists()
    assert not (run / ".latest.1.tmp").exists()


def test_foreign_names_are_not_checkpoints(run):
    for name in ("step_", "step_abc", "step_00000030.bak", "old"):
        (run / "checkpoints" / name).mkdir()
    assert [folder.name for folder in list_checkpoints(run)] == ["step_00000010", "step_00000020"]


def test_a_damaged_checkpoint_takes_no_place_of_a_good_one(run):
    for step in (10, 20):
        damage(run / f"checkpoints/step_{step:08d}" / "state.json", "flipped", 0.5)
    write_checkpoint(run, 15)
    assert choose_checkpoint(run, "auto") == run / "checkpoints/step_00000015"
    assert [step_of(folder) for folder in list_checkpoints(run)] == [10, 15], "only what was passed over is renamed"
    assert (run / "checkpoints/damaged_step_00000020/state.json").exists()
    damage(write_checkpoint(run, 20) / "state.json", "flipped", 0.5)
    assert choose_checkpoint(run, "auto") == run / "checkpoints/step_00000015"
    assert (run / "checkpoints/damaged_step_00000020_2/state.json").exists()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_latest_names_the_checkpoint_that_a_run_goes_on_from(run, is_damaged):
    """Also where the run died before it could write `latest`, and where what `latest` names is damaged."""
    if is_damaged:
        damage(run / "checkpoints/step_00000020/state.json", "flipped", 0.5)
    else:
        write_atomically(run / "latest", "checkpoints/step_00000010\n")
    chosen = choose_checkpoint(run, "auto")
    assert chosen == run / f"checkpoints/step_000000{10 if is_damaged else 20}"
    assert read_latest(run) == chosen


def test_where_none_is_intact_all_stay_where_they_are(run):
    for step in (10, 20):
        damage(run / f"checkpoints/step_{step:08d}" / "state.json", "flipped", 0.5)
    with pytest.raises(RunError, match="none is intact"):
        choose_checkpoint(run, "auto")
    assert [step_of(folder) for folder in list_checkpoints(run)] == [10, 20]


def test_what_a_rank_reported_must_be_there_before_a_checkpoint_counts(tmp_path):
    (tmp_path / "part").write_bytes(b"four")
    fact = file_fact(tmp_path / "part")
    for reported, error in (({"part": fact, "other": fact}, "other"), ({"part": fact | {"bytes": 5}}, "has 4 bytes")):
        with pytest.raises(OSError, match=error):
            seal(tmp_path, {"step": 1}, reported)
        assert not (tmp_path / COMPLETE).exists()
    (tmp_path / "ours").write_bytes(b"whole")
    seal(tmp_path, {"step": 1}, {"part": fact})
    assert sorted(json.loads((tmp_path / COMPLETE).read_text())["files"]) == ["ours", "part"]
    assert find_damage(tmp_path) is None


def test_removing_and_setting_aside(run):
    remove_checkpoint(run / "checkpoints/step_00000010")
    assert [folder.name for folder in list_checkpoints(run)] == ["step_00000020"]
    (run / "metrics.jsonl").write_text("lines")
    (run / "wandb").mkdir()
    (run / "wandb/run_id").write_text("first")
    set_aside(run)
    assert list_checkpoints(run) == []
    assert (run / "checkpoints_before_1/step_00000020").is_dir()
    assert (run / "metrics_before_1.jsonl").read_text() == "lines"
    assert (run / "wandb/run_id_before_1").read_text() == "first"
    assert not (run / "metrics.jsonl").exists()
    assert not (run / "wandb/run_id").exists()
    assert read_latest(run) is None
    set_aside(run)
    assert not (run / "checkpoints_before_2").exists()
    (run / "metrics.jsonl").write_text("more")
    set_aside(run)
    assert (run / "metrics_before_2.jsonl").exists()


@pytest.mark.parametrize(
    ("steps", "keep_last", "keep_every", "protected", "expected"),
    [
        ([10, 20, 30, 40], 1, 0, set(), [10, 20, 30]),
        ([10, 20, 30, 40], 2, 20, set(), [10]),
        ([10, 20, 30, 40], 1, 0, {10}, [20, 30]),
        ([10], 3, 0, set(), []),
    ],
)
def test_keep_policy(steps, keep_last, keep_every, protected, expected):
    assert to_remove(steps, keep_last=keep_last, keep_every=keep_every, protected=protected) == expected


NAMES = (*FILES, COMPLETE, "checkpoints")
ERRORS = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)


@pytest.mark.parametrize("name", NAMES)
def test_a_read_that_fails_once_takes_no_checkpoint_away(run, monkeypatch, name):
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
    for number in ERRORS:
        with failing(name, number, times=2):
            assert choose_checkpoint(run, "auto") == run / "checkpoints/step_00000020"
    assert [step_of(folder) for folder in list_checkpoints(run)] == [10, 20]


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_read_is_an_error_with_its_path_and_no_damage(run, monkeypatch, name):
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
    for number in ERRORS:
        with failing(name, number), pytest.raises(RunError, match=rf"cannot read {run}.*{name}: .*tried 3 times"):
            choose_checkpoint(run, "auto")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000010", "step_00000020"]
    assert choose_checkpoint(run, "auto") == run / "checkpoints/step_00000020"


@pytest.mark.parametrize("others", [True, False])
def test_a_checkpoint_under_the_name_of_another_step_is_refused(run, others):
    """It would go on from step 20 with the counters of step 30, or hide that 21 to 30 are lost."""
    shutil.move(run / "checkpoints/step_00000020", run / "checkpoints/step_00000030")
    said = "step_00000030: holds step 20 by its COMPLETE.json; the folder was renamed from step_00000020"
    assert said in (find_damage(run / "checkpoints/step_00000030") or "")
    if others:
        assert choose_checkpoint(run, "auto") == run / "checkpoints/step_00000010"
        assert (run / "checkpoints/renamed_step_00000030/state.json").exists(), "it is not called damaged"
    else:
        remove_checkpoint(run / "checkpoints/step_00000010")
        with pytest.raises(RunError, match=said):
            choose_checkpoint(run, "auto")
        with pytest.raises(InputError, match=said):
            choose_checkpoint(run / "empty", str(run / "checkpoints/step_00000030"))


def test_a_checkpoint_of_any_other_name_may_be_named(run):
    kept = run / "kept_for_the_paper"
    shutil.copytree(run / "checkpoints/step_00000020", kept)
    assert find_damage(kept) is None


def test_starting_over_sets_aside_whatever_lies_there(run):
    """Also what another config left; the launcher's folder and the claim stay, nothing is lost and nothing mixes."""
    files = ("metrics.jsonl", "config.yaml", "code.json", "COMPLETE", "best", "logs/rank_00000.log", "demo.png")
    files += ("export/model.json", "evaluation/sample.json", "wandb/run_id", "jobs/submissions.jsonl", "owner.json")
    for name in files:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    before = sorted(path.read_text("latin-1") for path in run.rglob("*") if path.is_file())
    set_aside(run)
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "_before_1" not in str(path)}
    assert left == {"jobs/submissions.jsonl", "owner.json"}
    assert sorted(path.read_text("latin-1") for path in run.rglob("*") if path.is_file()) == before
    assert (run / "config_before_1.yaml").read_text() == "config.yaml"
    assert set_aside(run) == []
    (run / "config.yaml").write_text("again")
    assert set_aside(run) == ["config_before_2.yaml"]
