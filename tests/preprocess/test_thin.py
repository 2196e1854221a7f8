"""What is left out before the decode changes no byte of any clip, and it is much."""

import dataclasses
import io
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import decode, thin
from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Failure, Media
from preprocess.select import OPEN_END, Grid, Slots
from preprocess.thin import Wanted, feed_needed, is_disposable

Painter = Callable[..., Path]
LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
CLIPS = [Clip("a", 0.3, 4.1), Clip("b", 4.1, 8.3), Clip("c", 2.0, 6.5), Clip("d", 9.0, 15.0), Clip("all", 0.0, None)]
B_FRAMES = {"bf": "3", "g": "100"}
SOURCES = {
    "pyramid": {"options": {**B_FRAMES, "x264-params": "b-pyramid=normal:b-adapt=2"}},
    "no-pyramid": {"options": {**B_FRAMES, "x264-params": "b-pyramid=none:b-adapt=0"}},
    "open-gop": {"options": {"x264-params": "bframes=4:open-gop=1:keyint=40"}},
    "matroska": {"suffix": "mkv", "options": B_FRAMES},
    "late-start": {"suffix": "mkv", "options": B_FRAMES, "times_s": [7.3 + number / 25 for number in range(300)]},
    "29.97": {"fps": 30, "times_s": [number * 1001 / 30000 for number in range(300)], "options": B_FRAMES},
    "variable": {"times_s": [number / 25 + 0.017 * (number % 3) for number in range(300)], "options": B_FRAMES},
    "gaps": {"times_s": [number / 25 + number // 70 for number in range(300)], "options": B_FRAMES},
    "no-b-frames": {"options": {"bf": "0"}},
    "mpegts": {"suffix": "ts", "options": B_FRAMES},
    "interlaced": {"options": {**B_FRAMES, "flags": "+ildct+ilme", "x264-params": "interlaced=1"}},
}
READ_WHOLE = ("variable", "gaps", "mpegts", "interlaced")


def cut(path: Path, *, whole: bool = False, clips: list[Clip] = CLIPS, fps: float = 3.0) -> list[Media | Failure]:
    probe = probe_video(path, LIMITS)
    probe = dataclasses.replace(probe, can_be_thinned=False) if whole else probe
    return list(cut_clips(path, "v", probe, clips, ClipsConfig(size_px=48, fps=fps), LIMITS))


def noisy(number: int, width: int, height: int) -> np.ndarray:
    """Pictures that differ from frame to frame, so that a wrong frame shows."""
    rng = np.random.default_rng(number // 5)
    return np.roll(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), number, axis=1)


def write(name: str, painted: Painter, folder: Path) -> Path:
    options = dict(SOURCES[name])
    path = folder / f"x.{options.pop('suffix', 'mp4')}"
    return painted(path, num_frames=300, draw=noisy, **options)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("fps", [3.0, 12.0])
def test_clips_are_those_of_the_whole_file(name: str, fps: float, painted: Painter, tmp_path: Path) -> None:
    path = write(name, painted, tmp_path)
    assert probe_video(path, LIMITS).can_be_thinned == (name not in READ_WHOLE)
    assert cut(path, fps=fps) == cut(path, whole=True, fps=fps)


def fed(path: Path, fps: float = 3.0) -> list[tuple[int, bytes]]:
    """Time and content of the packets that ffmpeg gets."""
    sink, grid = io.BytesIO(), Grid.for_fps(fps)
    feed_needed(path, 0, Wanted([grid.slots(clip) for clip in CLIPS], grid), LIMITS, sink)
    with av.open(io.BytesIO(sink.getvalue()), format="nut") as container:
        return [(packet.pts or 0, bytes(packet)) for packet in container.demux(video=0) if packet.size]


def test_most_frames_without_a_slot_are_left_out(painted: Painter, tmp_path: Path) -> None:
    path = write("no-pyramid", painted, tmp_path)
    with av.open(str(path)) as container:
        whole = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    left = [data for _, data in fed(path)]
    assert len(whole) == 300 and len(left) < 200
    assert set(left) <= set(whole), "what is left is left as it is"
    assert len(fed(path, fps=25.0)) == 300, "at the rate of the source every frame is wanted"


def test_a_file_that_is_cut_short_gives_what_it_gave(painted: Painter, tmp_path: Path) -> None:
    whole = write("matroska", painted, tmp_path).read_bytes()
    path = tmp_path / "cut.mkv"
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        assert cut(path) == cut(path, whole=True)


def test_frames_that_an_edit_list_hides_stay_hidden(painted: Painter, tmp_path: Path) -> None:
    """A copy that starts between two key frames holds frames that are decoded and never shown."""
    source, path = write("pyramid", painted, tmp_path), tmp_path / "cut.mp4"
    command = [find_ffmpeg(), "-v", "error", "-ss", "1.3", "-i", str(source), "-c", "copy", str(path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    with av.open(str(path)) as container:
        assert any(packet.is_discard or (packet.pts or 0) < 0 for packet in container.demux(video=0))
    assert cut(path) == cut(path, whole=True)


SOUND = ["-f", "lavfi", "-i", "sine=duration=12", "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("suffix", "before", "after"),
    [
        ("mp4", [], SOUND),
        ("mkv", [], SOUND),
        ("mp4", ["-itsoffset", "0.7"], SOUND),
        ("mkv", ["-itsoffset", "0.7"], SOUND),
        ("mp4", [], ["-c", "copy", "-movflags", "frag_keyframe+empty_moov+default_base_moof"]),
        ("mkv", ["-copyts", "-ss", "5.1"], ["-c", "copy"]),
    ],
    ids=["sound", "sound-mkv", "sound-first", "sound-first-mkv", "fragments", "cut"],
)
def test_the_clock_is_that_of_the_whole_file(
    suffix: str, before: list[str], after: list[str], painted: Painter, tmp_path: Path
) -> None:
    """Sound that starts before the pictures, priming samples, a first time that is not zero."""
    source, path = write("pyramid", painted, tmp_path), tmp_path / f"clock.{suffix}"
    command = [find_ffmpeg(), "-v", "error", *before, "-i", str(source), *after, str(path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    assert probe_video(path, LIMITS).can_be_thinned
    assert cut(path) == cut(path, whole=True)


def test_spans_that_never_end_cost_no_more(painted: Painter, tmp_path: Path) -> None:
    """Metadata may claim months, and so for every clip."""
    path = write("no-pyramid", painted, tmp_path)
    endless = [Clip(f"long.{number}", number / 10, 9e6 + number) for number in range(20)]
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = cut(path, clips=[Clip("whole", 0.0, None), *endless])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)] == ["span_beyond_end"] * 20


def test_an_odd_packet_on_the_way_is_left_to_ffmpeg(
    painted: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was delivered before it stands, and what comes after it is read from the file itself."""
    path = write("pyramid", painted, tmp_path)
    wanted = cut(path, whole=True)
    real = decode.feed_needed
    for num_bytes in (0, 20_000, 200_000):

        class Odd(io.RawIOBase):
            """Fails for another reason than a missing reader."""

            def __init__(self, sink: io.BufferedWriter, left: int) -> None:
                self._sink, self._left = sink, left

            def write(self, data: bytes) -> int:  # type: ignore[override]
                self._left -= len(data)
                if self._left < 0:
                    raise OSError("made up")
                return self._sink.write(data)

        monkeypatch.setattr(
            decode,
            "feed_needed",
            lambda path, index, wanted, limits, sink, n=num_bytes: real(path, index, wanted, limits, Odd(sink, n)),
        )
        assert cut(path) == wanted


def test_rotated_video_is_read_whole(painted: Painter, tmp_path: Path) -> None:
    path, rotated = write("pyramid", painted, tmp_path), tmp_path / "rotated.mp4"
    with av.open(str(path)) as source, av.open(str(rotated), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert not probe_video(rotated, LIMITS).can_be_thinned


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9) | st.just(OPEN_END)), max_size=6),
    st.integers(1, 20),
    st.integers(-5, 300),
    st.integers(0, 40),
)
def test_wanted_slots(starts: list[tuple[int, int]], stride: int, first: int, length: int) -> None:
    spans = [Slots(start, stride, count) for start, count in starts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thin, "_MANY_SLOTS", 5)
        wanted = Wanted(spans, Grid.for_fps(3.0))
    naive = any(slot in span for slot in range(first, first + length) for span in spans)
    assert wanted.any_between(first, first + length) == naive


@pytest.mark.parametrize(
    ("units", "answer"),
    [
        ([b"\x01slice"], True),
        ([b"\x06sei", b"\x01slice", b"\x01slice"], True),
        ([b"\x21slice"], False),
        ([b"\x01slice", b"\x21slice"], False),
        ([b"\x65key"], False),
        ([b"\x67parameters", b"\x01slice"], False),
        ([b"\x06sei"], False),
        ([b"\x14extension"], False),
        ([], False),
        ([b""], False),
    ],
)
def test_disposable_packets(units: list[bytes], answer: bool) -> None:
    for length_bytes in (1, 2, 4):
        data = b"".join(len(unit).to_bytes(length_bytes, "big") + unit for unit in units)
        assert is_disposable(data, length_bytes) is answer
        assert not is_disposable(data + b"\x09", length_bytes) and not is_disposable(data[:-1], length_bytes)
