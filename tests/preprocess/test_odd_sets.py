"""Report and audit of sets in which nothing is usable or a file is damaged: one line with the way out, never done."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, PipelineError, RunError
from preprocess import audit, report
from preprocess.audit import audit_set, audit_shard
from preprocess.index import index_folder
from preprocess.pack import read_facts
from preprocess.published import published_shards


def other_table() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["x"], "shard": [1]}), buffer)
    return buffer.getvalue()


def keyless_table(content: bytes) -> bytes:
    """The same file, with its metadata, but without its first column."""
    buffer = io.BytesIO()
    table = pq.read_table(io.BytesIO(content))
    pq.write_table(table.drop_columns(table.column_names[:1]), buffer)
    return buffer.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "another table": lambda content: other_table(),
    "without a column": keyless_table,
}


@pytest.fixture
def sound(finished_set: dict[str, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set["output"], tmp_path / "set"))


def findings(output: Path) -> list[str]:
    found = [*audit_set(output)]
    for shard in published_shards(output):
        found += audit_shard(output, shard)
    return [str(one) for one in found]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["manifest.parquet", "shards/000001.parquet", "failures/000001.parquet"])
@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_a_damaged_table_is_named_by_both(name: str, damage: str, kind: str, sound: Path, tmp_path: Path) -> None:
    output = sound
    if kind == "foreign":
        (sound / "shards").rename(tmp_path / "foreign")
        output = tmp_path / "indexed"
        index_folder(tmp_path / "foreign", output, caption_from="txt", subtitle_from="")
    assert findings(output) == []
    path = output / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    named = name.partition("/")[2].partition(".")[0] or name
    assert any(named in finding for finding in findings(output)), findings(output)
    try:
        report.main([str(output), "--clips", "2"])
    except PipelineError as error:
        assert named in str(error) and "\n" not in str(error)
    else:
        assert name.startswith("failures"), "the page does not need them"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b'{"num_clips": 3}'])
def test_damaged_statistics_are_refused_with_the_way_out(content: bytes, sound: Path) -> None:
    (sound / "stats.json").write_bytes(content)
    with pytest.raises(InputError, match=r"stats\.json.*run python -m preprocess\.merge"):
        report.main([str(sound)])


def test_a_tar_that_is_gone_is_named_by_the_report(sound: Path) -> None:
    (sound / "shards/000000.tar").unlink()
    with pytest.raises(InputError, match=r"000000\.tar is gone"):
        report.main([str(sound)])


def test_a_set_without_a_clip_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/0.tar").write_bytes(b"")
    index_folder(tmp_path / "foreign", tmp_path / "set", caption_from="txt", subtitle_from="")
    with pytest.raises(RunError, match=r"holds no delivered clip \(1 video_unreadable\)"):
        report.main([str(tmp_path / "set")])
    assert "video_unreadable" in (tmp_path / "set/report.html").read_text()
    (tmp_path / "empty/shards").mkdir(parents=True)
    assert audit.main([str(tmp_path / "empty"), "--workers", "1"]) == 1
    assert "holds no shard" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "truncated", "zeros", "another table"])
def test_a_sidecar_is_verified_when_its_facts_are_read(damage: str, sound: Path) -> None:
    path = sound / "shards/000000.parquet"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError, match=r"000000\.parquet is damaged, or no sidecar of a shard .* remove it and run"):
        read_facts(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_facts(path)
