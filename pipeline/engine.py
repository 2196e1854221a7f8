"""DeepSpeed behind a few verbs. Everything that depends on the ZeRO stage, the precision or the device is in here.

    start_distributed(config)                            # process group, device
    engine = Engine(model, optimizer, config, ...)
    features = engine(video=..., subtitle=...)           # forward, under autocast
    engine.backward(loss)                                # or backward_all(losses, n): n of them, one reduction
    value, norm = engine.read(loss)                      # and the norm of the averaged gradient, before clipping
    engine.step()                                        # clip, update, clamp, zero

DeepSpeed's own accumulation count stays 1: several backwards of one step share one reduction instead.
"""

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from pipeline.acceleration import COMPILER_BACKEND, HasTowers, choose_way
from pipeline.capture import CapturedTower, CudaPass, StandInPass
from pipeline.dist import is_initialized, rank, world_size
from pipeline.engine_config import REDUCE_DTYPES, EngineConfig, deepspeed_config, resolve_device
from pipeline.flat_gradients import FlatGradients
from pipeline.loss_scale import LossScale
from pipeline.meters import ForwardTimer


def start_distributed(config: EngineConfig) -> torch.device:
    """Make the process group (of one rank without a launcher) and return this rank's device."""
    device = resolve_device(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    # DeepSpeed would take a GPU that the config does not want, and asks for LOCAL_RANK even with one rank.
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("LOCAL_RANK", "0")
    if device.index is not None:
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes the GPU of this number
    if not is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=config.collective_timeout_s)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    import deepspeed

    # Asking for this table tries out a compiler on every op. The one op it is asked about here serves inference alone,
    # would be built on the spot, and leaves shared memory behind after a SIGKILL: an empty table says no.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return device


