"""Finds the file of a video id: by path templates, tried in order, or by an index file.

locate = VideoLocator(config.videos)
path = locate("QMi8x8o55Ns")          # Path, or None where no candidate exists
"""

import errno
from pathlib import Path

from pydantic import model_validator

from pipeline.config import Section
from pipeline.errors import InputError
from preprocess.lines import BadRow, read_rows


class VideosConfig(Section):
    """Where the source videos lie."""

    templates: tuple[str, ...] = ()
    """Paths with `{video_id}` (or `{video_id:.2}` for its first two characters), tried in order; `{ext}` stands for
    each of `extensions`."""
    extensions: tuple[str, ...] = ("mp4", "mkv", "webm", "avi", "mov", "m4v", "flv")
    """What `{ext}` stands for, in order of preference."""
    index: str = ""
    """A file that names the path of each video instead: .jsonl, .csv or .parquet with the columns video_id and path;
    relative paths count from the index file."""

    @model_validator(mode="after")
    def _one_way(self) -> "VideosConfig":
        if bool(self.templates) == bool(self.index):
            raise ValueError("set either templates or index")
        for template in self.templates:
            if "{video_id" not in template:
                raise ValueError(f"the template {template!r} holds no {{video_id}}")
            try:
                template.format(video_id="x", ext="mp4")
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(
                    f"the template {template!r} is wrong ({error}); it takes {{video_id}} and {{ext}}"
                ) from None
        return self


class VideoLocator:
    """Maps video ids to existing files."""

    def __init__(self, config: VideosConfig) -> None:
        self._config = config
        self._paths = _read_index(Path(config.index)) if config.index else {}

    def __call__(self, video_id: str) -> Path | None:
        """The first candidate that is a file."""
        return next((path for path in self.candidates(video_id) if is_file(path)), None)

    def candidates(self, video_id: str) -> list[Path]:
        """All paths at which the video may lie, in order of preference."""
        if self._config.index:
            path = self._paths.get(video_id)
            return [] if path is None else [path]
        found: list[Path] = []
        for template in self._config.templates:
            extensions = self._config.extensions if "{ext" in template else ("",)
            found += [Path(template.format(video_id=video_id, ext=extension)) for extension in extensions]
        return found


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file system takes is none, while a folder out of reach raises."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _read_index(path: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for row in read_rows(path, 1 << 20):
        if isinstance(row, BadRow):
            raise InputError(f"videos.index {row.where}: {row.problem}")
        video_id, file = row.get("video_id"), row.get("path")
        if not isinstance(video_id, str) or not isinstance(file, str):
            raise InputError(f"videos.index {path} needs the columns video_id and path, got {list(row)[:20]}")
        paths[video_id] = path.parent / file
    return paths
