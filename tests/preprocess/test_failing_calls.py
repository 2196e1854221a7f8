"""Single system calls fail, as on a stuttering mount: a shard comes out with the same bytes, or not at all."""

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from preprocess.config import PreprocessConfig
from preprocess.planning import make_plan

Values = dict[str, Any]
Case = tuple[str, str, int, int]
"""Folder, call, errno, which of the calls (0: every one)."""
HERE = Path(__file__).parent
READ_ERRORS = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EACCES)
WRITE_ERRORS = (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, HERE / "failing_calls.c", "-ldl"], check=True)
    return path


def remux(source: Path, path: Path) -> None:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(source), "-c", "copy", str(path)]
    subprocess.run(command, check=True)


def one_shard(folder: Path, painted: Callable[..., Path], hdvila: Callable[..., Path], suffixes: list[str]) -> Values:
    """A set of one shard, of a video per kind of container, large enough for several reads each."""
    videos = folder / "videos"
    videos.mkdir()
    source = painted(folder / "source.mp4", size=(256, 192), num_frames=75, options={"g": "50", "bf": "2"})
    for suffix in suffixes:
        remux(source, videos / f"v_{suffix}.{suffix}")
    hdvila(folder / "m.jsonl", {f"v_{name}": [(f"{name}.1", 0.1, 1.0), (f"{name}.2", 0.9, 2.9)] for name in suffixes})
    values = {
        "output": str(folder / "shards"),
        "metadata": {"files": [str(folder / "m.jsonl")]},
        "videos": {"templates": [str(videos / "{video_id}.{ext}")], "extensions": suffixes},
        "clips": {"fps": 5, "size_px": 32},
    }
    config = PreprocessConfig.model_validate(values)
    make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)
    return values


def run_cases(values: Values, cases: list[Case], shim: Path, folder: Path) -> list[dict[str, Any]]:
    (folder / "set.yaml").write_text(yaml.safe_dump(values))
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, str(HERE / "failing_shard.py"), str(folder / "set.yaml"), str(folder / "cases.json")]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(case: Case, answer: dict[str, Any], wanted: list[str], values: Values) -> None:
    """The same bytes, or an error that names a path and the same bytes from the next run; no leftovers."""
    where = (case, answer)
    assert answer["after"] == wanted and answer["found"] in ([], wanted), where
    assert answer["found"] or answer["said"], where
    if answer["said"]:
        folder = str(Path(values["videos"]["templates"][0]).parent) if case[0] == "videos" else "/set"
        assert folder in answer["said"] and os.strerror(case[2]) in answer["said"], where
    assert not answer["left"], where


@pytest.mark.heavy
def test_a_call_that_fails_once_or_for_good(
    shim: Path, painted: Callable[..., Path], hdvila: Callable[..., Path], tmp_path: Path
) -> None:
    """Once: reading costs nothing, as it is tried again. For good: the shard fails, not its clips."""
    values = one_shard(tmp_path, painted, hdvila, ["mp4", "ts"])
    once: list[Case] = [
        ("videos", "stat", errno.ESTALE, 1),
        ("videos", "open", errno.ENOTCONN, 3),
        *(("videos", "read", READ_ERRORS[at % 4], at) for at in (1, 6, 9, 12)),
    ]
    for_good: list[Case] = [("videos", call, errno.EIO, 0) for call in ("stat", "read")]
    writing: list[Case] = [
        ("output", "write", errno.ENOSPC, 1),
        ("output", "rename", errno.EROFS, 2),
        ("output", "fsync", errno.ESTALE, 1),
    ]
    cases = [("videos", "none", 0, 0), *once, *for_good, *writing]
    first, *answers = run_cases(values, cases, shim, tmp_path)
    assert first["found"] and not first["said"]
    for case, answer in zip(cases[1:], answers, strict=True):
        check(case, answer, first["found"], values)
        assert answer["num_calls"] >= max(1, case[3]), (case, answer)
        assert bool(answer["found"]) == (case in once), (case, answer)


