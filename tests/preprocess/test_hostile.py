"""Hostile files stay harmless: no other file is read, no limit is passed, every clip gets its reason."""

import os
import resource
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.data.format import Reason
from preprocess.clips import ClipsConfig
from preprocess.clock import Clock
from preprocess.cut import cut_clips
from preprocess.decode import _LimitedProcess, decode_command
from preprocess.limits import LimitsConfig, memory_limited
from preprocess.probe import Probe, probe_video
from preprocess.records import Clip, ClipError, Failure, Media
from preprocess.select import Grid

LIMITS = LimitsConfig(time_s=20, memory_mb=1024)
PROBE = Probe(0, 64, 48, "bt601", False, None)


def outcome(path: Path, limits: LimitsConfig = LIMITS, probe: Probe | None = None) -> Media | Failure:
    """What becomes of one clip; with `probe` the look before the decode is left out."""
    clip = Clip("v.1.mp4", 0.0, 1.0)
    try:
        probe = probe or probe_video(path, limits)
    except ClipError as error:
        return Failure("v.1.mp4", "v", error.reason, error.detail)
    (result,) = cut_clips(path, "v", probe, [clip], ClipsConfig(size_px=32), limits)
    return result


_DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"><Period>
<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{name}</BaseURL></Representation>
</AdaptationSet></Period></MPD>"""
_SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
_HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "hls": _HLS.replace("{target}", "{secret}"),
    "network": _HLS.replace("{target}", "http://127.0.0.1:9/x.ts"),
    "concat": "ffconcat version 1.0\nfile '{name}'\n",
    "dash": _DASH,
    "sdp": _SDP,
    "ass": "[Script Info]\nScriptType: v4.00+\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("with_probe", [True, False])
def test_playlists_do_not_reach_the_secret(
    kind: str, with_probe: bool, painted: Callable[..., Path], tmp_path: Path
) -> None:
    secret = painted(tmp_path / "secret.mp4")
    path = tmp_path / "video.mp4"
    path.write_text(PLAYLISTS[kind].format(secret=secret, name=secret.name))
    result = outcome(path, probe=None if with_probe else PROBE)
    assert isinstance(result, Failure)
    assert result.reason in (Reason.FORBIDDEN_FORMAT, Reason.VIDEO_UNREADABLE)


def test_the_secret_itself_is_a_fine_video(painted: Callable[..., Path], tmp_path: Path) -> None:
    assert isinstance(outcome(painted(tmp_path / "secret.mp4")), Media)


def test_mov_data_references_are_not_followed(painted: Callable[..., Path], tmp_path: Path) -> None:
    """A mov may say that its samples lie in another file: ours must not open it."""
    secret = painted(tmp_path / "secret.mp4")
    data = secret.read_bytes()
    alias = f"file://{secret}".encode() + b"\0"
    reference = struct.pack(">I4sI", 12 + len(alias), b"url ", 0) + alias
    old = struct.pack(">I4sI", 12, b"url ", 1)
    assert old in data
    path = tmp_path / "video.mp4"
    moov = data.index(b"moov") - 4
    path.write_bytes(data[:28] + data[moov:].replace(old, reference[:12], 1))
    result = outcome(path)
    assert isinstance(result, Failure)


@pytest.mark.parametrize(
    "name", ["-y.mp4", "http:x.mp4", "concat:secret.mp4", "a:b|c.mp4", "%03d.mp4", "pipe:0", "x'y.mp4"]
)
def test_names_that_ffmpeg_could_misread(name: str, painted: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / name
    painted(tmp_path / "plain.mp4").rename(path)
    assert isinstance(outcome(path), Media)


def test_relative_names(painted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted(tmp_path / "-i.mp4")
    monkeypatch.chdir(tmp_path)
    assert isinstance(outcome(Path("-i.mp4")), Media)


def test_the_command_line_has_no_shell_and_one_input(tmp_path: Path) -> None:
    grid = Grid.for_fps(3)
    command = decode_command(tmp_path / "x.mp4", PROBE, [grid.slots(Clip("v.1", 0, 1))], grid, ClipsConfig(), LIMITS)
    assert command.count("-i") == 1
    for option in ("-protocol_whitelist", "-format_whitelist", "-max_pixels", "-nostdin"):
        assert option in command
    assert command.index("-format_whitelist") < command.index("-i")


def test_huge_frames(tmp_path: Path, painted: Callable[..., Path]) -> None:
    path = painted(tmp_path / "x.mp4", size=(640, 480), num_frames=5)
    result = outcome(path, LIMITS.model_copy(update={"max_frame_pixels": 100 * 100}))
    assert isinstance(result, Failure) and result.reason == Reason.TOO_LARGE
    result = outcome(path, LIMITS.model_copy(update={"max_frame_pixels": 100 * 100}), PROBE)
    assert isinstance(result, Failure)


def test_large_clips(tmp_path: Path, painted: Callable[..., Path]) -> None:
    def noise(number: int, width: int, height: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)

    path = painted(tmp_path / "x.mp4", num_frames=50, size=(320, 240), draw=noise, options={"preset": "ultrafast"})
    limits = LimitsConfig(max_clip_mb=1)
    config = ClipsConfig(size_px=320, fps=25, quality=1)
    (result,) = cut_clips(path, "v", probe_video(path, limits), [Clip("v.1", 0, 2)], config, limits)
    assert isinstance(result, Failure) and result.reason == Reason.TOO_LARGE


def test_memory_limit(tmp_path: Path, painted: Callable[..., Path]) -> None:
    path = painted(tmp_path / "x.mp4", size=(3840, 2160), num_frames=2, options={"preset": "ultrafast"})
    result = outcome(path, LimitsConfig.model_construct(**{**LIMITS.model_dump(), "memory_mb": 280}))
    assert isinstance(result, Failure) and result.reason == Reason.MEMORY_LIMIT, result


def test_a_look_at_a_video_has_a_limit_of_its_own() -> None:
    """A worker with a captioner has none for the whole of it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError), memory_limited(LimitsConfig(memory_mb=256)):
        np.ones(400 * 2**20, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert np.ones(400 * 2**20, np.uint8).all()


@pytest.mark.parametrize("has_device", [False, True])
def test_addresses_that_a_gpu_driver_reserves_are_no_memory(has_device: bool) -> None:
    limits, bound = LimitsConfig(memory_mb=512), (512 * 2**20, 512 * 2**20)
    with _LimitedProcess(["sleep", "60"], limits, Clock(60), has_device) as process:
        pid = process._process.pid
        found = {kind: resource.prlimit(pid, kind) == bound for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
    assert found == {resource.RLIMIT_AS: not has_device, resource.RLIMIT_DATA: has_device}


def test_a_stream_without_end_meets_the_time_limit(tmp_path: Path) -> None:
    """A pipe that never ends stands for a file that the file system never finishes to deliver."""
    path = tmp_path / "video.mp4"
    os.mkfifo(path)
    stop = threading.Event()

    def feed() -> None:
        try:
            with open(path, "wb", buffering=0) as stream:
                while not stop.is_set():
                    stream.write(struct.pack(">I4s", 1016, b"free") + b"\0" * 1008)
                    stop.wait(0.01)
        except BrokenPipeError:
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    result = outcome(path, LIMITS.model_copy(update={"time_s": 0.7}), PROBE)
    stop.set()
    feeder.join()
    assert isinstance(result, Failure) and result.reason == Reason.TIME_LIMIT


def test_audio_only_and_pictures(tmp_path: Path, painted: Callable[..., Path]) -> None:
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    result = outcome(path)
    assert isinstance(result, Failure) and result.reason == Reason.NO_VIDEO_STREAM
    picture = tmp_path / "picture.mp4"
    Image.new("RGB", (64, 64)).save(picture, format="PNG")
    result = outcome(picture)
    assert isinstance(result, Failure) and result.reason == Reason.FORBIDDEN_FORMAT


@pytest.mark.parametrize("content", [b"", b"\0" * 10_000, b"not a video at all\n" * 100])
def test_no_video_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    result = outcome(path)
    assert isinstance(result, Failure)
    assert result.reason in (Reason.VIDEO_UNREADABLE, Reason.FORBIDDEN_FORMAT)
