"""File names decomposed (as macOS hands them out) against ids composed (as most lists hold them), and the reverse."""

import json
import unicodedata
from pathlib import Path

import pytest

from pipeline.data.format import VIDEO_EXTENSIONS
from preprocess.metadata import MetadataConfig
from preprocess.plan import ShardsConfig
from preprocess.planning import make_plan
from preprocess.records import Clip
from preprocess.texts import Texts, TextsConfig, prepare_texts
from preprocess.videos import VideoLocator, VideosConfig, prepare_videos

FORMS = [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC"), ("NFD", "NFD")]
NAME = "Zo\u00eb \u30ac\u30ae 한국 \u00c5"


@pytest.mark.parametrize(("of_file", "of_id"), FORMS)
@pytest.mark.parametrize("template", ["{video_id}.{ext}", "{video_id:.3}/{video_id}.{ext}", "x/{video_id}/v.mp4"])
def test_videos_by_template(of_file: str, of_id: str, template: str, tmp_path: Path) -> None:
    file = tmp_path / unicodedata.normalize(of_file, template.format(video_id=NAME, ext="mkv"))
    # A prefix of letters is cut from the id in its own form.
    if ":.3" in template and of_file == "NFD" == of_id:
        file = tmp_path / template.format(video_id=unicodedata.normalize("NFD", NAME), ext="mkv")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    locate = VideoLocator(VideosConfig(templates=(str(tmp_path / template),)), tmp_path)
    found = locate(unicodedata.normalize(of_id, NAME))
    assert found is not None and found.samefile(file)
    assert locate("another") is None and "no file at" in locate.missing_detail("another")


@pytest.mark.parametrize(("of_file", "of_id"), FORMS)
def test_videos_by_index(of_file: str, of_id: str, tmp_path: Path) -> None:
    (tmp_path / f"{unicodedata.normalize(of_file, NAME)}.mp4").touch()
    row = {"video_id": unicodedata.normalize(of_file, NAME), "path": unicodedata.normalize(of_id, f"{NAME}.mp4")}
    (tmp_path / "i.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    config = VideosConfig(index=str(tmp_path / "i.jsonl"))
    prepare_videos(config, tmp_path / "out")
    locate = VideoLocator(config, tmp_path / "out")
    assert locate(unicodedata.normalize(of_id, NAME)) is not None
    assert locate.missing_detail("another") == f"not named in {tmp_path / 'i.jsonl'}"


@pytest.mark.parametrize(("of_file", "of_id"), FORMS)
def test_texts_and_subtitle_files(of_file: str, of_id: str, tmp_path: Path) -> None:
    name, clip_id = unicodedata.normalize(of_file, NAME), unicodedata.normalize(of_id, NAME)
    (tmp_path / f"{name}.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"clip_id": f"{name}.1.mp4", "text": "seen"}))
    config = TextsConfig(subtitles=(str(tmp_path / "{video_id}.vtt"),), captions=(str(tmp_path / "t.jsonl"),))
    prepare_texts(config, tmp_path / "out", 1 << 20)
    texts = Texts.open(config, tmp_path / "out").of(clip_id, Clip(f"{clip_id}.1", 0, 1))
    assert (texts.subtitle, texts.caption) == ("hello", "seen")


@pytest.mark.parametrize(("of_list", "of_id"), FORMS)
@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_exclude_lists(of_list: str, of_id: str, suffix: str, tmp_path: Path) -> None:
    """What a list forbids was delivered where it was written in the other form."""
    header = "video_id\n" if suffix == "csv" else ""
    (tmp_path / f"x.{suffix}").write_text(header + unicodedata.normalize(of_list, NAME) + "\n")
    rows = [{"video_id": unicodedata.normalize(of_id, NAME)}, {"video_id": "other"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metadata = MetadataConfig(
        files=(str(tmp_path / "m.jsonl"),), layout="table", exclude=(str(tmp_path / f"x.{suffix}"),)
    )
    plan = make_plan(tmp_path / "out", metadata, ShardsConfig(), 42, 1 << 20)
    assert [video.video_id for video in plan.shard(0).videos] == ["other"]


@pytest.mark.parametrize("extension", [*VIDEO_EXTENSIONS, "MOV", "MP4", "3GP"])
def test_every_suffix_of_a_video_and_those_of_cameras_are_found(extension: str, tmp_path: Path) -> None:
    (tmp_path / f"IMG_0001.{extension}").touch()
    locate = VideoLocator(VideosConfig(templates=(str(tmp_path / "{video_id}.{ext}"),)), tmp_path)
    assert locate("IMG_0001") == tmp_path / f"IMG_0001.{extension}"
