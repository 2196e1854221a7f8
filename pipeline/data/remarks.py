"""What is worth knowing about the data at the start of a run, and is no error.

    for remark in remarks(...): logger.warning(remark)

Two things that are silent otherwise: samples that an epoch leaves out, and clips with far fewer frames than are asked
for, of which frames are repeated.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.cache import open_folder
from pipeline.data.manifest_file import sidecar_columns
from pipeline.errors import PipelineError

_SHARDS_LOOKED_AT = 8


def left_out(num_slots: int, global_batch_size: int) -> str:
    """How many samples of an epoch fill no last batch, where `epoch_end: drop` leaves them out; "" for none."""
    count = num_slots % global_batch_size
    if not count:
        return ""
    return (
        f"each epoch leaves out {count:,} of its {num_slots:,} samples, which fill no last batch of "
        f"{global_batch_size:,}; data.epoch_end=carry takes them into the next epoch"
    )


def short_clips(shards: str, names: Sequence[str], num_frames: int) -> str:
    """What is wrong where most clips of a set hold fewer than `num_frames` frames; "" where nothing is.

    Looks at the sidecars of at most `_SHARDS_LOOKED_AT` of the shards `names`, evenly spaced. One that cannot be read
    is left out: reading it is not what a run depends on.
    """
    folder = open_folder(shards)
    picked = [names[index] for index in np.unique(np.linspace(0, len(names) - 1, _SHARDS_LOOKED_AT).astype(int))]
    counts = [np.empty(0, dtype=np.int64)]
    for name in picked if names else ():
        try:
            table = sidecar_columns(folder.read_file(f"{name}.parquet"), name, ["num_frames"])
        except (PipelineError, OSError):
            continue
        counts.append(table.column("num_frames").drop_null().to_numpy())
    held = np.concatenate(counts)
    if not len(held) or np.median(held) >= num_frames:
        return ""
    return (
        f"data.num_frames={num_frames}, but half of the clips of {shards} hold at most {int(np.median(held))} frames "
        f"({len(held):,} clips in {len(counts) - 1} shards looked at, {np.mean(held < num_frames):.0%} hold fewer than "
        f"{num_frames}): their frames are repeated; lower data.num_frames, or write shards with a higher clips.fps"
    )
