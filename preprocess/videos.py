"""Finds the file of a video id: by path templates, tried in order, or by an index file.

locate = VideoLocator(config.videos)
path = locate("QMi8x8o55Ns")          # Path, or None where no candidate exists
"""

from pydantic import model_validator

from pipeline.config import Section


class VideosConfig(Section):
    """Where the source videos lie."""

    templates: tuple[str, ...] = ()
    """Paths with `{video_id}` (and `{video_id:.2}` for its first two characters), tried in order; `{ext}` stands for
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
        return self
