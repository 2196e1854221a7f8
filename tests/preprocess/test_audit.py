"""The audit finds every kind of damage, and nothing in a sound set."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from preprocess.audit import audit_set, audit_shard, main
from preprocess.merge import published_shards


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
}


def test_a_sound_set_has_no_finding(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(sound) == []
    assert main([str(sound), "--workers", "1"]) == 0
    assert "0 findings" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(damage: Callable[[Path], None], sound: Path) -> None:
    damage(sound)
    assert any(DAMAGES[damage] in finding for finding in findings(sound)), findings(sound)


def test_exit_code_on_damage(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch_media(sound)
    assert main([str(sound), "--workers", "1"]) == 1
    assert "000000.tar" in capsys.readouterr().out
