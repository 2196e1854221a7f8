"""Ranks agree on what went wrong in the data, so that all of them know it and none is left waiting.

    bad, num_usable = agreement.share(bad_here, failure_here, num_usable_here)    # RunError everywhere for any failure

One small all-reduce on the CPU per batch; names travel only when there is something to name.
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from pipeline import dist
from pipeline.data.batch import BadSample
from pipeline.errors import PipelineError, RunError
from pipeline.log import logger

_PATIENCE = timedelta(days=7)
_REPORT_S = 60.0

Value = TypeVar("Value")


class Agreement:
    """A gloo group of all ranks; with one rank, or ranks that a test plays one after the other, nothing is sent."""

    def __init__(self, world_size: int) -> None:
        self._group: Any = None
        self._world_size = world_size
        if world_size > 1 and dist.is_initialized() and dist.world_size() == world_size:
            self._group = dist.host_group()

    def share(
        self, bad: Sequence[BadSample], failure: str | None, num_usable: int
    ) -> tuple[list[BadSample], int | None]:
        """Every rank's bad samples in rank order, and the sum of every rank's usable rows.

        Raises RunError on all ranks when one has a failure. The sum is None for ranks that a test plays alone.
        """
        reports: list[Any] = [(list(bad), failure)]
        total: int | None = num_usable if self._world_size == 1 else None
        if self._group is not None:
            is_loud = bool(bad) or failure is not None
            reports, total = self._gathered(reports[0], ([], None), is_quiet=not is_loud, add=num_usable)
        failures = sorted({failed for _, failed in reports if failed})
        if failures:
            raise RunError("; ".join(failures))
        return [sample for reported, _ in reports for sample in reported], total

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on rank 0 (picklable), on every rank; its PipelineError is raised on every rank."""
        if self._group is None:
            return make()
        box: list[Any] = [None, None]
        if torch.distributed.get_rank(self._group) == 0:
            try:
                box[0] = make()
            except PipelineError as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0, group=self._group)
        if box[1] is not None:
            raise box[1]
        value: Value = box[0]
        return value

    def each(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on this rank, once every rank has its own. A PipelineError of any is raised on all.

        The time that one rank takes has no limit: the others wait, and say so. A rank that dies is noticed.
        """
        value, error = None, None
        try:
            value = make()
        except PipelineError as caught:
            error = caught
        errors = [error]
        if self._group is not None:
            errors, _ = self._gathered(error, None, is_quiet=error is None, patient=True)
        for found in errors:
            if found is not None:
                raise found
        return value  # type: ignore[return-value]

    def _gathered(
        self, report: Any, nothing: Any, *, is_quiet: bool, patient: bool = False, add: int = 0
    ) -> tuple[list[Any], int]:
        """Every rank's report, or `nothing` of each where all are quiet; and the sum of every rank's `add`."""
        sums = torch.tensor([0 if is_quiet else 1, add])
        reports: list[Any] = [nothing] * torch.distributed.get_world_size(self._group)
        try:
            if patient:
                self._add_patiently(sums)
            else:
                torch.distributed.all_reduce(sums, group=self._group)
            num_loud, total = sums.tolist()
            if num_loud:
                torch.distributed.all_gather_object(reports, report, group=self._group)
        except RuntimeError as error:
            raise RunError(f"another rank went away while fetching data ({str(error).splitlines()[0]})") from None
        return reports, total

    def _add_patiently(self, sums: Tensor) -> None:
        """An all-reduce without the group's time limit."""
        options = torch.distributed.AllreduceOptions()
        options.timeout = _PATIENCE
        work = self._group.allreduce([sums], options)
        said = time.monotonic()
        while not work.is_completed():
            time.sleep(0.02)
            if time.monotonic() - said > _REPORT_S:
                said = time.monotonic()
                logger.info("waits for other ranks to open the data")
        work.wait()
