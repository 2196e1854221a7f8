"""The audit finds every kind of damage, and nothing in a sound set."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.errors import InputError
from preprocess.audit import audit_set, audit_shard, main
from preprocess.config import PreprocessConfig
from preprocess.index import index_folder
from preprocess.plan import Plan, write_plan
from preprocess.published import published_shards
from preprocess.run import build_missing, run
from preprocess.shard import shard_facts


@pytest.fixture
def sound(finished_set: dict[str, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set["output"], tmp_path / "sound"))


def findings(output: Path) -> list[str]:
    answer = [str(finding) for finding in audit_set(output)]
    for shard in published_shards(output):
        answer += [str(finding) for finding in audit_shard(output, shard)]
    return answer


def patch_media(output: Path) -> None:
    row = pq.read_table(output / "shards/000000.parquet").to_pylist()[1]
    with open(output / "shards/000000.tar", "r+b") as stream:
        stream.seek(row["media_offset"] + row["media_size"] // 2)
        stream.write(b"\x00" * 40)


def patch_text(output: Path) -> None:
    row = pq.read_table(output / "shards/000000.parquet").to_pylist()[0]
    with open(output / "shards/000000.tar", "r+b") as stream:
        stream.seek(row["txt_offset"])
        stream.write(b"XX")


def drop_sidecar(output: Path) -> None:
    (output / "shards/000001.parquet").unlink()


def truncate_tar(output: Path) -> None:
    path = output / "shards/000000.tar"
    path.write_bytes(path.read_bytes()[:9000])


def drop_tar(output: Path) -> None:
    (output / "shards/000000.tar").unlink()


def swap_shards(output: Path) -> None:
    shutil.copy(output / "shards/000000.tar", output / "shards/000001.tar")


def break_sidecar(output: Path) -> None:
    (output / "shards/000000.parquet").write_bytes(b"PAR1 nothing")


def drop_manifest(output: Path) -> None:
    (output / "manifest.parquet").unlink()


def drop_failures(output: Path) -> None:
    (output / "failures/000000.parquet").unlink()


def double_account(output: Path) -> None:
    path = output / "plan/plan.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"num_clips": facts["num_clips"] + 1}))


def plan_another_clip(output: Path) -> None:
    """The counts stay right."""
    path = output / "plan/videos.jsonl"
    path.write_bytes(path.read_bytes().replace(b"-vid_0.1.mp4", b"-vid_0.9.mp4"))


def try_delivered_clips_again(output: Path) -> None:
    config = PreprocessConfig.model_validate(
        {**yaml.safe_load((output / "config.yaml").read_text()), "output": str(output)}
    )
    folder = output / "plan/retry_001"
    folder.mkdir()
    videos = [(0, video) for video in Plan.open(output / "plan").shard(0).videos]
    facts = write_plan(folder, videos, 100, prefix="retry_001_")
    (folder / "plan.json").write_text(json.dumps(facts))
    build_missing(Plan.open(folder), config, shard_facts("again"))


DAMAGES: dict[Callable[[Path], None], str] = {
    patch_media: "media differs from the hash",
    patch_text: "txt is not the subtitle",
    drop_sidecar: "its sidecar is gone",
    truncate_tar: "sha256",
    drop_tar: "is gone",
    swap_shards: "not where the sidecar says",
    break_sidecar: "differs from the manifest",
    drop_manifest: "run python -m preprocess.merge",
    drop_failures: "cannot be",
    double_account: "in the metadata, but",
    plan_another_clip: "planned for it are neither delivered nor failed, first '-vid_0.9.mp4'",
    try_delivered_clips_again: "tried again after they had been delivered",
}


def test_a_sound_set_has_no_finding(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(sound) == []
    assert main([str(sound), "--workers", "1"]) == 0
    assert "0 findings" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(damage: Callable[[Path], None], sound: Path) -> None:
    damage(sound)
    assert any(DAMAGES[damage] in finding for finding in findings(sound)), findings(sound)


@pytest.fixture(scope="module")
def loud_set(
    add_sound: Callable[[Path, Path], Path],
    make_small_set: Callable[[Path], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The small set again, one of its videos with sound."""
    folder = tmp_path_factory.mktemp("loud")
    values = make_small_set(folder)
    video = folder / "videos" / "-vid_0.mp4"
    silent = video.rename(folder / "silent.mp4")
    add_sound(silent, video)
    run(PreprocessConfig.model_validate({**values, "clips": {**values["clips"], "audio": True}}))
    return Path(values["output"])


def find_audio(output: Path) -> tuple[Path, str, int, int]:
    """(tar, name, offset, size) of the first audio member."""
    for path in sorted(output.glob("shards/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".mka"):
                    return path, member.name, member.offset_data, member.size
    raise AssertionError("no audio")


def overwrite_audio(output: Path) -> None:
    path, _, offset, size = find_audio(output)
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(b"x" * size)


def rename_audio(output: Path) -> None:
    path, name, offset, _ = find_audio(output)
    other = name.replace(".mka", ".mk2").encode()
    header = bytearray(path.read_bytes()[offset - 512 : offset])
    header[: len(other)] = other
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with open(path, "r+b") as stream:
        stream.seek(offset - 512)
        stream.write(header)


AUDIO_DAMAGES: dict[Callable[[Path], None], tuple[str, ...]] = {
    overwrite_audio: ("its audio differs from the hash", "its audio cannot be decoded"),
    rename_audio: ("its audio is gone", "a member that no row speaks of"),
}


def test_sound_is_read_too(loud_set: Path) -> None:
    assert find_audio(loud_set)
    assert findings(loud_set) == []


@pytest.mark.parametrize("damage", AUDIO_DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_sound_is_found(damage: Callable[[Path], None], loud_set: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(loud_set, tmp_path / "damaged"))
    damage(output)
    found = findings(output)
    for words in AUDIO_DAMAGES[damage]:
        assert any(words in finding for finding in found), found


def test_a_foreign_set_is_checked_for_what_it_has(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    shutil.copy(sound / "shards/000000.tar", tmp_path / "foreign")
    output = tmp_path / "indexed"
    index_folder(tmp_path / "foreign", output, caption_from="txt", subtitle_from="json:subtitle")
    assert findings(output) == []
    row = pq.read_table(output / "shards/000000.parquet").to_pylist()[1]
    with open(tmp_path / "foreign/000000.tar", "r+b") as stream:
        stream.seek(row["media_offset"])
        stream.write(b"x" * row["media_size"])
        stream.seek(row["txt_offset"])
        stream.write(b"   ")
    found = findings(output)
    for words in ("sha256", "media cannot be decoded", "other lengths"):
        assert any(words in finding for finding in found), found


def test_a_choice_of_shards_that_is_none_is_wrong_input(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sound), "--workers", "1", "--shards", "1"]) == 0
    assert "1 shards read" in capsys.readouterr().out
    for words in ("9", "5:2", "a:b"):
        with pytest.raises(InputError, match="--shards"):
            main([str(sound), "--shards", words])


def test_exit_code_on_damage(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch_media(sound)
    assert main([str(sound), "--workers", "1"]) == 1
    assert "000000.tar" in capsys.readouterr().out
