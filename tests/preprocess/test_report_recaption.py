"""The HTML page is whole in itself; new captions come into old shards, whatever interrupts them."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, RunError
from preprocess import pack
from preprocess.audit import audit_set, audit_shard
from preprocess.caption import CaptionerConfig
from preprocess.config import PreprocessConfig, TasksConfig
from preprocess.index import index_folder
from preprocess.merge import merge
from preprocess.pack import read_facts
from preprocess.published import published_shards
from preprocess.recaption import read_shard, recaption
from preprocess.report import histogram, main
from preprocess.retry import retry
from preprocess.run import run
from preprocess.swap import recover, set_aside
from preprocess.videos import VideosConfig


@pytest.fixture
def config(finished_set: dict[str, Any], tmp_path: Path) -> PreprocessConfig:
    shutil.copytree(finished_set["output"], tmp_path / "set")
    captioner = {"kind": "open_clip", "batch_size": 4}
    return PreprocessConfig.model_validate({**finished_set, "output": tmp_path / "set", "captioner": captioner})


def describe(images: Sequence[np.ndarray], clip_ids: Sequence[str]) -> list[str | None]:
    assert all(image.shape == (32, 32, 3) for image in images)
    return [f"a picture of {clip_id}" for clip_id in clip_ids]


def samples(output: Path) -> dict[str, Any]:
    found = {}
    for shard in published_shards(output):
        for sample in read_shard(output, shard):
            found[sample.result.clip.clip_id] = sample  # type: ignore[union-attr]
    return found


def check_sound(output: Path) -> None:
    assert list(audit_set(output)) == []
    assert [finding for shard in published_shards(output) for finding in audit_shard(output, shard)] == []


def test_report_is_one_file_that_loads_nothing(
    finished_set: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(finished_set["output"], tmp_path / "<set> & co"))
    assert main([str(output), "--clips", "5"]) == 0
    page = (output / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 5
    assert "so this is" in page and "(none)" in page and "100.00%" in page
    assert "&lt;set&gt; &amp; co" in page and "<set>" not in page
    for outside in ("http://", "https://", "<script", "<link", "@import"):
        assert outside not in page
    first = page
    main([str(output), "--clips", "5"])
    assert (output / "report.html").read_text() == first
    capsys.readouterr()


def test_report_shows_the_texts_of_a_foreign_set(
    finished_set: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign").mkdir()
    shutil.copy(Path(finished_set["output"]) / "shards/000000.tar", tmp_path / "foreign")
    index_folder(tmp_path / "foreign", tmp_path / "indexed", caption_from="txt", subtitle_from="")
    assert main([str(tmp_path / "indexed"), "--clips", "2"]) == 0
    page = (tmp_path / "indexed" / "report.html").read_text()
    assert page.count("<b>caption</b> so this is") == 2 and page.count("<b>subtitle</b> (none)") == 2
    capsys.readouterr()


def test_histogram_of_odd_values() -> None:
    assert "none" in histogram([], "x")
    assert "median 3" in histogram([3.0, 3.0, 3.0], "x")


def test_captions_are_added_and_all_else_stays(config: PreprocessConfig) -> None:
    before = samples(config.output)
    stats = recaption(config, describe)
    assert stats["num_captions"] == stats["num_delivered"] == 12
    after = samples(config.output)
    assert list(after) == list(before)
    for clip_id, sample in after.items():
        assert sample.texts.caption == f"a picture of {clip_id}"
        assert sample.texts.caption_source == config.captioner.source
        assert sample.texts.subtitle == before[clip_id].texts.subtitle
        assert sample.result == before[clip_id].result
        assert sample.caption_frame == int(sample.result.num_frames / 2)
    check_sound(config.output)


def test_the_tars_of_an_indexed_set_are_left_alone(config: PreprocessConfig, tmp_path: Path) -> None:
    index_folder(config.output / "shards", tmp_path / "indexed", caption_from="txt", subtitle_from="")
    with pytest.raises(InputError, match="index of foreign tars"):
        recaption(config.model_copy(update={"output": tmp_path / "indexed"}), describe)
    assert (tmp_path / "indexed" / "shards" / "000000.tar").is_symlink()


def test_replace_only_when_asked_and_only_once(config: PreprocessConfig) -> None:
    recaption(config, describe)
    times = {path: path.stat().st_mtime_ns for path in config.output.glob("shards/*")}
    recaption(config, describe)
    assert {path: path.stat().st_mtime_ns for path in config.output.glob("shards/*")} == times
    other = config.captioner.model_copy(update={"num_beams": 2})
    recaption(config.model_copy(update={"captioner": other}), lambda images, ids: ["x"] * len(ids))
    assert all(sample.texts.caption.startswith("a picture") for sample in samples(config.output).values())
    replacing = config.captioner.model_copy(update={"replace": True})
    recaption(config.model_copy(update={"captioner": replacing}), lambda images, ids: ["y"] * len(ids))
    assert {sample.texts.caption for sample in samples(config.output).values()} == {"y"}
    check_sound(config.output)


@pytest.mark.parametrize("new_tar_is_there", [False, True])
def test_a_kill_in_the_middle_of_the_swap(config: PreprocessConfig, new_tar_is_there: bool) -> None:
    shard = published_shards(config.output)[0]
    tar, sidecar = config.output / f"{shard}.tar", config.output / f"{shard}.parquet"
    content, rows = tar.read_bytes(), pq.read_table(sidecar)
    set_aside(config.output, shard)
    if new_tar_is_there:
        fresh = tar.with_name("fresh")
        fresh.write_bytes(b"the new tar")
        fresh.replace(tar)
    recover(config.output)
    assert tar.read_bytes() == content and pq.read_table(sidecar).equals(rows)
    assert not list(config.output.glob("shards/.*")) and not list(config.output.glob(".set_aside/*"))
    check_sound(config.output)
    facts = json.loads((config.output / "stats.json").read_text())
    assert facts["num_captions"] == 0


@pytest.mark.parametrize("command", [run, retry, lambda config: merge(config.output)], ids=["run", "retry", "merge"])
def test_every_command_brings_back_what_a_kill_left_set_aside(
    config: PreprocessConfig, tmp_path: Path, command: Callable[[PreprocessConfig], dict[str, Any]]
) -> None:
    """The raw videos may be gone by then: a shard that counted as missing would be written without a clip."""
    before = digest(config.output)
    for shard in published_shards(config.output):
        set_aside(config.output, shard)
    plain = config.model_copy(update={"captioner": CaptionerConfig()})
    gone = plain.model_copy(update={"videos": VideosConfig(templates=(str(tmp_path / "{video_id}.mp4"),))})
    assert command(gone)["num_delivered"] == 12
    assert digest(config.output) == before


def test_a_swap_is_short_and_undisturbed(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new files lie on the disk before the old shard goes, and the folder's lock is held until it is replaced."""
    synced: set[int] = set()
    real_sync, real_publish = os.fsync, pack.publish

    def note_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def check(output: Path, shard: str) -> None:
        assert {path.stat().st_ino for path in output.rglob(f".{Path(shard).name}.*.tmp")} <= synced
        set_aside(output, shard)

    def publish_locked(temporary: Path, path: Path) -> None:
        with open(config.output / ".lock") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        real_publish(temporary, path)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr("preprocess.recaption.set_aside", check)
    monkeypatch.setattr(pack, "publish", publish_locked)
    assert recaption(config, describe)["num_captions"] == 12


