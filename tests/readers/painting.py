"""Pictures that tell their number, which way up they are, and their colours; and files that hold them in every way.

Picture i is grey of level 20 + 16 i; its corners are red, green, blue and white, from top left to bottom right. A
`Source` says how a file is made of them, by the ffmpeg program alone, and which pictures it displays.
"""

import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CORNERS = np.array([(200, 40, 40), (40, 180, 60), (50, 60, 200), (235, 235, 235)])
"""Red, green, blue, white: top left, top right, bottom left, bottom right."""
TURNS = {
    "upright": (1, 0, 0, 1),
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "rot180": (-1, 0, 0, -1),
    "rot90": (0, 1, -1, 0),
    "rot270": (0, -1, 1, 0),
    "transpose": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}
"""(a, b, c, d): the stored pixel (x, y) is displayed at (a x + c y, b x + d y)."""

Step = Callable[[Path, Path], None]


def paint(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3], RGB."""
    picture = np.full((height, width, 3), 20 + 16 * number, np.uint8)
    rows, columns = height // 3, width // 4
    for corner, colour in enumerate(CORNERS):
        below, right = divmod(corner, 2)
        picture[
            slice(height - rows, None) if below else slice(rows),
            slice(width - columns, None) if right else slice(columns),
        ] = colour
    return picture


def areas(picture: np.ndarray) -> np.ndarray:
    """Mean colours [5, 3] of the middle and the corners, far from the edges where colours bleed."""
    height, width = picture.shape[:2]
    spots = [(0.5, 0.5), (1 / 6, 1 / 8), (1 / 6, 7 / 8), (5 / 6, 1 / 8), (5 / 6, 7 / 8)]
    dy, dx = max(1, height // 14), max(1, width // 20)
    parts = [(round(height * y), round(width * x)) for y, x in spots]
    return np.array([picture[y - dy : y + dy, x - dx : x + dx].mean(axis=(0, 1)) for y, x in parts])


def painted_areas(number: int) -> np.ndarray:
    return np.array([(20 + 16 * number,) * 3, *CORNERS], float)


@dataclass(frozen=True)
class Source:
    """How one file is made."""

    suffix: str = "mp4"
    encoder: str = "libx264 -qp 8 -bf 2 -g 6"
    pixels: str = "yuv420p"
    size: tuple[int, int] = (96, 64)
    """Width and height as stored."""
    num_frames: int = 12
    rate: str = "10"
    matrix: str = "bt601"
    full: bool = False
    tagged: bool = False
    turn: str = "upright"
    times: str = ""
    """An expression of N for ffmpeg's setpts, in milliseconds, where the rate varies."""
    muxer: str = ""
    """Options of the container."""
    steps: tuple[Step, ...] = ()
    """From file to file."""
    shown: Sequence[int] | None = None
    """Numbers of the displayed pictures; None: all."""

    @property
    def numbers(self) -> list[int]:
        return list(range(self.num_frames) if self.shown is None else self.shown)


def ffmpeg(*arguments: str | Path, data: bytes | None = None) -> str:
    """Run the ffmpeg program; what it says."""
    command = ["ffmpeg", "-hide_banner", "-y", *(str(argument) for argument in arguments)]
    answer = subprocess.run(
        command, input=data, stdin=subprocess.DEVNULL if data is None else None, capture_output=True
    )
    assert answer.returncode == 0, answer.stderr.decode(errors="replace")[-2000:]
    return answer.stderr.decode(errors="replace")


def stored(picture: np.ndarray, turn: str) -> np.ndarray:
    """What has to be stored for `picture` to be displayed, pixel by pixel from the meaning of the matrix."""
    a, b, c, d = TURNS[turn]
    height, width = picture.shape[:2]
    kept_h, kept_w = (height, width) if a else (width, height)
    y, x = np.mgrid[:kept_h, :kept_w]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    return picture[shown_y - shown_y.min(), shown_x - shown_x.min()]


