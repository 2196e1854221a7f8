"""Finds the file of a video id: by path templates, tried in order, or by an index file.

prepare_videos(config.videos, output)          # once, before any process looks
locate = VideoLocator(config.videos, output)
path = locate("QMi8x8o55Ns")          # Path, or None where no candidate exists
"""

import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.data.format import VIDEO_EXTENSIONS, unicode_forms
from pipeline.errors import InputError, MachineFault
from preprocess.csv_rows import BadRow
from preprocess.faults import retried
from preprocess.ids import id_text
from preprocess.lines import read_rows
from preprocess.table_guess import columns_of, guess_table, shown
from preprocess.text_index import TextIndex, build_index_once, index_folder

_KIND = "videos"
_FOLDERS_LOOKED_AT = 64
_MAX_LINE_BYTES = 1 << 20


class VideosConfig(Section):
    """Where the source videos lie."""

    templates: tuple[str, ...] = ()
    """Paths with `{video_id}` (or `{video_id:.2}` for its first two characters), tried in order; `{ext}` stands for
    each of `extensions`."""
    extensions: tuple[str, ...] = VIDEO_EXTENSIONS
    """What `{ext}` stands for, in order of preference; in capitals too, after all of them."""
    index: str = ""
    """A file that names the path of each video instead: .jsonl, .csv or .parquet with the columns video_id and path;
    relative paths count from the index file, and the first row of a video counts."""
    max_missing_odds: float = Field(default=1e-6, ge=0, lt=1)
    """A shard in which so few videos are there that chance brings it about less often than this, given the videos of
    the shards before it, is taken for a lost mount: it is not written, and the job stops. 0: never."""

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
    """Maps video ids to existing files. `prepare_videos` comes first."""

    def __init__(self, config: VideosConfig, output: Path) -> None:
        self._config = config
        self._index = TextIndex(index_folder(Path(config.index), output, _KIND)) if config.index else None
        self._roots = Roots(self._folders(), all_must_stay=self._index is None, may_be_empty=False)

    def __call__(self, video_id: str) -> Path | None:
        """The first candidate that is a file."""
        return next((path for path in self.candidates(video_id) if is_file(path)), None)

    def candidates(self, video_id: str) -> Iterator[Path]:
        """All paths at which the video may lie, in order of preference."""
        if self._index is not None:
            named = (self._index.get(form) for form in unicode_forms(video_id))
            path = next((path for path in named if path is not None), None)
            folder = Path(self._config.index).parent
            yield from () if path is None else (folder / form for form in unicode_forms(path))
            return
        for template in self._config.templates:
            small = self._config.extensions if "{ext" in template else ("",)
            for extension in dict.fromkeys((*small, *map(str.upper, small))):
                yield from paths_of(template, video_id, extension)

    def missing_detail(self, video_id: str) -> str:
        """Where a video was looked for that is not there, for people."""
        candidates = list(self.candidates(video_id))
        if not candidates:
            return f"not named in {self._config.index}"
        more = f" or under {len(candidates) - 1} other names" if len(candidates) > 1 else ""
        return f"no file at {candidates[0]}{more}"

    def check_reach(self) -> None:
        """Raise an `InputError` where no video at all can be reached: a file system that is not mounted on this node.

        That some videos are not there is the normal case. Looks at a fixed number of folders.
        """
        folders = self._folders()
        if self._index is not None:
            if folders and not any(_holds_anything(folder) for folder in folders):
                raise InputError(
                    f"videos.index: nothing lies in {folders[0]} and the other folders of {self._config.index} on this "
                    "machine; mount the file system, or mend the paths"
                )
            return
        for folder in folders:
            if not _is_folder(folder):
                raise InputError(
                    f"videos.templates: there is no folder {folder} on this machine; mount the file system, make the "
                    "folder or change the template"
                )
        if not any(_holds_anything(folder) for folder in folders):
            raise InputError(
                f"videos.templates: nothing lies in {' or '.join(str(folder) for folder in folders)} on this machine; "
                "mount the file system, or put videos there"
            )

    def check_still_there(self) -> None:
        """Raise a `MachineFault` where the folders of the videos are lost: what is missing may be there all the same.

        The folders of `videos.index` may empty one by one, as films are deleted: there all must be lost.
        """
        self._roots.check_still_there()

    def _folders(self) -> list[Path]:
        """The folders in which videos lie: of each template, or of some rows of the index."""
        if self._index is None:
            return [fixed_folder(template) for template in self._config.templates]
        paths = [Path(self._config.index).parent / text for _, text in self._index.spread(_FOLDERS_LOOKED_AT)]
        return sorted({path.parent for path in paths})


