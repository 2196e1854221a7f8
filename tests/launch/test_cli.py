"""`clip-vip`: every command has a module with a `main`, and nothing is imported before it is asked for."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import COMMANDS, entry_of, main, split
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]


def clip_vip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there(command: str) -> None:
    assert callable(importlib.import_module(entry_of(command)).main)


def test_the_overview_needs_no_torch() -> None:
    code = (
        "import sys; from launch.cli import main; code = main(['--help']); "
        "assert code == 0 and 'torch' not in sys.modules and 'numpy' not in sys.modules, code"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "a.yaml", "steps=3"], ("train", ["a.yaml", "steps=3"])),
        (["slurm", "pretrain", "--nodes", "8"], ("slurm pretrain", ["--nodes", "8"])),
        (["evaluate", "compare", "runs/a"], ("evaluate", ["compare", "runs/a"])),
    ],
)
def test_arguments_go_to_the_command_as_they_are(argv: list[str], expected: tuple[str, list[str]]) -> None:
    assert split(argv) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["trian"], "did you mean 'train'"), (["slurm", "train"], "slurm takes one of: shards"), (["slurm"], "one of")],
)
def test_an_unknown_command_names_the_nearest(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(argv)


def test_exit_codes_and_one_line_errors() -> None:
    done = clip_vip("merge", "/nowhere/at/all")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert clip_vip("--version").stdout.startswith("clip-vip ")
    assert clip_vip().returncode == 2


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell gets when TAB is pressed after `clip-vip slurm pre`."""
    line, answer = "clip-vip slurm pre", tmp_path / "answer"
    words = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    subprocess.run([sys.executable, "-m", "launch.cli"], cwd=ROOT, capture_output=True, timeout=120, check=True)
    assert answer.read_text().split() == ["pretrain"]