def write(source: Source, folder: Path, name: str) -> Path:
    """Make the file in `folder`."""
    width, height = source.size if TURNS[source.turn][0] else source.size[::-1]
    frames = [stored(paint(number, width, height), source.turn) for number in range(source.num_frames)]
    ranges = "pc" if source.full else "tv"
    yuv = f"out_color_matrix={source.matrix}:out_range={ranges}:flags=accurate_rnd+full_chroma_int"
    times = f"settb=1/1000,setpts='{source.times}'," if source.times else ""
    space = {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020nc"}[source.matrix]
    tags = f"-colorspace {space} -color_range {ranges}".split() if source.tagged else []
    shape = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{source.size[0]}x{source.size[1]}", "-r", source.rate]
    filters = f"{times}scale={yuv},format={source.pixels}"
    clock = ["-fps_mode", "passthrough", "-enc_time_base", "1:1000"] if source.times else []
    options = f"-c:v {source.encoder} -threads 1 {source.muxer}".split()
    path = folder / f"{name}.{source.suffix}"
    ffmpeg(
        *shape,
        "-i",
        "pipe:0",
        "-vf",
        filters,
        *clock,
        *options,
        *tags,
        path,
        data=b"".join(one.tobytes() for one in frames),
    )
    if source.turn != "upright":
        path.write_bytes(with_matrix(path.read_bytes(), source.turn))
    for number, step in enumerate(source.steps):
        after = folder / f"{name}_{number}.{source.suffix}"
        step(path, after)
        path = after
    return path


def with_matrix(data: bytes, turn: str) -> bytes:
    """An mp4 or mov with another matrix in the header of its first track."""
    a, b, c, d = (number << 16 for number in TURNS[turn])
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    return data[:place] + matrix + data[place + len(matrix) :]


def copied(*options: str, before: Sequence[str] = ()) -> Step:
    """Packets as they are, with ffmpeg's options before and after the input."""

    def step(source: Path, target: Path) -> None:
        ffmpeg(*before, "-i", source, "-c", "copy", *options, target)

    return step


def ends_at(seconds: float) -> Step:
    """An edit list that hides what comes later."""

    def step(source: Path, target: Path) -> None:
        data = bytearray(source.read_bytes())
        place = data.index(b"elst") + 12
        rate = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
        struct.pack_into(">I", data, place, round(seconds * rate))
        target.write_bytes(data)

    return step


def edited(*edits: tuple[float, float]) -> Step:
    """An edit list of several parts: (seconds, from which second of the media; -1: nothing)."""

    def step(source: Path, target: Path) -> None:
        data = bytearray(source.read_bytes())
        movie_rate, media_rate = (
            struct.unpack_from(">I", data, data.index(kind) + 16)[0] for kind in (b"mvhd", b"mdhd")
        )
        place = data.index(b"elst") - 4
        (size,) = struct.unpack_from(">I", data, place)
        (first,) = struct.unpack_from(">i", data, place + 20)
        body = struct.pack(">II", 0, len(edits))
        for seconds, start_s in edits:
            start = -1 if start_s < 0 else first + round(start_s * media_rate)
            body += struct.pack(">IiI", round(seconds * movie_rate), start, 1 << 16)
        for kind in (b"moov", b"trak", b"edts"):
            at = data.index(kind) - 4
            struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + 8 + len(body) - size)
        data[place : place + size] = struct.pack(">I4s", 8 + len(body), b"elst") + body
        target.write_bytes(data)

    return step


def joined(source: Path, target: Path) -> None:
    """Twice the same, end to end: the time stamps start again."""
    target.write_bytes(source.read_bytes() * 2)


def without_start(num_bytes: int) -> Step:
    """A recording that sets in between two key frames."""
    return lambda source, target: target.write_bytes(source.read_bytes()[num_bytes:]) and None


def with_cover_first(*dispositions: str) -> Step:
    """A cover as the first stream, before the film."""

    def step(source: Path, target: Path) -> None:
        cover = target.with_suffix(".jpg")
        ffmpeg("-f", "lavfi", "-i", "color=red:size=300x300", "-frames:v", "1", cover)
        ffmpeg("-i", cover, "-i", source, "-map", "0:v", "-map", "1", "-c", "copy", *dispositions, target)

    return step


def with_other_stream(source: Path, target: Path) -> None:
    """A larger film that is not the default, in front."""
    other = target.with_name(f"other_{target.name}")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=320x240:rate=10", "-frames:v", "12", "-c:v", "libx264", other)
    ffmpeg(
        *("-i", other, "-i", source, "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:0", "0", "-disposition:v:1", "default", target),
    )


def with_sound(offset_s: float) -> Step:
    """Sound from 0 on, the pictures from `offset_s` on."""

    def step(source: Path, target: Path) -> None:
        sound = ["-f", "lavfi", "-i", "sine=duration=2"]
        codec = "libvorbis" if target.suffix == ".webm" else "aac"
        maps = ["-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", codec]
        ffmpeg("-itsoffset", str(offset_s), "-i", source, *sound, *maps, target)

    return step