class Roots:
    """Folders that hold files, as they are found when it is made, on this machine."""

    def __init__(self, folders: Sequence[Path] = (), all_must_stay: bool = True, may_be_empty: bool = True) -> None:
        self._folders, self._all_must_stay, self._may_be_empty = folders, all_must_stay, may_be_empty
        self._devices = {folder: device for folder in folders if (device := _device_with_files(folder)) is not None}
        """The folders that hold something, each with its file system's number: another one is another mount."""

    def check_still_there(self) -> None:
        """Raise a `MachineFault` where one of the folders (all of them, unless all must stay) is gone, empty, or on
        another file system than it was."""
        if not self._folders:
            return
        lost = []
        for folder, device in self._devices.items():
            if _device_with_files(folder) != device:
                lost.append(folder)
            elif not self._all_must_stay:
                return
        is_empty = not self._devices and not self._may_be_empty
        if is_empty or lost:
            raise MachineFault(
                f"{(lost or self._folders)[0]} held files when this job started, and on {socket.gethostname()} it is "
                "gone, empty or another mount now; mend the mount and run the same command again"
            )


def prepare_videos(config: VideosConfig, output: Path) -> None:
    """Make the lookup of `videos.index` below `output`, once: 3 M rows are too many for the memory of every worker."""
    if config.index:
        path = Path(config.index)
        num_repeated = build_index_once(_rows(path), index_folder(path, output, _KIND))
        if num_repeated:
            said = f"videos.index: {num_repeated:,} rows of {path} repeat a video id, of each the first counts"
            print(said, file=sys.stderr, flush=True)


def check_index(config: VideosConfig) -> None:
    """Raise an `InputError` where `videos.index` is not there or its first row cannot be read. Writes nothing."""
    if config.index and next(_rows(Path(config.index)), None) is None:
        raise InputError(f"videos.index: {config.index} holds no row; check the file")


def is_file(path: Path) -> bool:
    """Whether there is such a file. What does not answer that (a folder out of reach, a broken disk) raises
    `FileSystemFault`."""
    try:
        return stat.S_ISREG(retried(path.stat, path).st_mode)
    except ValueError:
        return False  # a NUL byte
    except OSError:
        return False  # one of the errors that answer the question


def paths_of(template: str, video_id: str, extension: str = "") -> list[Path]:
    """The path of a video id in all Unicode forms that a copy of it may have; one for a plain id."""
    if video_id.isascii():
        return [Path(template.format(video_id=video_id, ext=extension))]
    fixed = len(template.partition("{")[0])
    paths = (template.format(video_id=form, ext=extension) for form in unicode_forms(video_id))
    return [Path(path) for path in dict.fromkeys(p[:fixed] + form for p in paths for form in unicode_forms(p[fixed:]))]


def fixed_folder(template: str) -> Path:
    """The folder that a template names for all videos: `data/videos` of `data/videos/{video_id:.2}/{video_id}.mp4`."""
    return Path(template.partition("{")[0] + "x").parent


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(retried(path.stat, path).st_mode)
    except OSError:
        return False


def _device_with_files(folder: Path) -> int | None:
    """The number of the file system of a folder that holds anything; None of any other."""
    try:
        return retried(folder.stat, folder).st_dev if _holds_anything(folder) else None
    except OSError:
        return None


def _holds_anything(folder: Path) -> bool:
    try:
        return retried(lambda: _first_entry(folder), folder) is not None
    except OSError:
        return False


def _first_entry(folder: Path) -> str | None:
    try:
        with os.scandir(folder) as entries:
            return next((entry.name for entry in entries), None)
    except PermissionError:
        return "?"  # it may be passed through all the same


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"videos.index: there is no file {path}; check the path")
    for row in read_rows(path, _MAX_LINE_BYTES):
        if isinstance(row, BadRow):
            guess = guess_table(path, ("video_id", "path"), columns_of(path, _MAX_LINE_BYTES))
            raise InputError(f"videos.index: {row.where}: {row.problem}" + (f"; {guess}" if guess else ""))
        video_id, file = id_text(row.get("video_id")), row.get("path")
        if not isinstance(video_id, str) or not isinstance(file, str):
            guess = guess_table(path, ("video_id", "path"), list(row))
            raise InputError(
                f"videos.index {path} needs the columns video_id and path with a text each, got {shown(list(row))}"
                + (f"; {guess}" if guess else "")
            )
        yield video_id, file
