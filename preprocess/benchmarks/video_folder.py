"""Finds video files by name whatever their suffix: the published lists name files that many have re-encoded.

folder = VideoFolder(Path("videos"))
folder.find("video7020"), folder.find("1004_Juno/1004_Juno_00.00.32.801-00.00.37.522")  # Path or None
"""

import os
from pathlib import Path

from pipeline.errors import InputError

# In order of preference, where a video is there twice.
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".3gp", ".wmv")


class VideoFolder:
    """All video files below a folder, by relative path and by name, both without suffix."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"no video folder at {root}; check videos=")
        self._by_path: dict[str, Path] = {}
        self._by_stem: dict[str, set[str]] = {}
        for folder, _, names in os.walk(root, followlinks=True):
            for name in names:
                path = Path(folder) / name
                if path.suffix.lower() in SUFFIXES:
                    self._add(path.resolve(), str(path.with_suffix("").relative_to(root)), path.stem)

    def find(self, name: str) -> Path | None:
        """The file at `name`, a path below the folder, or else the only file of that name anywhere below it."""
        if name in self._by_path:
            return self._by_path[name]
        candidates = self._by_stem.get(name.rsplit("/", 1)[-1], set())
        if len(candidates) > 1:
            raise InputError(f"{name} is there {len(candidates)} times: {', '.join(sorted(candidates))}; keep one")
        return self._by_path[next(iter(candidates))] if candidates else None

    def _add(self, path: Path, relative: str, stem: str) -> None:
        known = self._by_path.get(relative)
        if known is None or SUFFIXES.index(path.suffix.lower()) < SUFFIXES.index(known.suffix.lower()):
            self._by_path[relative] = path
        self._by_stem.setdefault(stem, set()).add(relative)
