"""What is measured, in the order of what matters most: a run that is cut short has the upper ones.

`estimate_s` is the wall time on an H100 with a cold compiler cache, start and warm-up included; a case that would not
fit into the time that is left is left out.
"""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["engine", "train", "reference", "dense", "loss", "encode", "losses"]
EAGER = ("engine.compile=false", "engine.capture=false")


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    kind: Kind
    base: str
    """b32 or b16; tiny in a rehearsal."""
    clips: int
    estimate_s: float
    words: tuple[str, ...] = ()
    """Overrides of the recipe."""
    least_gib: float = 0.0
    """Memory without which the case is left out."""


CASES = (
    Case("b32_32_fast", "engine", "b32", 32, 40),
    Case("b32_128_fast", "engine", "b32", 128, 25, least_gib=44),
    Case("b32_32_eager", "engine", "b32", 32, 12, EAGER),
    Case("b32_128_eager", "engine", "b32", 128, 14, EAGER, least_gib=44),
    Case("b16_64_fast", "engine", "b16", 64, 35, least_gib=76),
    Case("b32_128_train", "train", "b32", 128, 35, least_gib=44),
    Case("b32_32_reference", "reference", "b32", 32, 12),
    Case("b32_128_reference", "reference", "b32", 128, 16, least_gib=44),
    Case("b32_32_zero1", "engine", "b32", 32, 14, ("engine.zero_stage=1",)),
    Case("b32_128_zero1", "engine", "b32", 128, 18, ("engine.zero_stage=1",), least_gib=44),
    Case("b32_256_fast", "engine", "b32", 256, 25, least_gib=84),
    Case("b32_128_dense", "dense", "b32", 128, 18, least_gib=92),
    Case("loss_32768", "loss", "b32", 32768, 12),
    Case("b32_encode", "encode", "b32", 128, 10),
    # What the table of the trainer against the reference needs besides.
    Case("b32_32_train", "train", "b32", 32, 30),
    Case("b16_64_train", "train", "b16", 64, 45, least_gib=76),
    Case("b16_64_reference", "reference", "b16", 64, 30, least_gib=76),
)

APART = (
    Case("b32_32_zero0_eager", "engine", "b32", 32, 12, ("engine.zero_stage=0", *EAGER)),
    Case("b32_32_zero2", "engine", "b32", 32, 14, ("engine.zero_stage=2",)),
    Case("b32_32_compiled_only", "engine", "b32", 32, 30, ("engine.capture=false",)),
    Case("b32_32_captured_only", "engine", "b32", 32, 14, ("engine.compile=false",)),
    Case("losses_fast", "losses", "b32", 32, 60),
    Case("losses_eager", "losses", "b32", 32, 70, EAGER),
)
"""Run by name only: parts of the speed, and the losses of 200 steps for the plot."""


def tiny(case: Case) -> Case:
    """The same case at a size that a CPU does in a second."""
    clips = 64 if case.kind == "loss" else min(case.clips, 8)
    return replace(case, base="tiny", clips=clips, least_gib=0.0)
