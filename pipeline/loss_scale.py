"""Loss scaling for fp16: small gradients would be zero in half precision, so that losses are multiplied first.

    loss_scale = LossScale()
    (loss * loss_scale.value).backward()         # gradients come out `value` times too large
    loss_scale.update(norm_is_finite)            # halves after an overflow, doubles after 2000 steps without

DeepSpeed's own scaler under autocast looks at each rank's partition alone: ranks would skip different steps and go on
with different scales. This one goes by the norm of the whole gradient, which all ranks know.
"""

from dataclasses import dataclass

START = 65536.0
SMALLEST = 1.0
LARGEST = 2.0**24
STEPS_UNTIL_GROWTH = 2000


@dataclass
class LossScale:
    """The factor, and how many steps in a row it has held; saved with every checkpoint."""

    value: float = START
    good_steps: int = 0

    @property
    def can_shrink(self) -> bool:
        """Whether a gradient that is no number may come from the scale; at the smallest one it does not."""
        return self.value > SMALLEST

    def update(self, is_finite: bool) -> None:
        """Learn from a step."""
        if not is_finite:
            self.value, self.good_steps = max(self.value / 2, SMALLEST), 0
            return
        self.good_steps += 1
        if self.good_steps == STEPS_UNTIL_GROWTH:
            self.value, self.good_steps = min(self.value * 2, LARGEST), 0
