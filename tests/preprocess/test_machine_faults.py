"""A fault of the machine is not the data's fault: lost mounts, killed processes, suspended time, orphans."""

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.errors import InputError, MachineFault, RunError
from preprocess import faults, workers
from preprocess.clips import ClipsConfig
from preprocess.clock import LONGEST_GAP_S, Clock
from preprocess.config import PreprocessConfig
from preprocess.cut import cut_clips
from preprocess.faults import FileSystemFault, SourceFile, retried
from preprocess.ffmpeg_binary import ffmpeg_version, find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.planning import make_plan
from preprocess.presence import Seen, odds_of, seen_in
from preprocess.probe import probe_video
from preprocess.records import Clip, Media
from preprocess.run import main, run
from preprocess.shard import Tools, build_shard, shard_facts
from preprocess.trial import check_decode

Values = dict[str, Any]


def config_of(values: Values, **changes: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate({**values, **changes})


def write_config(values: Values, folder: Path) -> Path:
    path = folder / "set.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def digest(output: Path) -> dict[str, str]:
    names = ["shards/*.tar", "failures/*.parquet"]
    files = [path for name in names for path in sorted(output.glob(name))]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def failures(output: Path) -> dict[str, str]:
    rows = [row for path in output.glob("failures/*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["clip_id"]: row["reason"] for row in rows}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(faults, "SECOND_LOOK_PAUSE_S", 0.0)


@contextlib.contextmanager
def as_ffmpeg(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`script` in the place of ffmpeg; what is behind it is the real one."""
    path = folder / "ffmpeg"
    path.write_text(f'#!/bin/sh\n{script}\nexec {find_ffmpeg()} "$@"\n')
    path.chmod(0o755)
    cached = (find_ffmpeg, ffmpeg_version, check_decode)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("FFMPEG", str(path))
            for answer in cached:
                answer.cache_clear()
            yield
    finally:
        for answer in cached:
            answer.cache_clear()


def first_shard(config: PreprocessConfig) -> tuple[Any, Tools]:
    plan = make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)
    return plan.shard(0), Tools.open(config)


# Videos that are not there


def lose_folder(videos: Path) -> None:
    videos.rename(videos.with_name("elsewhere"))


def lose_content(videos: Path) -> None:
    lose_folder(videos)
    videos.mkdir()


def lose_folder_for_a_file(videos: Path) -> None:
    lose_folder(videos)
    videos.touch()


WAYS_TO_LOSE = [lose_folder, lose_content, pytest.param(lose_folder_for_a_file, marks=pytest.mark.slow)]


@pytest.mark.parametrize("lose", WAYS_TO_LOSE)
@pytest.mark.parametrize("by_index", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_root_that_is_lost_in_the_middle_stops_the_job(
    lose: Callable[[Path], None], by_index: bool, small_set: Values, tmp_path: Path
) -> None:
    if by_index:
        rows = "".join(f'{{"video_id": "-vid_{k}", "path": "videos/-vid_{k}.mp4"}}\n' for k in range(4))
        (tmp_path / "index.jsonl").write_text(rows)
        small_set = {**small_set, "videos": {"index": str(tmp_path / "index.jsonl")}}
        from preprocess.videos import prepare_videos

        prepare_videos(config_of(small_set).videos, config_of(small_set).output)
    config = config_of(small_set, texts={})
    shard, tools = first_shard(config)
    events = build_shard(shard, tools, shard_facts("test"))
    next(events)
    lose(tmp_path / "videos")
    with pytest.raises(MachineFault, match=r"videos held files when this job started.*mend the mount"):
        list(events)
    assert not list(config.output.glob("shards/*.parquet"))


@pytest.mark.parametrize("lose", WAYS_TO_LOSE)
def test_a_job_on_a_node_without_the_mount(
    lose: Callable[[Path], None], small_set: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong input for a new set; the machine's fault for a task of an array, and where it went well before."""
    first = config_of(small_set, tasks={"index": 0, "count": 2})
    run(first)
    lose(tmp_path / "videos")
    for tasks in ({"index": 1, "count": 2}, {"index": 0, "count": 1}):
        with pytest.raises(MachineFault, match=r"^\S+: videos\.templates: .*videos"):
            run(config_of(small_set, tasks=tasks))
    with pytest.raises(InputError, match="mount the file system"):
        run(config_of(small_set, output=str(tmp_path / "new")))
    assert len(list(first.output.glob("shards/*.parquet"))) == 1


def test_a_node_with_another_ffmpeg(small_set: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a task of an array the node is the odd one; alone the config is."""
    run(config_of(small_set, tasks={"index": 0, "count": 2}))
    monkeypatch.setattr("preprocess.claim.ffmpeg_version", lambda: "4.4.2")
    for tasks, kind in (({"index": 1, "count": 2}, MachineFault), ({}, InputError)):
        with pytest.raises(kind, match=r"differs in ffmpeg_version \(\S+ there, 4\.4\.2 now\)"):
            run(config_of(small_set, tasks=tasks))


def test_the_folder_of_subtitle_files_is_lost_in_the_middle(small_set: Values, tmp_path: Path) -> None:
    """That clips have no subtitle is the normal case, and so is an empty folder."""
    folder = tmp_path / "subtitles"
    folder.mkdir()
    texts = {"subtitles": [str(folder / "{video_id}.en.vtt")]}
    config = config_of(small_set, texts=texts)
    shard, tools = first_shard(config)
    list(build_shard(shard, tools, shard_facts("test")))
    (config.output / "shards" / "000000.parquet").unlink()
    (folder / "another.en.vtt").touch()
    tools = Tools.open(config)
    events = build_shard(shard, tools, shard_facts("test"))
    next(events)
    lose_folder(folder)
    with pytest.raises(MachineFault, match="subtitles held files when this job started"):
        list(events)
    with pytest.raises(InputError, match=r"there is no folder .*subtitles"):
        run(config_of(small_set, texts=texts, output=str(tmp_path / "new")))
    assert not list(config.output.glob("shards/*.parquet"))


def test_metadata_and_texts_on_the_lost_mount(small_set: Values, tmp_path: Path) -> None:
    run(config_of(small_set, tasks={"index": 0, "count": 2}))
    for name in ("subtitles.jsonl", "hdvila_part0.jsonl"):
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(MachineFault, match=f"(nothing matches|there is no) .*{name[:6]}"):
            run(config_of(small_set, tasks={"index": 1, "count": 2}))
        (tmp_path / "away").rename(tmp_path / name)
    run(config_of(small_set, tasks={"index": 1, "count": 2}))


def test_far_fewer_videos_than_before_are_a_lost_mount(small_set: Values, tmp_path: Path) -> None:
    """The folder is there and holds something; HD-VILA, where most are missing, is no such case."""
    config = config_of(small_set, texts={}, shards={"clips_per_shard": 100})
    for path in (tmp_path / "videos").glob("*.mp4"):
        path.rename(path.with_suffix(".away"))
    shard, tools = first_shard(config)
    with pytest.raises(MachineFault, match=r"4 of 4 videos of shards/000000 .*, and 1 of 1001 before"):
        list(build_shard(shard, tools, shard_facts("test"), before=Seen(1000, 1)))
    assert not list(config.output.glob("shards/*.parquet"))
    for before, odds in ((Seen(300, 700), 1e-6), (Seen(), 1e-6), (Seen(1000, 1), 0.0)):
        videos = config.videos.model_copy(update={"max_missing_odds": odds})
        other = config.model_copy(update={"videos": videos})
        list(build_shard(shard, Tools.open(other), shard_facts("test"), before=before))
        assert failures(config.output) == {f"-vid_{v}.{k}.mp4": "video_missing" for v in range(4) for k in range(3)}
        (config.output / "shards" / "000000.parquet").unlink()


def test_what_published_shards_tell_of_missing_videos(small_set: Values, tmp_path: Path) -> None:
    (tmp_path / "videos" / "-vid_1.mp4").unlink()
    config = config_of(small_set)
    run(config)
    assert seen_in(config.output, ["shards/000000", "shards/000001"]) == Seen(3, 1)


def test_odds_agree_with_counting() -> None:
    """Of 3 found and 1 missing, the next two are both missing in B(4, 4) / B(4, 2) = 1 / 7 of all cases."""
    assert odds_of(Seen(3, 1), Seen(0, 2)) == pytest.approx(1 / 7)
    assert odds_of(Seen(3, 1), Seen(2, 0)) == pytest.approx(1.0)
    assert odds_of(Seen(90, 10), Seen(0, 20)) < odds_of(Seen(50, 50), Seen(0, 20)) < odds_of(Seen(5, 95), Seen(0, 20))
    assert odds_of(Seen(30, 70), Seen(0, 33)) > 1e-6  # 30 % there: a shard of 33 without any is no proof


# Errors of the file system


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EACCES])
def test_an_error_is_tried_again_and_then_names_the_path(number: int) -> None:
    left = [OSError(number, os.strerror(number))] * 3

    def call() -> str:
        if left:
            raise left.pop()
        return "found"

    assert retried(call, Path("/videos/x.mp4")) == "found"
    left += [OSError(number, os.strerror(number))] * 4
    with pytest.raises(FileSystemFault, match=f"^{os.strerror(number)}: /videos/x.mp4$"):
        retried(call, Path("/videos/x.mp4"))


def test_no_such_file_is_an_answer() -> None:
    tries = []

    def call() -> None:
        tries.append(1)
        raise FileNotFoundError(errno.ENOENT, "No such file")

    with pytest.raises(FileNotFoundError):
        retried(call, Path("x"))
    assert len(tries) == 1


def test_a_source_file_reads_as_any_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20
    (tmp_path / "x").write_bytes(data)
    with SourceFile(tmp_path / "x", 60.0) as mine, open(tmp_path / "x", "rb") as theirs:
        for offset, whence, size in ((0, 0, 7), (100, 0, 50), (-20, 1, 5), (-3, 2, 10), (10_000, 0, 5), (0, 0, 9999)):
            assert mine.seek(offset, whence) == theirs.seek(offset, whence) == mine.tell()
            assert mine.read(size) == theirs.read(size)
        assert mine.seek(-1) == -1


# Processes that are killed

KILL_ONCE = 'case "$*" in *filter_complex*) if mkdir {mark} 2>/dev/null; then kill -{signal} $$; fi;; esac'


@pytest.mark.parametrize("name", ["KILL", *(pytest.param(name, marks=pytest.mark.slow) for name in ("TERM", "XFSZ"))])
def test_an_ffmpeg_that_is_killed_once_costs_nothing(
    name: str, small_set: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(small_set, texts={})
    shard, tools = first_shard(config)
    list(build_shard(shard, tools, shard_facts("test")))
    wanted = digest(config.output)
    other = config.model_copy(update={"output": tmp_path / "other"})
    script = KILL_ONCE.format(mark=tmp_path / "mark", signal=name)
    with as_ffmpeg(script, tmp_path, monkeypatch):
        shard, tools = first_shard(other)
        list(build_shard(shard, tools, shard_facts("test")))
    assert (tmp_path / "mark").exists() and digest(other.output) == wanted


def test_an_ffmpeg_that_is_killed_over_one_video_again_costs_that_video(
    small_set: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(small_set, texts={}, clips={**small_set["clips"], "fast": True}, shards={"clips_per_shard": 100})
    with as_ffmpeg('case "$*" in *-vid_2*) kill -KILL $$;; esac', tmp_path, monkeypatch):
        shard, tools = first_shard(config)
        list(build_shard(shard, tools, shard_facts("test")))
    assert failures(config.output) == {f"-vid_2.{k}.mp4": "memory_limit" for k in range(3)}


def test_an_ffmpeg_that_is_ended_from_outside_again_fails_the_shard(
    small_set: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No video brings about a SIGTERM."""
    config = config_of(small_set, texts={}, clips={**small_set["clips"], "fast": True}, shards={"clips_per_shard": 100})
    with as_ffmpeg('case "$*" in *-vid_2*) kill -TERM $$;; esac', tmp_path, monkeypatch):
        shard, tools = first_shard(config)
        with pytest.raises(RunError, match=r"-vid_2\.mp4: ffmpeg was ended by SIGTERM twice"):
            list(build_shard(shard, tools, shard_facts("test")))


@pytest.mark.parametrize("when", ["-version", "filter_complex"])
def test_a_self_test_that_is_killed_is_the_machine_s_fault(
    when: str, small_set: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = as_ffmpeg(f'case "$*" in *{when}*) kill -KILL $$;; esac', tmp_path, monkeypatch)
    with killed, pytest.raises(MachineFault, match=r"killed twice|ended by SIGKILL"):
        run(config_of(small_set))
    assert not list(Path(small_set["output"]).glob("shards/*"))


def test_a_self_test_without_room_is_the_machine_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    check_decode.cache_clear()
    monkeypatch.setattr("preprocess.trial.tempfile.TemporaryDirectory", full)
    with pytest.raises(MachineFault, match=r"self test .* No space left on device"):
        check_decode(ClipsConfig(), "1")


@pytest.mark.heavy
def test_a_worker_that_is_killed_once_costs_nothing(small_set: Values, tmp_path: Path) -> None:
    run(config_of(small_set))
    wanted = digest(Path(small_set["output"]))
    path = write_config({**small_set, "output": str(tmp_path / "killed")}, tmp_path)
    script = (
        "import os, sys, preprocess.shard as shard, multiprocessing\n"
        "real = shard.probe_video\n"
        "def deadly(path, limits):\n"
        "    if '-vid_2' in str(path) and not os.path.exists(MARK):\n"
        "        open(MARK, 'w').close()\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(path, limits)\n"
        "if multiprocessing.current_process().name != 'MainProcess': shard.probe_video = deadly\n"
        "else:\n"
        "    from preprocess.run import main\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "deadly.py").write_text(script.replace("MARK", repr(str(tmp_path / "mark"))))
    subprocess.run([sys.executable, str(tmp_path / "deadly.py"), str(path)], check=True, capture_output=True)
    assert (tmp_path / "mark").exists() and digest(tmp_path / "killed") == wanted


@pytest.mark.parametrize("name", ["SIGTERM", "SIGBUS"])
def test_what_no_video_brings_about_is_blamed_on_none(name: str) -> None:
    """SIGBUS is a mapped index of texts that cannot be read."""

    class Process:
        pid = None
        exitcode = -getattr(signal, name)

        def join(self) -> None:
            pass

    worker = workers._Worker(0, Process(), None, is_ready=True, shard=3, video_id="v")  # type: ignore[arg-type]
    queue = workers._Queue([], Seen())
    assert workers._bury(worker, queue) is None and queue.waiting == [3]
    failed = workers._bury(worker, queue)
    assert isinstance(failed, workers.ShardFailed) and name in failed.problem and not queue.poisoned[3]


# Suspended time


class Jumps:
    """A clock that can be put forward, as the monotonic one is while this process is stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real, self._ahead_s = time.monotonic, 0.0
        monkeypatch.setattr("preprocess.clock.time.monotonic", lambda: self._real() + self._ahead_s)

    def forward(self, seconds: float) -> None:
        self._ahead_s += seconds


def test_a_gap_between_two_looks_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = Jumps(monkeypatch)
    left_s = Clock(10.0).watch()
    for _ in range(5):
        jumps.forward(LONGEST_GAP_S / 2)
        left_s(False)
    assert 4.0 < left_s(False) <= 5.0
    jumps.forward(1000.0)
    assert 4.0 < left_s(False) <= 5.0
    jumps.forward(1.0)
    assert 4.0 < left_s(True) <= 5.0  # it was the process at work that was stopped
    jumps.forward(1.0)
    assert 3.0 < left_s(False) <= 4.0


def test_a_decode_that_is_suspended_delivers(
    painted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = painted(tmp_path / "x.mp4")
    jumps = Jumps(monkeypatch)
    from preprocess import cut

    real = cut.decode_frames_of

    def suspended(*arguments: Any) -> Iterator[Any]:
        for frame in real(*arguments):
            jumps.forward(50.0)
            yield frame

    monkeypatch.setattr(cut, "decode_frames_of", suspended)
    limits = LimitsConfig(time_s=60, memory_mb=2048)
    clips = [Clip("a", 0.0, 1.0), Clip("b", 1.0, 2.9)]
    outcomes = list(cut_clips(path, "v", probe_video(path, limits), clips, ClipsConfig(fps=5, size_px=48), limits))
    assert all(isinstance(outcome, Media) for outcome in outcomes) and len(outcomes) == 2


def test_workers_that_were_suspended_with_us_are_not_taken_for_silent(small_set: Values) -> None:
    worker = workers._Worker(0, None, None, is_ready=True, shard=3)  # type: ignore[arg-type]
    worker.heard_s = 100.0
    workers._forgive_gap([worker], 20.0)
    assert worker.heard_s == 100.0
    workers._forgive_gap([worker], 5000.0)
    assert worker.heard_s == 5100.0


# Orphans


@pytest.mark.heavy
def test_nothing_outlives_a_killed_job(small_set: Values, tmp_path: Path) -> None:
    """Neither workers nor ffmpegs, though these are in the middle of a decode that says nothing."""
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "ffmpeg"
    hang = f'case "$*" in *trial*|*-version*) ;; *filter_complex*) touch {tmp_path}/mark.$$; exec sleep 1000;; esac'
    wrapper.write_text(f'#!/bin/sh\n{hang}\nexec {find_ffmpeg()} "$@"\n')
    wrapper.chmod(0o755)
    values = {**small_set, "workers": 2, "clips": {**small_set["clips"], "fast": True}}
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.run", str(write_config(values, tmp_path))],
        env={**os.environ, "FFMPEG": str(wrapper)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(list(tmp_path.glob("mark.*"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert sum(child.name() == "sleep" for child in family) == 2
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


# What the command says


def test_a_machine_fault_is_one_line_with_exit_code_1(small_set: Values, tmp_path: Path) -> None:
    run(config_of(small_set, tasks={"index": 0, "count": 2}))
    lose_folder(tmp_path / "videos")
    path = write_config({**small_set, "tasks": {"index": 1, "count": 2}}, tmp_path)
    done = subprocess.run([sys.executable, "-m", "preprocess.run", str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("machine fault: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("way", ["missing", "unreadable"])
def test_a_set_without_one_delivered_clip_is_not_done(
    way: str, small_set: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "videos").glob("*.mp4"):
        path.rename(path.with_suffix(".away")) if way == "missing" else path.write_bytes(b"\0" * 1000)
    with pytest.raises(InputError, match=r"none of \d+ clips was delivered; \d+ failed with \w+, such as .*\(.+\)"):
        main([str(write_config(small_set, tmp_path))])
    assert "done" not in capsys.readouterr().out


def test_one_task_without_a_delivered_clip_is_fine(small_set: Values, tmp_path: Path) -> None:
    shard, _ = first_shard(config_of(small_set, texts={}))
    for video in shard.videos:
        (tmp_path / "videos" / f"{video.video_id}.mp4").write_bytes(b"\0" * 1000)
    assert main([str(write_config({**small_set, "tasks": {"index": 0, "count": 2}}, tmp_path))]) == 0
    assert main([str(write_config(small_set, tmp_path))]) == 0
    assert main([str(write_config(small_set, tmp_path))]) == 0


@pytest.mark.parametrize(
    "damage", ["cut", "gone", *(pytest.param(name, marks=pytest.mark.slow) for name in ("longer", "folder"))]
)
def test_a_damaged_shard_is_not_delivered(
    damage: str, finished_set: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(finished_set["output"], output)
    before = digest(output)
    tar = output / "shards" / "000001.tar"
    data = tar.read_bytes()
    tar.unlink()
    if damage == "folder":
        tar.mkdir()
    elif damage != "gone":
        tar.write_bytes(data[:-512] if damage == "cut" else data + b"\0" * 512)
    values = {**finished_set, "output": str(output)}
    for tasks in ({"index": 0, "count": 1}, {"index": 1, "count": 2}):
        with pytest.raises(RunError, match=r"1 published shards are damaged, first .*shards/000001\.tar .*remove"):
            main([str(write_config({**values, "tasks": tasks}, tmp_path))])
    assert "done" not in capsys.readouterr().out
    for name in ("000001.tar", "000001.parquet"):
        path = output / "shards" / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    assert main([str(write_config(values, tmp_path))]) == 0
    assert digest(output) == before
