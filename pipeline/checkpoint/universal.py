"""Another number of ranks, another ZeRO stage: a checkpoint taken apart into whole tensors by parameter name.

    with moments_by_name(engine_folder, zero_stage, param_names, scratch) as moments:    # rank 0 converts, all read
        first, second = moments("visual.proj")

Stages 1 to 3 go through DeepSpeed's own converter to its universal checkpoint. Stage 0 has no shard files for it: there
the optimizer state lies in the model file, numbered in the order of the optimizer's groups, and is named here.
Weights need no conversion: `model.safetensors` of every checkpoint holds them whole, in fp32. Hyper-parameters are not
taken from a universal checkpoint at all (under ZeRO-3 it has those of the first group only); the config sets them.
"""

import argparse
import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.dist import barrier, broadcast_value, is_main
from pipeline.errors import RunError
from pipeline.log import logger, quiet
from pipeline.retry import retried

Moments = Callable[[str], tuple[Tensor, Tensor] | None]
"""Name -> (exp_avg, exp_avg_sq), whole; None for a parameter that had no state yet."""


@contextlib.contextmanager
def moments_by_name(engine_folder: Path, zero_stage: int, param_names: list[str], scratch: Path) -> Iterator[Moments]:
    """Read access to the moments of a checkpoint saved under `zero_stage`. All ranks.

    `param_names` are those of the saved optimizer's groups, one after the other. `scratch` is a folder to make, which
    all ranks see; it is removed at the end.
    """
    error = None
    if is_main():
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            with quiet():
                if zero_stage == 0:
                    _split_stage_0(engine_folder, param_names, scratch)
                else:
                    _convert(engine_folder, scratch)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
    error = broadcast_value(error)
    if error is not None:
        raise RunError(f"{engine_folder} could not be converted to a universal checkpoint: {error}")
    try:
        yield lambda name: _read(scratch / "zero" / name)
        barrier()
    finally:
        if is_main():
            shutil.rmtree(scratch, ignore_errors=True)


def _convert(engine_folder: Path, output: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(engine_folder),
            output_folder=str(output),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def _split_stage_0(engine_folder: Path, param_names: list[str], output: Path) -> None:
    file = engine_folder / "mp_rank_00_model_states.pt"
    saved: dict[str, Any] = retried(lambda: torch.load(file, map_location="cpu", weights_only=False), file)
    numbers = [number for group in saved["optimizer"]["param_groups"] for number in group["params"]]
    assert len(numbers) == len(param_names), f"{len(numbers)} saved states, {len(param_names)} parameters"
    for number, name in zip(numbers, param_names, strict=True):
        state = saved["optimizer"]["state"].get(number)
        folder = output / "zero" / name
        folder.mkdir(parents=True)
        if state is not None:
            for key in ("exp_avg", "exp_avg_sq"):
                torch.save({"param": state[key]}, folder / f"{key}.pt")


def _read(folder: Path) -> tuple[Tensor, Tensor] | None:
    if not (folder / "exp_avg.pt").exists():
        return None
    both = []
    for file in (folder / "exp_avg.pt", folder / "exp_avg_sq.pt"):
        content = retried(partial(torch.load, file, map_location="cpu", weights_only=False), file)
        both.append(content["param"] if isinstance(content, dict) else content)
    return both[0], both[1]


def report_conversion(checkpoint: Path, saved: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Say that a conversion happens; each pair is (ranks, ZeRO stage)."""
    other = " with other settings" if saved == wanted else ""
    logger.info(
        f"{checkpoint} was saved by {saved[0]} rank(s) under ZeRO {saved[1]}; converting it for {wanted[0]} rank(s) "
        f"under ZeRO {wanted[1]}{other}"
    )