def searches(share: float) -> Iterator[random.Random]:
    """Generators from SOAK_SEED on, for this share of SOAK_MINUTES: the same seed makes the same search."""
    ends = time.monotonic() + 60 * share * float(os.environ.get("SOAK_MINUTES", "5"))
    for seed in itertools.count(int(os.environ.get("SOAK_SEED", "1000"))):
        yield random.Random(seed)
        if time.monotonic() > ends:
            return


@pytest.mark.soak
@pytest.mark.timeout(36_000)
def test_any_call_that_fails(
    shim: Path, painted: Callable[..., Path], hdvila: Callable[..., Path], tmp_path: Path
) -> None:
    values = one_shard(tmp_path, painted, hdvila, ["mp4", "mkv", "ts", "avi"])
    counted = [("videos", call, errno.EIO, 1_000_000) for call in ("stat", "open", "read")]
    counted += [("output", call, errno.EIO, 1_000_000) for call in ("open", "write", "rename", "fsync", "stat")]
    first, *counts = run_cases(values, [("videos", "none", 0, 0), *counted], shim, tmp_path)
    for draw in searches(0.5):
        cases: list[Case] = []
        for (folder, call, _, _), answer in zip(counted, counts, strict=True):
            error = draw.choice(READ_ERRORS if folder == "videos" else WRITE_ERRORS)
            cases.append((folder, call, error, draw.randint(1, max(1, answer["num_calls"]))))
        for case, answer in zip(cases, run_cases(values, cases, shim, tmp_path), strict=True):
            check(case, answer, first["found"], values)


def digest(output: Path) -> dict[str, str]:
    """Hashes of everything that training and the account read."""
    names = ["shards/*", "failures/*.parquet", "manifest.parquet", "stats.json"]
    files = [path for name in names for path in sorted(output.glob(name)) if not path.name.startswith(".")]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_job(values: Values, below: Path, shim: Path, case: tuple[str, int, int]) -> tuple[int, str, int]:
    """Exit code, last words and number of calls of `preprocess.run` with one failing call anywhere below a folder."""
    marks = below.parent / "marks"
    shutil.rmtree(marks, ignore_errors=True)
    marks.mkdir()
    (below / "set.yaml").write_text(yaml.safe_dump(values))
    failing = {"FAIL_BELOW": str(below), "FAIL_CALL": case[0], "FAIL_ERRNO": str(case[1]), "FAIL_AT": str(case[2])}
    environment = {**os.environ, **failing, "FAIL_MARKS": str(marks), "LD_PRELOAD": str(shim)}
    command = [sys.executable, "-m", "preprocess.run", str(below / "set.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr, len(list(marks.iterdir()))


@pytest.mark.soak
@pytest.mark.timeout(36_000)
def test_any_call_of_a_whole_job(shim: Path, make_small_set: Callable[[Path], Values], tmp_path: Path) -> None:
    """Metadata, texts, videos, plan, shards: all lie on the file system that fails once."""
    below = tmp_path / "mount"
    values = {**make_small_set(below), "workers": 2}
    output = Path(values["output"])
    num_calls = {}
    for call in ("open", "read", "stat", "rename", "fsync", "write"):
        shutil.rmtree(output, ignore_errors=True)
        code, said, num_calls[call] = run_job(values, below, shim, (call, errno.EIO, 1_000_000))
        assert code == 0, said
    wanted = digest(output)
    for draw in searches(0.5):
        shutil.rmtree(output)
        call = draw.choice(list(num_calls))
        error = draw.choice(WRITE_ERRORS if call in ("rename", "fsync", "write") else READ_ERRORS)
        case = (call, error, draw.randint(1, max(1, num_calls[call])))
        code, said, _ = run_job(values, below, shim, case)
        if code:
            last = said.strip().splitlines()[-1]
            assert code == 1 and last.startswith(("error: ", "machine fault: ")) and str(below) in last, (case, said)
            code, said, _ = run_job(values, below, shim, (call, 0, 1_000_000))
        assert code == 0 and digest(output) == wanted, (case, said)
