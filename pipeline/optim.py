"""AdamW in two forms, its parameter groups, and the clamp of the logit scale.

    groups = parameter_groups(model.named_parameters(), config)
    optimizer = make_optimizer(groups, config)
    set_learning_rate(optimizer.param_groups, lr)

Groups carry their own facts beside what torch knows: `name`, `lr_multiplier`, and `clamp` (low, high) or None. The
clamp is part of the optimizer's update. Under ZeRO 1-3 the optimizer sees the fp32 master weights (of this rank's
partition, a group at a time), under ZeRO 0 the parameters themselves: so a group of its own is all that it takes for
the clamp to reach the true weight under every stage.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config import Section
from pipeline.errors import InputError
from pipeline.schedule import Shape, learning_rate

LOGIT_SCALE = "logit_scale"
LOGIT_SCALE_RANGE = (0.0, math.log(200.0))
"""The official code's range of the logarithm of the inverse temperature."""


class OptimConfig(Section):
    """AdamW, its schedule and its parameter groups."""

    preset: Literal["clean", "official"] = "clean"
    """clean: torch's AdamW; biases, LayerNorm and other vectors are not decayed. official: the released code's AdamW
    (eps added before bias correction, decay applied after the update); all but biases and logit_scale are decayed."""
    lr: float = Field(default=5e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the first and the second moment."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay, times the learning rate."""
    schedule: Shape = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup: float = Field(default=0.01, ge=0, lt=1)
    """Fraction of all steps over which the learning rate rises to its peak: int(warmup * steps) whole steps."""
    lr_floor: float = Field(default=1e-8, ge=0)
    """Learning rate of a step whose rate would be 0, as in the official code; smaller rates stay as they are."""
    lr_multipliers: dict[str, float] = {}
    """Regular expression searched in parameter names -> factor of the learning rate, e.g. {"^logit_scale$": 10}. 0
    keeps parameters as they are. A pattern that matches nothing, or two that match the same name, are errors."""
    clip_norm: float = Field(default=5.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        for pattern in self.lr_multipliers:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"lr_multipliers: {pattern!r} is not a regular expression: {error}") from None
        return self

    def lr_at(self, step: int, total_steps: int) -> float:
        """The learning rate of `step` (from 1), before multipliers."""
        return learning_rate(
            step,
            total_steps=total_steps,
            peak=self.lr,
            shape=self.schedule,
            warmup=self.warmup,
            floor=self.lr_floor,
        )


def is_decayed(name: str, num_dims: int, preset: str) -> bool:
    """Whether weight decay applies to a parameter.

    The official code means to spare LayerNorm weights, but looks for a name that its model does not have.
    """
    if name.rsplit(".", 1)[-1] == LOGIT_SCALE or name.endswith("bias"):
        return False
    return True if preset == "official" else num_dims >= 2


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters by (weight decay, multiplier), the logit scale in a group of its own; order is stable."""
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    matched: set[str] = set()
    for name, parameter in named_parameters:
        factor, patterns = _multiplier(name, config.lr_multipliers)
        matched.update(patterns)
        if not parameter.requires_grad:
            continue
        is_scale = name.rsplit(".", 1)[-1] == LOGIT_SCALE
        # ds_shape: under ZeRO-3 a partitioned parameter is empty and keeps its true shape there.
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        decayed = is_decayed(name, num_dims, config.preset)
        label = LOGIT_SCALE if is_scale else ("decay" if decayed else "no_decay")
        group = groups.setdefault(
            (is_scale, decayed, factor),
            {
                "params": [],
                "param_names": [],
                "name": label if factor == 1.0 else f"{label}_lr_x{factor:g}",
                "lr": config.lr * factor,
                "lr_multiplier": factor,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "betas": config.betas,
                "eps": config.eps,
                "clamp": LOGIT_SCALE_RANGE if is_scale else None,
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    if unmatched := set(config.lr_multipliers) - matched:
        raise InputError(f"optim.lr_multipliers: {sorted(unmatched)} match no parameter; check the patterns")
    if not groups:
        raise InputError("nothing to train: every parameter is frozen; change model.freeze")
    return list(groups.values())


def _multiplier(name: str, multipliers: dict[str, float]) -> tuple[float, list[str]]:
    patterns = [pattern for pattern in multipliers if re.search(pattern, name)]
    if len(patterns) > 1:
        raise InputError(f"optim.lr_multipliers: {patterns} all match {name!r}; make them exclude each other")
    return (multipliers[patterns[0]] if patterns else 1.0), patterns


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of `config.preset` over `groups`. Both forms keep `step`, `exp_avg`, `exp_avg_sq` per tensor."""
    # ZeRO moves and flattens parameters and swaps the lists of a group: names would not follow.
    groups = [{key: value for key, value in group.items() if key != "param_names"} for group in groups]
    return OfficialAdamW(groups) if config.preset == "official" else ClampedAdamW(groups)


def set_learning_rate(groups: list[dict[str, Any]], lr: float) -> None:
    """Give every group `lr` times its multiplier."""
    for group in groups:
        group["lr"] = lr * group["lr_multiplier"]


def set_hyperparameters(groups: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Write every setting of `wanted` (from `parameter_groups`) over `groups`; parameters are left alone.

    Loading a checkpoint also loads the hyper-parameters it was saved with, and a universal one under ZeRO-3 gives all
    groups those of the first: the config is what holds.
    """
    assert len(groups) == len(wanted), f"{len(groups)} optimizer groups, but the config makes {len(wanted)}"
    for group, source in zip(groups, wanted, strict=True):
        group.update({key: value for key, value in source.items() if key not in ("params", "param_names")})


class FusedAdamW(torch.optim.Optimizer):
    """AdamW as one kernel over all parameters of a group, then the clamp.

    `state` holds `step` (on the host), `exp_avg` and `exp_avg_sq` per tensor. The number of kernels does not depend on
    the number of parameters. Groups carry `lr`, `betas`, `eps`, `weight_decay` and `clamp`.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, defaults={})

    def settings_at(self, group: dict[str, Any], step: float) -> tuple[float, float, float]:
        """Learning rate, weight decay and eps that make torch's kernel compute this form at update `step`."""
        return group["lr"], group["weight_decay"], group["eps"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        assert closure is None
        for group in self.param_groups:
            by_device: dict[torch.device, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_device.setdefault(parameter.device, []).append(parameter)
            for parameters in by_device.values():
                self._update(parameters, group)
            _clamp(group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        counts = [state["step"] for state in states]
        torch._foreach_add_(counts, 1)
        by_count: dict[float, list[int]] = {}
        for place, count in enumerate(torch.stack(counts).tolist()):
            by_count.setdefault(count, []).append(place)
        for count, places in by_count.items():  # one, unless a parameter had no gradient at some step
            chosen = [states[place] for place in places]
            self._run_kernel([parameters[place] for place in places], chosen, group, count)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        elif state["step"].device.type != "cpu":  # as older checkpoints have it
            state["step"] = state["step"].cpu()
        return state

    def _run_kernel(
        self, parameters: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any], count: float
    ) -> None:
        lr, weight_decay, eps = self.settings_at(group, count)
        on_device = torch.full((), count, dtype=torch.float32, device=parameters[0].device)
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [on_device] * len(parameters),
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )


class ClampedAdamW(FusedAdamW):
    """torch's AdamW (decay before the update, eps after bias correction), then the clamp."""


class OfficialAdamW(FusedAdamW):
    """The AdamW of the official CLIP-ViP code, an old Hugging Face form, then the clamp.

    eps joins the root of the second moment *before* bias correction, so it weighs more in the first steps; the decay
    uses the weight *after* the update. With c = 1 - beta2^step, r the rate and d the decay, both are torch's form at
    other settings:

        r sqrt(c) m / (sqrt(v) + eps)  =  r m / (sqrt(v) / sqrt(c) + eps / sqrt(c))
        (w - r u) (1 - r d)  =  w (1 - r d) - r (1 - r d) u
    """

    def settings_at(self, group: dict[str, Any], step: float) -> tuple[float, float, float]:
        """The rate shrunk by the decay, the decay grown by as much, eps over the root of the bias correction."""
        lr, decay = group["lr"], group["weight_decay"]
        kept = 1.0 - lr * decay
        if kept <= 0:
            raise InputError(f"optim: lr {lr} times weight_decay {decay} must be below 1; lower one of them")
        return lr * kept, decay / kept, group["eps"] / math.sqrt(1.0 - group["betas"][1] ** step)


def _clamp(group: dict[str, Any]) -> None:
    """Clamp in place the parameters of a group that has a `clamp`."""
    if group["clamp"] is not None and group["params"]:  # ZeRO 3 updates a group at a time, the others are empty then
        low, high = group["clamp"]
        parameters = [parameter.detach() for parameter in group["params"]]
        torch._foreach_clamp_min_(parameters, low)
        torch._foreach_clamp_max_(parameters, high)
