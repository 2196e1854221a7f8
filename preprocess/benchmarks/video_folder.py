"""Finds video files by name whatever their suffix: the published lists name files that many have re-encoded.

folder = VideoFolder(Path("videos"))
folder.find("video7020"), folder.find("1004_Juno/1004_Juno_00.00.32.801-00.00.37.522")  # Path or None
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.data.format import VIDEO_EXTENSIONS
from pipeline.errors import InputError
from preprocess.benchmarks.split import same_name

SUFFIXES = tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)
"""In order of preference, where a video is there twice."""


def split_suffix(name: str) -> tuple[str, str]:
    """A file name, or a path, without its suffix, and the suffix, if it is one of a video: `video0.MP4` is `video0`."""
    suffix = PurePosixPath(name).suffix
    return (name[: -len(suffix)], suffix) if suffix.lower() in SUFFIXES else (name, "")


class VideoFolder:
    """All video files below a folder, by relative path and by name, both without suffix."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"no video folder at {root}; check videos=")
        self._by_path: dict[str, list[Path]] = {}
        self._by_stem: dict[str, set[str]] = {}
        for path in _files(root):
            stem, suffix = split_suffix(same_name(str(path.relative_to(root))))
            if suffix:
                self._by_path.setdefault(stem, []).append(Path(os.path.realpath(path)))
                self._by_stem.setdefault(stem.rpartition("/")[2], set()).add(stem)

    def find(self, name: str, suffix: str = "") -> Path | None:
        """The file at `name`, a path below the folder, or else the only file of that name anywhere below it. Of several
        suffixes `suffix` comes first, then the order of `SUFFIXES`."""
        name = same_name(os.path.normpath(name.replace("\\", "/") if "\\" in name else name))
        if name not in self._by_path:
            candidates = self._by_stem.get(name.rpartition("/")[2], set())
            if len(candidates) > 1:
                raise InputError(f"{name} is there {len(candidates)} times: {', '.join(sorted(candidates))}; keep one")
            if not candidates:
                return None
            name = next(iter(candidates))
        return min(self._by_path[name], key=lambda path: (path.suffix != suffix, _rank(path), path.suffix))


def _rank(path: Path) -> int:
    """Place of a file's suffix in the order of preference; a link may lead to a file with any."""
    suffix = path.suffix.lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)


def _files(root: Path) -> Iterator[Path]:
    """The files below `root`, each folder once, also where links lead in a circle."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}; check videos=")
