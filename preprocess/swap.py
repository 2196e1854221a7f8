"""Replaces a published shard by another of the same name; a kill at any moment loses neither.

    set_aside(output, shard)      # tar and sidecar under OUTPUT/.set_aside
    ...publish the new files...
    forget(output, shard)

    recover(output)               # first thing of every command: what a kill left set aside comes back

Everything here happens under the folder's lock, so that no other process takes a swap that goes on for one that died.
"""

import os
from pathlib import Path

from preprocess.publish import sole_writer, sync_folder

_FOLDER = ".set_aside"


def set_aside(output: Path, shard: str) -> None:
    """Keep the old pair under other names: an old sidecar must never stand beside a new tar."""
    tar, sidecar = _old(output, shard)
    tar.parent.mkdir(exist_ok=True)
    tar.unlink(missing_ok=True)
    os.link(output / f"{shard}.tar", tar)
    sync_folder(tar.parent)
    (output / f"{shard}.parquet").replace(sidecar)
    sync_folder(tar.parent)


def forget(output: Path, shard: str) -> None:
    """The new shard is published: the old one may go."""
    tar, sidecar = _old(output, shard)
    tar.unlink(missing_ok=True)
    sidecar.unlink(missing_ok=True)


def recover(output: Path) -> None:
    """After a kill: put the old pair back where the new one was not published whole."""
    folder = output / _FOLDER
    if not folder.exists():
        return
    with sole_writer(output):
        for old_sidecar in sorted(folder.glob("*.parquet")):
            shard = f"shards/{old_sidecar.stem}"
            tar, sidecar = output / f"{shard}.tar", output / f"{shard}.parquet"
            old_tar = old_sidecar.with_suffix(".tar")
            if not sidecar.exists():
                if old_tar.exists():
                    old_tar.replace(tar)
                old_sidecar.replace(sidecar)
                sync_folder(sidecar.parent)
            forget(output, shard)
        for old_tar in folder.glob("*.tar"):
            old_tar.unlink()


def _old(output: Path, shard: str) -> tuple[Path, Path]:
    path = output / _FOLDER / Path(shard).name
    return path.with_name(f"{path.name}.tar"), path.with_name(f"{path.name}.parquet")
