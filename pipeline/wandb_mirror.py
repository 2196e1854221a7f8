"""A mirror of `metrics.jsonl` in wandb. The file is the truth; wandb being absent, down or full never stops a run.

    mirror = WandbMirror.start(run_folder, mode="auto", project="clip-vip", config={...})
    mirror.log(120, {"train/loss": 3.2})
    python -m pipeline.wandb_mirror runs/NAME [online | offline]      # the whole run anew, from metrics.jsonl

The run's id lies in `wandb/run_id`, so that every start goes on with the same wandb run; without a login the segments
are written offline under that id, for `wandb sync` or for the rebuild above.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.config import read_yaml
from pipeline.errors import InputError, RunError, run_command
from pipeline.log import logger, quiet, read_metrics

Mode = Literal["auto", "online", "offline", "off"]
INIT_LIMIT_S = 30
FINISH_LIMIT_S = 60
"""What is not uploaded by then waits on the disk; wandb's own limit is none, and a signal leaves little time."""


class WandbMirror:
    """One wandb run, or nothing when that is off or does not work."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def start(cls, run_folder: Path, *, mode: Mode, project: str, config: dict[str, Any]) -> Self:
        """Go on with the run's wandb run, or begin it. Falls back from online to offline, then to nothing."""
        if mode == "off":
            return cls(None)
        wanted = _resolve(mode)
        run = _guarded(lambda: _init(run_folder, wanted, project, config, _run_id(run_folder)), f"{wanted} start")
        if run is None and wanted == "online":
            logger.warning("wandb: going on offline")
            _guarded(_forget_failed_start, "the clean-up")
            run = _guarded(lambda: _init(run_folder, "offline", project, config, _run_id(run_folder)), "offline start")
        return cls(run)

    @property
    def is_active(self) -> bool:
        """Whether anything is mirrored."""
        return self._run is not None

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Mirror a line."""
        if self._run is not None and _guarded(lambda: _log(self._run, step, values), "logging") is None:
            self._run = None

    def log_examples(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        """A table of retrieval examples; pictures are uint8 arrays [H, W, 3]."""
        if self._run is not None:
            _guarded(lambda: _log_table(self._run, step, columns, rows), "the table of examples")

    def finish(self) -> None:
        """End this segment."""
        if self._run is not None:
            _guarded(lambda: self._run.finish() or True, "the end")


def _guarded(action: Callable[[], Any], what: str) -> Any:
    """What `action` returns, or None with a warning: whatever wandb does, training goes on."""
    try:
        with quiet():
            return action()
    except Exception as error:
        logger.warning(f"wandb: {what} failed, the mirror stops here: {' '.join(str(error).split())[:200]}")
        return None


def _resolve(mode: Mode) -> Literal["online", "offline"]:
    if mode == "auto":
        has_login = bool(os.environ.get("WANDB_API_KEY")) or _netrc_names_wandb()
        return "online" if has_login else "offline"
    return "online" if mode == "online" else "offline"


def _netrc_names_wandb() -> bool:
    path = Path(os.environ.get("NETRC", str(Path.home() / ".netrc")))
    try:
        return "wandb" in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _run_id(run_folder: Path) -> str:
    path = run_folder / "wandb" / "run_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or not path.read_text(encoding="utf-8").strip("\0\n "):  # a power cut may leave it empty
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _init(
    run_folder: Path, mode: Literal["online", "offline"], project: str, config: dict[str, Any], run_id: str
) -> Any:
    import wandb

    run = wandb.init(
        id=run_id,
        resume="allow",
        project=project,
        name=run_folder.name,
        dir=str(run_folder),
        mode=mode,
        config=config,
        settings=wandb.Settings(init_timeout=INIT_LIMIT_S, finish_timeout=FINISH_LIMIT_S, console="off", silent=True),
    )
    for name in ("config.yaml", "code.json"):
        run.save(str(run_folder / name), base_path=str(run_folder), policy="now")
    return run


def _forget_failed_start() -> None:
    """The service of a start that failed holds on to the run's id, and a second start under it would fail as well."""
    import wandb

    wandb.teardown()


def _log(run: Any, step: int, values: dict[str, Any]) -> bool:
    run.log(values, step=step)
    return True


def _log_table(run: Any, step: int, columns: list[str], rows: list[list[Any]]) -> bool:
    import wandb

    shown = [[cell if isinstance(cell, str | int | float) else wandb.Image(cell) for cell in row] for row in rows]
    run.log({"eval/examples": wandb.Table(columns=columns, data=shown)}, step=step)
    return True


def main(argv: list[str]) -> int:
    """Rebuild a run in wandb from its metrics.jsonl, under a new id."""
    if not argv or argv[0] in ("-h", "--help") or len(argv) > 2:
        print(__doc__)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    run_folder = Path(argv[0])
    modes: dict[str, Mode] = {"auto": "auto", "online": "online", "offline": "offline"}
    mode = modes.get(argv[1] if len(argv) == 2 else "auto")
    if mode is None:
        raise InputError(f"{argv[1]!r} is neither online nor offline")
    rows = read_metrics(run_folder / "metrics.jsonl")
    if not rows:
        raise InputError(f"{run_folder}/metrics.jsonl has no line; give a run folder")
    config = read_yaml(run_folder / "config.yaml")
    (run_folder / "wandb").mkdir(exist_ok=True)
    (run_folder / "wandb" / "run_id").write_text(secrets.token_hex(4), encoding="utf-8")
    project = config.get("log", {}).get("wandb_project", "clip-vip")
    mirror = WandbMirror.start(run_folder, mode=mode, project=project, config=config)
    for row in rows:
        mirror.log(row["step"], {key: value for key, value in row.items() if key != "step"})
    if not mirror.is_active:
        raise RunError("wandb could not take the run; the reason is above")
    mirror.finish()
    print(f"{len(rows)} steps of {run_folder} went to wandb run {_run_id(run_folder)}")
    return 0


if __name__ == "__main__":
    run_command(main)
