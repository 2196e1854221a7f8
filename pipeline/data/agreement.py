"""Ranks agree on what went wrong in the data, so that all of them know it and none is left waiting.

    bad_on_all_ranks = agreement.share(bad_here, failure_here)      # RunError on every rank when any rank failed

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
        if world_size > 1 and dist.is_initialized() and dist.world_size() == world_size:
            self._group = dist.host_group()

    def share(self, bad: Sequence[BadSample], failure: str | None) -> list[BadSample]:
        """Every rank's bad samples in rank order. Raises RunError on all ranks when one has a failure."""
        reports: list[Any] = [(list(bad), failure)]
        if self._group is not None:
            reports = self._gathered(reports[0], ([], None), is_quiet=not bad and failure is None)
        failures = sorted({failed for _, failed in reports if failed})
        if failures:
            raise RunError("; ".join(failures))
        return [sample for reported, _ in reports for sample in reported]

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
            errors = self._gathered(error, None, is_quiet=error is None, patient=True)
        for found in errors:
            if found is not None:
                raise found
        return value  # type: ignore[return-value]

    def _gathered(self, report: Any, nothing: Any, *, is_quiet: bool, patient: bool = False) -> list[Any]:
        """Every rank's report, or `nothing` of each where all are quiet."""
        loud = torch.tensor([0 if is_quiet else 1])
        reports: list[Any] = [nothing] * torch.distributed.get_world_size(self._group)
        try:
            if patient:
                self._add_patiently(loud)
            else:
                torch.distributed.all_reduce(loud, group=self._group)
            if loud.item():
                torch.distributed.all_gather_object(reports, report, group=self._group)
        except RuntimeError as error:
            raise RunError(f"another rank went away while fetching data ({str(error).splitlines()[0]})") from None
        return reports

    def _add_patiently(self, count: Tensor) -> None:
        """An all-reduce without the group's time limit."""
        options = torch.distributed.AllreduceOptions()
        options.timeout = _PATIENCE
        work = self._group.allreduce([count], options)
        said = time.monotonic()
        while not work.is_completed():
            time.sleep(0.02)
            if time.monotonic() - said > _REPORT_S:
                said = time.monotonic()
                logger.info("waits for other ranks to open the data")
        work.wait()