class Engine:
    """A model under DeepSpeed. Called like the model."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        device: torch.device,
        *,
        clip_norm: float,
        rows_per_rank: int,
        passthrough: dict[str, Any],
    ) -> None:
        import deepspeed

        assert all(parameter.ndim > 0 for parameter in model.parameters()), "DeepSpeed cannot hold 0-d parameters"
        self.config = config
        self.device = device
        self.zero_stage = config.zero_stage
        self.clip_norm = clip_norm
        self.forward_timer = ForwardTimer(device)
        self.loss_scale = LossScale() if config.precision == "fp16" else None
        self._norm: float | None = None
        # The norm is known already when DeepSpeed would compute it once more, parameter by parameter, to clip by it;
        # with a scaled loss it would clip by the norm of the scaled gradient.
        settings = deepspeed_config(config, device, clip_norm=0.0, rows_per_rank=rows_per_rank, passthrough=passthrough)
        self.layout = {"precision": config.precision, "zero_optimization": settings["zero_optimization"]}
        """What DeepSpeed's own files depend on, besides the number of ranks; JSON-able."""
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.deepspeed.torch_autocast_z0_gradscaler = None  # see loss_scale.py
        if config.zero_stage > 0:
            self.deepspeed.optimizer.torch_autocast_gradscaler = None
        self._flat: FlatGradients | None = None
        if config.zero_stage == 0:
            self._flat = FlatGradients(self.module, REDUCE_DTYPES[config.reduce_dtype])
            self.deepspeed.enable_backward_allreduce = False  # the flat gradients do it, a tower at a time
            self.deepspeed.zero_grad = self._flat.zero  # it would take the gradients away, one by one
        elif config.zero_stage < 3:
            self._leave_out_norm()
        self.way = choose_way(config, device, self.module)
        self._captured = self._accelerate()

    def _accelerate(self) -> list[CapturedTower]:
        """Compile and capture as `way` says; parameters lie where they will stay."""
        model = self.module
        if not isinstance(model, HasTowers):
            return []
        if self.way.compiles:
            model.compile_blocks(COMPILER_BACKEND, must=self.config.compile is True)
        model.few_text_lengths = self.way.compiles or self.way.captures
        if not self.way.captures:
            return []
        kind = CudaPass if self.device.type == "cuda" else StandInPass
        must = self.config.capture is True
        towers = [CapturedTower(name, tower, kind, self._flat, must=must) for name, tower in model.towers().items()]
        if self._flat is not None:
            self._flat.captured = {tower.name: tower for tower in towers}
        return towers

    @property
    def module(self) -> nn.Module:
        """The model itself; under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module  # type: ignore[no-any-return]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whatever wraps it."""
        return self.deepspeed.optimizer.param_groups  # type: ignore[no-any-return]

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """Our own optimizer, inside of what DeepSpeed wrapped around it."""
        return getattr(self.deepspeed.optimizer, "optimizer", self.deepspeed.optimizer)  # type: ignore[no-any-return]

    @property
    def may_overflow(self) -> bool:
        """fp16: an infinite gradient is an everyday event, after which `step` makes no update and halves the scale."""
        return self.loss_scale is not None and self.loss_scale.can_shrink

    def __call__(self, **inputs: Tensor | None) -> Any:
        """The model's features, under autocast where the precision says so."""
        with self.forward_timer:
            return self.deepspeed(**inputs)

    def train(self) -> None:
        """Training mode."""
        self.deepspeed.train()

    def eval(self) -> None:
        """Evaluation mode."""
        self.deepspeed.eval()

    def backward(self, loss: Tensor) -> None:
        """Backward; gradients are averaged over ranks."""
        self._backward(loss, is_last=True)

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:
        """`is_last`: of this step, whose gradients are reduced with it under ZeRO 0."""
        if self._flat is not None:
            self._flat.begin(is_last=is_last)
        self.deepspeed.backward(loss if self.loss_scale is None else loss * self.loss_scale.value)
        if self._flat is not None:
            self._flat.finish()

    def backward_all(self, losses: Iterator[Tensor], count: int) -> None:
        """`count` backwards whose gradients add up, then one reduction."""
        if count == 1:
            self.backward(next(losses))
        elif self.zero_stage == 0:
            for number in range(1, count + 1):
                self._backward(next(losses), is_last=number == count)
        else:
            with self.deepspeed.coalesce_grad_reduction():
                for _ in range(count):
                    self.backward(next(losses))
        assert next(losses, None) is None, "more losses than announced"

    def local_gradients(self) -> list[Tensor]:
        """The averaged gradients that this rank's optimizer sees: all of them under ZeRO 0, else its partition."""
        if self._flat is not None:
            return [self._flat.flat]
        optimizer = self.deepspeed.optimizer
        held = [tensor for group in optimizer.averaged_gradients.values() if group is not None for tensor in group]
        if held:
            return held
        # With the optimizer offloaded, gradients wait in the fp32 master partitions on the host.
        masters = (
            optimizer.single_partition_of_fp32_groups if self.zero_stage < 3 else optimizer.fp32_partitioned_groups_flat
        )
        return [master.grad for master in masters if master.grad is not None]

    def gradient_norm(self) -> float:
        """Norm of the whole averaged gradient before clipping; NaN or infinite when any element is. All ranks."""
        return self.read(torch.zeros((), device=self.device))[1]

    def read(self, loss: Tensor) -> tuple[float, float]:
        """The loss and `gradient_norm`, in the one read from the device that a step makes. All ranks."""
        square = self._square_of(self._for_norm(), over_ranks=self.zero_stage > 0)
        value, square_value = torch.stack([loss.detach().double(), square]).tolist()
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        self._norm = math.sqrt(square_value) / scale if square_value >= 0 else math.nan
        return value, self._norm

    def _for_norm(self) -> list[Tensor]:
        """The gradients in pieces that are each summed in float32: per parameter, as all stages hold them."""
        if self._flat is None:
            return self.local_gradients()
        return [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]

    def parameter_norm(self) -> float:
        """Norm of all parameters. All ranks."""
        parameters = list(self.module.parameters())
        held = [_own_part(p) if hasattr(p, "ds_tensor") else p.detach() for p in parameters]
        return math.sqrt(self._square_of(held, over_ranks=self.zero_stage == 3).item())

    def _square_of(self, tensors: list[Tensor], *, over_ranks: bool) -> Tensor:
        """The sum of all squares, float64, on the engine's device: the only one that NCCL can reach.

        What is offloaded is summed up on the host; small parameters stay on the GPU beside it.
        """
        on_device: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            on_device.setdefault(tensor.device, []).append(tensor)
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for held in on_device.values():
            square += torch.stack(torch._foreach_norm(held)).double().square().sum().to(self.device)
        if over_ranks and world_size() > 1:
            dist.all_reduce(square)
        return square

    def optimizer_step(self) -> int:
        """How many updates the optimizer has made."""
        steps = [state["step"].cpu() for state in self.base_optimizer.state.values() if "step" in state]
        return int(torch.stack(steps).max()) if steps else 0

    def logit_scale(self) -> float:
        """exp of the logit scale parameter. All ranks."""
        parameter = self.module.get_parameter("logit_scale")
        return math.exp(self._gathered(parameter).item())

    def step(self) -> None:
        """Clip, update the weights (the clamp is part of it), drop the gradients. All ranks.

        With a scaled loss, no update follows a gradient that is no number.
        """
        if self.clip_norm > 0 or self.loss_scale is not None:
            norm = self.gradient_norm() if self._norm is None else self._norm
            factor = 1.0
            if self.loss_scale is not None:
                factor = 1.0 / self.loss_scale.value
                self.loss_scale.update(math.isfinite(norm))
                if not math.isfinite(norm):
                    self.drop_gradients()
                    return
            if 0 < self.clip_norm < norm:
                factor *= self.clip_norm / (norm + 1e-6)
            if factor != 1.0:
                torch._foreach_mul_(self.local_gradients(), factor)
        self._norm = None
        self.deepspeed.step()

    def drop_gradients(self) -> None:
        """Forget the gradients of this step: the weights stay as they are."""
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        self._norm = None
        optimizer = self.deepspeed.optimizer
        self.deepspeed.zero_grad()
        if self.zero_stage > 0:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.averaged_gradients:
                optimizer.averaged_gradients[group] = None
            # Else the next backward counts as a further one of this step, and adds to what waits on the host.
            if self.zero_stage == 3:
                optimizer._pre_step()
            else:
                optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
                if optimizer.cpu_offload:
                    optimizer._offload_accumulated_param_ids = set()
            if hasattr(optimizer, "norm_for_param_grads"):
                optimizer.reset_cpu_buffers()

    def save(self, folder: Path, tag: str, writer: Any) -> None:
        """DeepSpeed's own state, to be written into `folder`/`tag`, into `writer`. All ranks."""
        self.deepspeed.checkpoint_engine = writer
        # It copies a recovery script with its own, unguarded file operations between two barriers.
        self.deepspeed._copy_recovery_script = lambda path: None
        self.deepspeed.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str, reader: Any) -> None:
        """What `save` wrote, with the same number of ranks and the same stage, through `reader`. All ranks."""
        optimizer = self.deepspeed.optimizer
        if 0 < self.zero_stage < 3:
            optimizer.compute_grad_norm = True  # else it refuses files that were written when it did the clipping
        self.deepspeed.checkpoint_engine = reader
        path, _ = self.deepspeed.load_checkpoint(str(folder), tag=tag)
        assert path is not None, f"DeepSpeed found nothing in {folder}/{tag}"
        if self.zero_stage > 0:
            optimizer.clip_grad = 0.0  # the one of such files came with them
        if 0 < self.zero_stage < 3:
            self._leave_out_norm()
        for tower in self._captured:
            tower.reset()

    def _leave_out_norm(self) -> None:
        """Have ZeRO 1 and 2 not compute a norm of their own. With an offloaded optimizer they cannot do without."""
        optimizer = self.deepspeed.optimizer
        optimizer.compute_grad_norm = bool(optimizer.cpu_offload)

    def whole_weights(self) -> dict[str, Tensor]:
        """A copy of the whole fp32 state dict in host memory on rank 0, empty on the others. All ranks."""
        weights = {}
        is_main = dist.get_rank() == 0
        if is_main:
            weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.module.state_dict().items()}
        if self.zero_stage == 3:
            from deepspeed.utils import safe_get_full_fp32_param

            for name, parameter in self.module.named_parameters():
                whole = safe_get_full_fp32_param(parameter) if parameter.requires_grad else self._gathered(parameter)
                if is_main:
                    shape = getattr(parameter, "ds_shape", parameter.shape)
                    weights[name] = whole.detach().to("cpu", copy=True).view(shape)
        return weights

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        """A frozen parameter, whole."""
        if self.zero_stage < 3:
            return parameter.detach().float()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().float().clone()


def _own_part(parameter: Any) -> Tensor:
    """This rank's part of a parameter under ZeRO 3, without the padding: that is memory as it was found."""
    partition: Tensor = parameter.ds_tensor
    valid = min(partition.numel(), max(0, parameter.ds_numel - rank() * partition.numel()))
    return partition.flatten()[:valid]
