"""The whole job: samples that training can read, an account that adds up, the same bytes after any interruption."""

import errno
import gc
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml

from pipeline.config import load_config
from pipeline.data.format import FAILURE_COLUMNS, MANIFEST_COLUMNS, METADATA_KEY, SIDECAR_COLUMNS
from pipeline.errors import InputError, RunError
from preprocess import faults, workers
from preprocess.audit import audit_set
from preprocess.claim import claim_folder
from preprocess.config import RENDERING, PreprocessConfig
from preprocess.faults import FileSystemFault
from preprocess.ffmpeg_binary import ffmpeg_version, find_ffmpeg
from preprocess.merge import merge
from preprocess.plan import Plan
from preprocess.planning import make_plan
from preprocess.presence import Seen
from preprocess.retry import retry
from preprocess.run import build_missing, main, run
from preprocess.shard import Tools, build_shard, shard_facts
from preprocess.text_index import TextIndex, build_index, index_folder

Values = dict[str, Any]


def write_config(values: Values, folder: Path) -> Path:
    path = folder / "set.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def config_of(values: Values, **changes: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate({**values, **changes})


def digest(output: Path) -> dict[str, str]:
    """Hashes of everything that training and the account read."""
    names = ["shards/*.tar", "shards/*.parquet", "failures/*.parquet", "manifest.parquet", "stats.json"]
    files = [path for name in names for path in sorted(output.glob(name))]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_back(output: Path) -> dict[str, dict[str, Any]]:
    """Every sample, by way of webdataset."""
    urls = [str(path) for path in sorted(output.glob("shards/*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing its files to the collector
        samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
        gc.collect()
    answer = {json.loads(sample["json"])["clip_id"]: sample for sample in samples}
    assert len(answer) == len(samples)
    return answer


def failures(output: Path) -> dict[str, str]:
    rows = [row for path in output.glob("failures/*.parquet") for row in pq.read_table(path).to_pylist()]
    answer = {row["clip_id"]: row["reason"] for row in rows}
    assert len(answer) == len(rows)
    return answer


def test_samples_come_out_whole(
    small_set: Values, read_numbers: Callable[[bytes], list[int]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([str(write_config(small_set, tmp_path))]) == 0
    output = Path(small_set["output"])
    samples = read_back(output)
    assert len(samples) == 12
    for clip_id, sample in samples.items():
        facts = json.loads(sample["json"])
        assert sample["__key__"] == clip_id.removesuffix(".mp4").replace(".", "+")
        assert facts["sha256"] == hashlib.sha256(sample["mp4"]).hexdigest()
        numbers = read_numbers(sample["mp4"])
        assert len(numbers) == facts["num_frames"] and (facts["width_px"], facts["height_px"]) == (32, 32)
        assert all(abs(number / 25 - facts["start_s"] - k / 5) <= 0.1 for k, number in enumerate(numbers))
        expected = None if clip_id == "-vid_3.2.mp4" else f"so this is {clip_id} at {facts['start_s']}"
        assert facts["subtitle"] == expected and facts["caption"] is None
        assert sample["txt"].decode() == (expected or "")
    out = capsys.readouterr().out
    assert "clips in the metadata            12" in out and "100.00%" in out


def test_sidecars_point_at_the_members(small_set: Values) -> None:
    stats = run(config_of(small_set))
    output = Path(small_set["output"])
    samples = read_back(output)
    manifest = pq.read_table(output / "manifest.parquet")
    assert manifest.column_names == list(MANIFEST_COLUMNS)
    assert sum(manifest["num_samples"].to_pylist()) == stats["num_delivered"] == 12
    for shard in manifest["shard"].to_pylist():
        sidecar = pq.read_table(output / f"{shard}.parquet")
        assert sidecar.column_names == list(SIDECAR_COLUMNS)
        data = (output / f"{shard}.tar").read_bytes()
        facts = json.loads(sidecar.schema.metadata[METADATA_KEY])
        assert facts["shard_sha256"] == hashlib.sha256(data).hexdigest() and facts["shard"] == shard
        for row in sidecar.to_pylist():
            for member, column in (("mp4", "media"), ("json", "json"), ("txt", "txt")):
                start = row[f"{column}_offset"]
                assert row["offset"] < start <= row["offset"] + row["size"] - row[f"{column}_size"]
                assert data[start : start + row[f"{column}_size"]] == samples[row["clip_id"]][member]
        assert pq.read_table(output / "failures" / f"{Path(shard).name}.parquet").column_names == list(FAILURE_COLUMNS)


def test_a_second_run_writes_nothing_and_a_missing_shard_comes_back_equal(small_set: Values) -> None:
    run(config_of(small_set))
    output = Path(small_set["output"])
    before = digest(output)
    times = {path: path.stat().st_mtime_ns for path in output.glob("shards/*")}
    run(config_of(small_set, workers=2))
    assert {path: path.stat().st_mtime_ns for path in output.glob("shards/*")} == times
    for name in ("shards/000001.parquet", "shards/000000.tar", "shards/000000.parquet"):
        (output / name).unlink()
    run(config_of(small_set, workers=2))
    assert digest(output) == before


def test_tasks_write_their_own_shards_and_merge_adds_up(small_set: Values) -> None:
    whole = config_of(small_set)
    run(whole)
    output = Path(small_set["output"]).with_name("tasks")
    for index in (2, 0, 1):
        run(config_of(small_set, output=str(output), tasks={"index": index, "count": 3}))
    assert merge(output)["num_pending"] == 0
    assert digest(output) == digest(whole.output)


def test_a_folder_of_another_config_is_refused(small_set: Values) -> None:
    run(config_of(small_set))
    run(config_of(small_set, workers=2))
    with pytest.raises(InputError, match=r"clips\.size_px \(32 there, 48 now\)"):
        run(config_of(small_set, clips={**small_set["clips"], "size_px": 48}))
    with pytest.raises(InputError, match="seed"):
        run(config_of(small_set, seed=1))


def test_two_configs_never_share_a_set(small_set: Values) -> None:
    """Both came before the first shard. The one that was overtaken publishes nothing."""
    mine = config_of(small_set, tasks={"index": 0, "count": 2})
    other = config_of(small_set, clips={"fps": 5, "size_px": 48}, tasks={"index": 1, "count": 2})
    config_hash = claim_folder(mine)
    run(other)
    plan = Plan.open(mine.output / "plan")
    with pytest.raises(InputError, match=r"was taken by a run with another config or ffmpeg before shards/000000"):
        build_missing(plan, mine, shard_facts(config_hash))
    assert [path.name for path in mine.output.glob("shards/*.parquet")] == ["000001.parquet"]


def test_a_mixture_of_configs_is_found_afterwards(small_set: Values) -> None:
    config = config_of(small_set)
    run(config)
    (config.output / "versions.json").unlink()
    for name in ("000001.tar", "000001.parquet"):
        (config.output / "shards" / name).unlink()
    build_missing(Plan.open(config.output / "plan"), config, shard_facts("another"))
    with pytest.raises(RunError, match=r"shards/000000 and shards/000001 were written by different configs or ffmpeg"):
        merge(config.output)
    assert any("different configs" in finding.problem for finding in audit_set(config.output))


def test_a_set_goes_on_with_the_hash_of_its_first_shards(small_set: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of the code may know more options, whose defaults change no byte."""
    config = config_of(small_set)
    run(config)
    before = digest(config.output)
    monkeypatch.setattr("preprocess.claim.content_hash", lambda *_: "with one more option")
    for versions in (config.output / "versions.json").read_text(), '{"ffmpeg_version": "V", "rendering": R}':
        fill = versions.replace("V", ffmpeg_version()).replace("R", str(RENDERING))
        (config.output / "versions.json").write_text(fill)
        for name in ("000001.tar", "000001.parquet"):
            (config.output / "shards" / name).unlink()
        run(config)
        assert digest(config.output) == before


def test_a_folder_of_an_older_rendering_is_refused(small_set: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a shard is still to be drawn; a whole set stays open to an upgrade."""
    run(config_of(small_set))
    monkeypatch.setattr("preprocess.claim.RENDERING", 99)
    assert run(config_of(small_set))["num_delivered"] == 12
    (Path(small_set["output"]) / "shards" / "000001.parquet").unlink()
    with pytest.raises(InputError, match=r"rendering \(\d+ there, 99 now\); finish it with the release"):
        run(config_of(small_set))


def test_wrong_input_ends_in_one_line(small_set: Values, tmp_path: Path) -> None:
    path = write_config({**small_set, "metadata": {"files": [str(tmp_path / "no*.jsonl")]}}, tmp_path)
    command = [sys.executable, "-m", "preprocess.run", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("error: metadata.files")


def test_what_a_worker_cannot_open_ends_in_one_line(small_set: Values, tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("a,b\n1,2\n")
    videos = {"index": str(tmp_path / "index.csv")}
    with pytest.raises(InputError, match=r"videos\.index .* needs the columns video_id and path"):
        run(config_of(small_set, videos=videos))
    assert not list(Path(small_set["output"]).glob("shards/*"))


def test_an_id_too_long_for_a_file_costs_only_its_own_clips(
    small_set: Values, hdvila: Callable[..., Path], tmp_path: Path
) -> None:
    """Also where subtitles lie beside the videos, and in a retry."""
    long = "x" * 300
    hdvila(tmp_path / "hdvila_part1.jsonl", {long: [("long.1.mp4", 0, 1)]})
    config = config_of(small_set, texts={"subtitles": [str(tmp_path / "videos" / "{video_id}.en.vtt")]})
    assert run(config)["reasons"] == {"video_missing": 1}
    assert failures(config.output) == {"long.1.mp4": "video_missing"}
    assert retry(config)["reasons"] == {"video_missing": 1}


def test_hardware_that_is_not_there_is_wrong_input(small_set: Values) -> None:
    config = config_of(small_set, clips={**small_set["clips"], "hwaccel": "no_such_chip"})
    with pytest.raises(InputError, match=r"clips\.hwaccel: .* cannot use 'no_such_chip'"):
        run(config)


def test_videos_out_of_reach_of_this_machine_are_wrong_input(small_set: Values, tmp_path: Path) -> None:
    """A file system that is not mounted: no folder, or an empty one."""
    (tmp_path / "empty").mkdir()
    here = small_set["videos"]["templates"][0]
    (tmp_path / "index.jsonl").write_text('{"video_id": "-vid_0", "path": "/mnt/no/such/folder/0.mp4"}\n')
    for videos, words in (
        ({"templates": ["/mnt/no/such/folder/{video_id:.2}/{video_id}.mp4"]}, "no folder /mnt/no/such/folder on this"),
        ({"templates": [here, "/mnt/no/such/folder/{video_id}.mp4"]}, "no folder /mnt/no/such/folder on this"),
        ({"templates": [str(tmp_path / "empty" / "{video_id}.mp4")]}, "nothing lies in .*empty"),
        ({"index": str(tmp_path / "index.jsonl")}, "nothing lies in /mnt/no/such/folder"),
        ({"index": str(tmp_path / "none.jsonl")}, "no file"),
    ):
        with pytest.raises(InputError, match=words):
            run(config_of(small_set, videos=videos))
    assert not list(Path(small_set["output"]).glob("shards/*"))


def test_videos_by_index(small_set: Values, tmp_path: Path) -> None:
    """As by template, also where most of the files are missing."""
    run(config_of(small_set))
    rows = [{"video_id": f"-vid_{number}", "path": f"videos/-vid_{number}.mp4"} for number in range(3)]
    rows += [{"video_id": "-vid_0", "path": "videos/second.mp4"}, {"video_id": "-vid_3", "path": "/no/folder/x.mp4"}]
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stats = run(config_of(small_set, output=str(tmp_path / "other"), videos={"index": str(tmp_path / "index.jsonl")}))
    assert (stats["num_delivered"], stats["reasons"]) == (9, {"video_missing": 3})
    mine, whole = read_back(tmp_path / "other"), read_back(Path(small_set["output"]))
    assert all(sample["mp4"] == whole[clip_id]["mp4"] for clip_id, sample in mine.items())


def test_an_ffmpeg_that_is_too_old_is_wrong_input(
    small_set: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "ffmpeg"
    old.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "if '-fps_mode' in sys.argv: sys.exit('Unrecognized option fps_mode')\n"
        "if '-version' in sys.argv: sys.exit(print('ffmpeg version 4.4.2 Copyright'))\n"
        f"os.execv({find_ffmpeg()!r}, ['ffmpeg', *sys.argv[1:]])\n"
    )
    old.chmod(0o755)
    try:
        monkeypatch.setenv("FFMPEG", str(old))
        find_ffmpeg.cache_clear()
        ffmpeg_version.cache_clear()
        with pytest.raises(InputError, match=r"version 4\.4\.2.*Unrecognized option fps_mode.*set \$FFMPEG"):
            run(config_of(small_set))
    finally:
        monkeypatch.undo()
        find_ffmpeg.cache_clear()
        ffmpeg_version.cache_clear()
    assert not list(Path(small_set["output"]).glob("shards/*"))
    assert run(config_of(small_set))["num_delivered"] == 12


def test_a_disk_that_does_not_answer_costs_no_clip(small_set: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails the shard, which the next run writes; a clip that is called missing would stay away."""
    config = config_of(small_set, texts={})
    plan = make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)
    tools = Tools.open(config)

    real = Path.stat

    def broken(path: Path, **options: Any) -> os.stat_result:
        if path.parent.name == "videos":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", broken)
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.0,))
    with pytest.raises(FileSystemFault, match=r"Stale file handle: .*videos"):
        list(build_shard(plan.shard(0), tools, shard_facts("test")))
    assert not list(config.output.glob("shards/*.parquet"))


def test_fast_is_a_word_of_its_own(small_set: Values, tmp_path: Path) -> None:
    assert main([str(write_config(small_set, tmp_path)), "--fast"]) == 0
    assert yaml.safe_load((Path(small_set["output"]) / "config.yaml").read_text())["clips"]["fast"] is True


def test_another_device_may_go_on(small_set: Values) -> None:
    """The kind of device is noted in the sidecars of captioned shards; it is no part of what belongs to the folder."""
    run(config_of(small_set))
    assert run(config_of(small_set, captioner={"device": "cuda:1"}))["num_delivered"] == 12


@pytest.mark.heavy
def test_a_full_disk_leaves_nothing_half_done(small_set: Values, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the plan fits, a shard does not."""
    path = write_config({**small_set, "texts": {}}, tmp_path)
    command = [sys.executable, "-m", "preprocess.run", str(path)]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    output = Path(small_set["output"])
    assert answer.returncode == 1 and "File too large" in answer.stderr and "Traceback" not in answer.stderr
    assert not list(output.rglob("*.tmp*")) and not list(output.glob("shards/*.parquet"))
    assert main([str(path)]) == 0
    assert len(read_back(output)) == 12


def test_an_output_that_cannot_be_written_is_wrong_input(small_set: Values, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in ("/proc/set", str(tmp_path / "file")):
        with pytest.raises(InputError, match="output: cannot write"):
            run(config_of(small_set, output=output))


def test_a_mistake_before_the_first_shard_binds_nobody(small_set: Values, tmp_path: Path) -> None:
    nothing = config_of(small_set, metadata={"files": [str(tmp_path / "no*.jsonl")]})
    with pytest.raises(InputError):
        run(nothing)
    assert not nothing.output.exists()
    with pytest.raises(InputError):
        run(config_of(small_set, texts={"subtitles": [str(tmp_path / "none.jsonl")]}))
    assert run(config_of(small_set, clips={"fps": 5, "size_px": 48}))["num_delivered"] == 12
    facts = json.loads((Path(small_set["output"]) / "stats.json").read_text())
    assert facts["num_pending"] == 0 and "size_px: 48" in (Path(small_set["output"]) / "config.yaml").read_text()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("place", "death", "reason"),
    [
        ("probe", "os.kill(os.getpid(), 11)", "video_unreadable"),
        ("probe", "raise MemoryError", "memory_limit"),
        ("texts", "os.kill(os.getpid(), 11)", "video_unreadable"),
    ],
)
def test_a_crash_costs_one_video(small_set: Values, place: str, death: str, reason: str, tmp_path: Path) -> None:
    """A worker dies each time it reads one video, or its texts: its clips fail, all others are delivered."""
    path = write_config({**small_set, "output": str(tmp_path / "crash")}, tmp_path)
    script = (
        "import os, sys, preprocess.shard as shard\n"
        "owner, name = {'probe': (shard, 'probe_video'), 'texts': (shard.Texts, 'of')}['PLACE']\n"
        "real = getattr(owner, name)\n"
        "def deadly(*arguments):\n"
        "    if any('-vid_2' in str(argument) for argument in arguments[:2]): DEATH\n"
        "    return real(*arguments)\n"
        "import preprocess.workers as workers, multiprocessing\n"
        "if multiprocessing.current_process().name != 'MainProcess': setattr(owner, name, deadly)\n"
        "else:\n"
        "    from preprocess.run import main\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "deadly.py").write_text(script.replace("DEATH", death).replace("PLACE", place))
    subprocess.run([sys.executable, str(tmp_path / "deadly.py"), str(path)], check=True, capture_output=True)
    found = failures(tmp_path / "crash")
    assert found == {f"-vid_2.{k}.mp4": reason for k in range(3)}
    assert len(read_back(tmp_path / "crash")) == 9


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["raise RuntimeError('CUDA out of memory\\nand more')", "os._exit(3)"])
def test_a_worker_that_cannot_start_ends_the_run_at_once(small_set: Values, end: str, tmp_path: Path) -> None:
    """Every other worker, and every shard after it, would meet the same."""
    path = write_config(small_set, tmp_path)
    script = (
        "import os, preprocess.workers as workers, multiprocessing\n"
        "class Tools:\n"
        "    @staticmethod\n"
        "    def open(config): END\n"
        "if multiprocessing.current_process().name != 'MainProcess': workers.Tools = Tools\n"
        "else:\n"
        "    from preprocess.run import main\n"
        "    from pipeline.errors import run_command\n"
        "    run_command(main)\n"
    )
    (tmp_path / "cannot.py").write_text(script.replace("END", end))
    done = subprocess.run([sys.executable, str(tmp_path / "cannot.py"), str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert ("CUDA out of memory" if "raise" in end else "exit code 3") in line


def test_a_worker_that_says_nothing_met_the_time_limit(small_set: Values) -> None:
    """It is killed as one that takes too much memory is, by us. The first time the shard is only tried again."""

    class Process:
        pid = None
        exitcode: int | None = None

        def kill(self) -> None:
            self.exitcode = -signal.SIGKILL

        def join(self) -> None:
            pass

    for is_silent, reason in ((True, "time_limit"), (False, "memory_limit")):
        worker = workers._Worker(0, Process(), None, is_ready=True, shard=3, video_id="v")  # type: ignore[arg-type]
        worker.heard_s = time.monotonic() - (1e6 if is_silent else 0.0)
        workers._kill_silent([worker], config_of(small_set))
        assert worker.is_silent == is_silent
        worker.process.kill()
        queue = workers._Queue([], Seen())
        assert workers._bury(worker, queue) is None
        assert queue.waiting == [3] and queue.poisoned == {3: {}}
        assert workers._bury(worker, queue) is None
        assert queue.waiting == [3, 3] and queue.poisoned[3]["v"][0] == reason
        assert isinstance(workers._bury(worker, queue), workers.ShardFailed)


def test_what_killed_writers_left_goes_with_the_next_run(small_set: Values, tmp_path: Path) -> None:
    subtitles = tmp_path / "more.jsonl"
    subtitles.write_text('{"clip_id": "-vid_0.0.mp4", "text": "a dog"}\n')
    config = config_of({**small_set, "texts": {"subtitles": [str(subtitles)], "captions": []}})
    config.output.mkdir()
    for name in ("versions.json", "config.yaml", "manifest.parquet", "stats.json"):
        (config.output / f".{name}.node-7.tmp").write_bytes(b"half a fi")
    index = index_folder(subtitles, config.output, "texts")
    (index.parent / f".{index.name}.node-7.tmp").mkdir(parents=True)
    (index.parent / f".{index.name}.node-7.tmp" / "texts.bin").write_bytes(b"half a fi")
    for path in config.output.rglob("*"):
        os.utime(path, (0, 0))
    run(config)
    assert index.is_dir()
    assert not list(config.output.rglob("*.tmp*"))


def test_locks_that_hold_on_one_node_only(small_set: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node plans and indexes at the same time: it is left alone, and who comes second takes what is there."""
    config = config_of(small_set)
    theirs = config.output / ".plan.node-7.tmp"
    theirs.mkdir(parents=True)
    index = index_folder(tmp_path / "subtitles.jsonl", config.output, "texts")

    def build_twice(rows: Any, folder: Path) -> int:
        build_index([("-vid_0.0.mp4", "theirs")], folder)
        return build_index(rows, folder)

    monkeypatch.setattr("preprocess.text_index.build_index", build_twice)
    run(config)
    assert theirs.exists() and TextIndex(index).get("-vid_0.0.mp4") == "theirs"
    assert [path for path in config.output.rglob("*.tmp*") if path != theirs] == []


def test_a_file_system_without_locks_is_wrong_input(small_set: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("preprocess.publish.fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"file system without locks \(Function not implemented\); mount it with them"):
        run(config_of(small_set))


@pytest.mark.heavy
def test_kill_nine_at_random_moments_changes_no_byte(small_set: Values, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "-vid_1.mp4").write_bytes((videos / "-vid_1.mp4").read_bytes()[:900])
    (videos / "-vid_3.mp4").unlink()
    reference = config_of(small_set)
    run(reference)
    path = write_config({**small_set, "output": str(tmp_path / "killed"), "workers": 2}, tmp_path)
    output = tmp_path / "killed"
    wanted = digest(reference.output)
    random_delay = random.Random(7)
    for _ in range(8):
        command = [sys.executable, "-m", "preprocess.run", str(path)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(random_delay.uniform(0.5, 2.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (output / "plan" / "plan.json").exists():
            stats = merge(output)  # raises where a clip is lost or counted twice
            assert stats["num_clips"] == 12 and stats["num_delivered"] <= 6
        for sidecar in output.glob("shards/*.parquet"):
            name = str(sidecar.relative_to(output))
            for visible in (name, name.replace(".parquet", ".tar"), f"failures/{sidecar.name}"):
                assert digest(output)[visible] == wanted[visible]
    assert main([str(path)]) == 0
    assert digest(output) == wanted
    assert not list(output.rglob("*.tmp*"))


def test_worker_count_does_not_change_the_shards(small_set: Values) -> None:
    assert workers.MAX_POISONED_PER_SHARD > 0
    run(config_of(small_set, workers=1))
    other = Path(small_set["output"]).with_name("two")
    run(config_of(small_set, output=str(other), workers=2))
    assert digest(other) == digest(Path(small_set["output"]))


def test_example_config_loads() -> None:
    load_config(PreprocessConfig, ["configs/preprocess/hdvila.yaml"])
