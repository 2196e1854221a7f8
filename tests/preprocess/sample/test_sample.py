"""The sample corpus: shape of the files, held-out content, restart, and that one frame does not tell the motion."""

import json
import re
from pathlib import Path

import av
import lmdb
import numpy as np
import pytest

from pipeline.errors import InputError
from preprocess.sample.corpus import build_corpus
from preprocess.sample.plan import Defect, SampleConfig, plan_corpus
from preprocess.sample.scenes import DIRECTIONS, KIND_OF, draw_scene, pose_at


def tiny(folder: Path, **changes: object) -> SampleConfig:
    return SampleConfig.model_validate(
        {
            "folder": folder,
            "num_train_clips": 12,
            "num_heldout_clips": 6,
            "width_px": 48,
            "height_px": 32,
            "processes": 1,
        }
        | changes
    )


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(errors="replace").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "sample"
    assert build_corpus(tiny(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_metadata_has_the_shape_of_hd_vila(folder: Path) -> None:
    parts = sorted((folder / "metadata" / "train").iterdir()) + sorted((folder / "metadata" / "heldout").iterdir())
    videos = [row for part in parts for row in rows(part)]
    clips = [clip for video in videos for clip in video["clip"]]  # type: ignore[attr-defined]
    assert all(set(video) == {"video_id", "url", "clip"} for video in videos)
    assert all(re.fullmatch(r"[\w-]{11}\.\d+\.mp4", clip["clip_id"]) for clip in clips)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d", time) for clip in clips for time in clip["span"])
    assert len({clip["clip_id"] for clip in clips}) == len(clips) == 12 + 9 + 6
    assert any(not clip["span"][0].endswith("00") for clip in clips)


def test_videos_have_b_frames_and_one_group_of_pictures(folder: Path) -> None:
    video = plan_corpus(tiny(folder)).heldout[0]
    with av.open(str(folder / "videos" / f"{video.video_id}.mp4")) as container:
        kinds = [frame.pict_type for frame in container.decode(video=0)]
    assert kinds.count(av.video.frame.PictureType.I) == 1
    assert kinds.count(av.video.frame.PictureType.B) > 0


def test_texts_lie_where_the_plan_says(folder: Path) -> None:
    plan = plan_corpus(tiny(folder))
    clips = [clip for video in plan.videos for clip in video.clips]
    subtitles = {row["clip_id"] for row in rows(folder / "subtitles.jsonl")}
    assert subtitles == {clip.clip_id for clip in clips if clip.has_subtitle}
    with (
        lmdb.open(str(folder / "captions_db"), readonly=True, lock=False) as environment,
        environment.begin() as reader,
    ):
        captions = {key.decode(): value.decode() for key, value in reader.cursor()}
    assert set(captions) == {clip.clip_id for clip in clips if clip.has_caption}
    motion_words = {"slides", "moves", "turns", "grows", "shrinks", "blinks", "still"}
    assert not any(motion_words & set(caption.split()) for caption in captions.values())


def test_a_second_call_does_nothing_and_a_lost_video_comes_back_identical(folder: Path) -> None:
    before = contents(folder)
    assert not build_corpus(tiny(folder))
    lost = next(name for name in before if name.startswith("videos/"))
    (folder / lost).unlink()
    assert build_corpus(tiny(folder))
    assert contents(folder) == before


def test_a_folder_of_another_config_or_origin_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another config"):
        build_corpus(tiny(folder, seed=8))
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="no sample corpus"):
        build_corpus(tiny(tmp_path))


def test_bad_clips_are_bad(folder: Path) -> None:
    plan = plan_corpus(tiny(folder))
    by_defect = {video.defect: video for video in plan.train}
    assert not (folder / "videos" / f"{by_defect[Defect.NO_VIDEO].video_id}.mp4").exists()
    with pytest.raises(av.error.FFmpegError):
        av.open(str(folder / "videos" / f"{by_defect[Defect.BROKEN_VIDEO].video_id}.mp4"))


def test_held_out_queries_are_unique_unseen_and_partly_new_combinations() -> None:
    plan = plan_corpus(SampleConfig())
    train = [clip.scene for video in plan.train for clip in video.clips]
    heldout = [clip.scene for video in plan.heldout for clip in video.clips]
    assert len({scene.content for scene in heldout}) == len(heldout) == 256
    new = [scene for scene in heldout if scene.combination not in {other.combination for other in train}]
    assert len(heldout) / 10 < len(new) < len(heldout) / 2
    assert {video.video_id for video in plan.train}.isdisjoint(video.video_id for video in plan.heldout)


def test_the_first_frame_does_not_tell_the_kind_of_motion() -> None:
    rng = np.random.default_rng(0)
    poses: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in DIRECTIONS}
    for _ in range(6000):
        scene = draw_scene(rng)
        pose = pose_at(scene, 0.0)
        assert pose.visible
        poses[KIND_OF[scene.direction]].append((pose.x, pose.y, pose.size, pose.angle))
    every = np.concatenate([np.array(values) for values in poses.values()])
    edges = np.quantile(every, [0.25, 0.5, 0.75], axis=0)
    for values in poses.values():
        shares = (np.array(values)[:, None] < edges).mean(axis=0)
        assert np.abs(shares - [[0.25], [0.5], [0.75]]).max() < 0.07


def test_shapes_stay_in_the_picture() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = draw_scene(rng)
        for t in (0.0, 0.5, 1.0):
            pose = pose_at(scene, t)
            assert 0.1 <= pose.x <= 0.9
            assert 0.1 <= pose.y <= 0.9