def test_tasks_caption_their_own_shards(config: PreprocessConfig, tmp_path: Path) -> None:
    whole = config.model_copy(update={"output": Path(shutil.copytree(config.output, tmp_path / "whole"))})
    recaption(whole, describe)
    sizes = []
    for index in (1, 0, 2):
        seen: list[str] = []
        task = config.model_copy(update={"tasks": TasksConfig(index=index, count=3)})
        assert recaption(task, lambda images, ids, seen=seen: seen.extend(ids) or describe(images, ids)) == {}
        sizes.append(len(seen))
    assert sum(sizes) == 12 and max(sizes) < 12
    merge(config.output)
    assert digest(config.output) == digest(whole.output)


def test_two_processes_on_one_shard_are_told(config: PreprocessConfig) -> None:
    """The second one is done first; the first one leaves its work alone."""
    after: list[dict[str, bytes]] = []

    def slow(images: Sequence[np.ndarray], clip_ids: Sequence[str]) -> list[str | None]:
        if not after:
            recaption(config, describe)
            after.append(digest(config.output))
        return describe(images, clip_ids)

    with pytest.raises(RunError, match=r"another process captioned shards/000000 meanwhile"):
        recaption(config, slow)
    assert digest(config.output) == after[0]
    check_sound(config.output)


class Killed(BaseException):
    """Stands for SIGKILL."""


def die_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let this process die before its `step`-th change of a visible file; the dead change nothing more."""
    left = [step]

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*values: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return act(*values, **options)

        return wrapped

    patch.setattr(os, "link", mortal(os.link))
    patch.setattr(Path, "replace", mortal(Path.replace))
    patch.setattr(Path, "unlink", mortal(Path.unlink))


def digest(output: Path) -> dict[str, bytes]:
    names = ["shards/*", "failures/*", "manifest.parquet", "stats.json"]
    return {str(path.relative_to(output)): path.read_bytes() for name in names for path in sorted(output.glob(name))}


@pytest.mark.heavy
def test_a_kill_at_any_step_of_recaption_changes_no_byte(config: PreprocessConfig, tmp_path: Path) -> None:
    undisturbed = config.model_copy(update={"output": Path(shutil.copytree(config.output, tmp_path / "undisturbed"))})
    recaption(undisturbed, describe)
    num_deaths = 0
    for step in range(100):
        killed = config.model_copy(update={"output": Path(shutil.copytree(config.output, tmp_path / f"at_{step}"))})
        with pytest.MonkeyPatch.context() as patch:
            die_before(step, patch)
            try:
                recaption(killed, describe)
            except Killed:
                num_deaths += 1
            else:
                break
        for tar in killed.output.glob(
            "shards/*.tar"
        ):  # what training may see meanwhile: never a pair that does not fit
            if tar.with_suffix(".parquet").exists():
                facts = read_facts(tar.with_suffix(".parquet"))
                assert facts["shard_sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()
        recaption(killed, describe)
        assert digest(killed.output) == digest(undisturbed.output)
    assert 20 < num_deaths < 100
