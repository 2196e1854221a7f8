"""wandb absent, broken or down never stops a run; what it gets comes from the lines of metrics.jsonl."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import wandb_mirror
from pipeline.errors import InputError, RunError
from pipeline.wandb_mirror import WandbMirror


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.saved: list[str] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def save(self, path: str, base_path: str, policy: str) -> None:
        self.saved.append(path)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A wandb that notes what it is told; `wandb.broken` holds the modes in which it fails to start."""
    fake = SimpleNamespace(runs=[], inits=[], broken=set(), Settings=lambda **settings: settings)
    fake.teardown = lambda: None

    def init(**settings: Any) -> FakeRun:
        fake.inits.append(settings)
        if settings["mode"] in fake.broken:
            raise ConnectionError("the server is down")
        fake.runs.append(FakeRun())
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    return fake


def start(folder: Any, mode: Any = "auto") -> WandbMirror:
    return WandbMirror.start(folder, mode=mode, project="p", config={"a": 1})


def test_the_end_has_a_limit(tmp_path, wandb):
    """wandb's own is none: a slow upload would hold an allocation, or outlast the time that a signal leaves."""
    start(tmp_path)
    assert wandb.inits[0]["settings"]["finish_timeout"] == wandb_mirror.FINISH_LIMIT_S


def test_off_does_not_even_import_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = start(tmp_path, "off")
    mirror.log(1, {"a": 2})
    assert not mirror.is_active


def test_an_absent_wandb_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = start(tmp_path, "online")
    mirror.log(1, {"a": 2})
    mirror.finish()
    assert not mirror.is_active


def test_every_start_goes_on_with_the_same_run(tmp_path, wandb):
    for step in (1, 2):
        mirror = start(tmp_path)
        mirror.log(step, {"train/loss": 3.0})
        mirror.finish()
    first, second = wandb.inits
    assert first["id"] == second["id"] == (tmp_path / "wandb/run_id").read_text()
    assert first["mode"] == "online"
    assert first["resume"] == "allow"
    assert first["config"] == {"a": 1}
    assert wandb.runs[0].saved == [str(tmp_path / "config.yaml"), str(tmp_path / "code.json")]
    assert [run.logged for run in wandb.runs] == [[(1, {"train/loss": 3.0})], [(2, {"train/loss": 3.0})]]
    assert all(run.finished for run in wandb.runs)


def test_without_a_login_it_is_offline(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    start(tmp_path)
    assert wandb.inits[0]["mode"] == "offline"


def test_a_server_that_is_down_leaves_the_offline_run(tmp_path, wandb):
    wandb.broken = {"online"}
    assert start(tmp_path).is_active
    assert [settings["mode"] for settings in wandb.inits] == ["online", "offline"]


@pytest.mark.heavy
def test_a_server_that_cannot_be_reached_leaves_a_real_offline_run(tmp_path):
    """The real wandb, in a process of its own: nobody listens at that address."""
    for name in ("config.yaml", "code.json", "metrics.jsonl"):
        (tmp_path / name).write_text('{"step": 1, "train/loss": 2.0}\n' if name == "metrics.jsonl" else "{}")
    code = (
        "import sys; from pathlib import Path; from pipeline import wandb_mirror\n"
        "wandb_mirror.INIT_LIMIT_S = 3\n"
        "mirror = wandb_mirror.WandbMirror.start(Path(sys.argv[1]), mode='online', project='p', config={'a': 1})\n"
        "assert mirror.is_active; mirror.log(1, {'x': 1.0}); mirror.finish()\n"
        "assert wandb_mirror.main([sys.argv[1], 'offline']) == 0\n"
    )
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, timeout=120)
    recorded = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in recorded}) == 2, "the run, and its rebuild under a new id"
    assert all(path.stat().st_size > 0 for path in recorded)


def test_failing_in_the_middle_ends_the_mirror_only(tmp_path, wandb, monkeypatch):
    mirror = start(tmp_path)
    monkeypatch.setattr(wandb.runs[0], "log", lambda *_, **__: 1 / 0)
    mirror.log(1, {"a": 1})
    mirror.log(2, {"a": 2})
    assert not mirror.is_active


def test_rebuild_sends_every_line_under_a_new_id(tmp_path, wandb, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train/loss": 2.0}\n{"step": 6, "train/loss": 1.0}\n')
    (tmp_path / "config.yaml").write_text("log: {wandb_project: mine}\n")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/run_id").write_text("old")
    assert wandb_mirror.main([str(tmp_path), "online"]) == 0
    assert wandb.runs[0].logged == [(3, {"train/loss": 2.0}), (6, {"train/loss": 1.0})]
    assert wandb.inits[0]["project"] == "mine"
    assert wandb.inits[0]["id"] != "old"
    assert "2 steps" in capsys.readouterr().out
    wandb.broken = {"online", "offline"}
    with pytest.raises(RunError):
        wandb_mirror.main([str(tmp_path), "online"])
    with pytest.raises(InputError):
        wandb_mirror.main([str(tmp_path / "nowhere")])
