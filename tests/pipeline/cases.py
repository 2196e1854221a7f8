"""What ranks do in tests. Every function here runs on all ranks of a `RankPool`."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.dist import is_main, rank, world_size
from pipeline.engine import Engine
from pipeline.engine_config import EngineConfig
from pipeline.gradient import Objective, backward_batch
from pipeline.losses import LossConfig
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups
from tests.pipeline.tiny import architecture, make_batch, make_model

ENGINE_DEFAULTS: dict[str, Any] = {"precision": "fp32", "device": "cpu"}


def captured(case: Any, *arguments: Any) -> Any:
    """A case with the stand-in for captured towers."""
    from unittest import mock

    with mock.patch.dict(ENGINE_DEFAULTS, {"capture": True}):
        return case(*arguments)


def make_engine(
    stage: int, model: nn.Module, optim: OptimConfig, passthrough: dict[str, Any] | None = None, **settings: Any
) -> Engine:
    """An engine over `model`; the fp32 CPU one unless `settings` say otherwise."""
    config = EngineConfig.model_validate(ENGINE_DEFAULTS | {"zero_stage": stage} | settings)
    return Engine(
        model,
        make_optimizer(parameter_groups(model.named_parameters(), optim), optim),
        config,
        torch.device("cpu"),
        clip_norm=optim.clip_norm,
        rows_per_rank=1,
        passthrough=passthrough or {},
    )


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """The averaged gradient of every parameter, whole, whatever the stage. All ranks."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, parameter in engine.module.named_parameters():
        gradient = parameter.grad if engine.zero_stage == 0 else safe_get_full_grad(parameter)
        found[name] = torch.zeros(0) if gradient is None else gradient.detach().clone()
    return found


def gradient_case(
    stage: int, micro_batches: int, loss: str, num_clips: int, bucket: int | None = None, **changes: Any
) -> Any:
    """Loss, gradients and gradient norm of one global batch; `changes` are the model's."""
    model = make_model(**changes)
    passthrough = {} if bucket is None else {"zero_optimization": {"reduce_bucket_size": bucket}}
    engine = make_engine(stage, model, OptimConfig(clip_norm=0), passthrough)
    engine.train()
    batch = make_batch(num_clips, rank=rank(), world_size=world_size())
    objective = Objective(LossConfig.model_validate({"name": loss}))
    value, _ = backward_batch(engine, objective, batch, micro_batches=micro_batches, accumulation="exact")
    gradients = whole_gradients(engine)
    norm = engine.gradient_norm()
    close(engine)
    return (value.item(), gradients, norm) if is_main() else None


def operations_case(stage: int, layers: int) -> tuple[int, int]:
    """Operations of a step outside of the captured towers: all of them, and those of norm, clipping and update."""
    from unittest import mock

    from pipeline.capture import StandInPass
    from tests.pipeline.operations import CountOperations

    deep = {name: tower | {"layers": layers} for name, tower in architecture().items() if isinstance(tower, dict)}
    engine = make_engine(
        stage, make_model(architecture=architecture() | deep), OptimConfig(clip_norm=1e-3), capture=True
    )
    engine.train()
    objective, batch, count = Objective(LossConfig(name="vsc_fc")), make_batch(8), CountOperations()

    def uncounted(replay: Any) -> Any:
        def run(self: StandInPass) -> None:
            count.paused += 1
            replay(self)
            count.paused -= 1

        return run

    before = [0]

    def step() -> None:
        loss, _ = backward_batch(engine, objective, batch, micro_batches=1, accumulation="exact")
        before[0] = count.total
        engine.read(loss)
        engine.step()

    step()  # captures
    forward, backward = uncounted(StandInPass.forward), uncounted(StandInPass.backward)
    with (
        mock.patch.object(StandInPass, "forward", forward),
        mock.patch.object(StandInPass, "backward", backward),
        count,
    ):
        step()
    close(engine)
    return count.total, count.total - before[0]


def reduction_case(reduce_dtype: str) -> tuple[list[str], float, dict[str, Tensor]]:
    """What happens in a backward pass under ZeRO 0 on two ranks, in order; the loss; the gradients."""
    from unittest import mock

    from pipeline import flat_gradients
    from pipeline.capture import StandInPass

    engine = make_engine(0, make_model(), OptimConfig(clip_norm=0), capture=True, reduce_dtype=reduce_dtype)
    engine.train()
    events: list[str] = []
    true_backward, true_send = StandInPass.backward, flat_gradients.FlatGradients._send

    def backward(self: StandInPass) -> None:
        events.append("text" if self.inputs[0].dtype == torch.int64 else f"video of {self.inputs[0].shape[1]} frames")
        true_backward(self)

    def send(self: Any, part: Any) -> None:
        events.append(f"send {part.name or 'the rest'}")
        true_send(self, part)

    batch, objective = make_batch(8, rank=rank(), world_size=world_size()), Objective(LossConfig(name="vsc_fc"))
    with (
        mock.patch.object(StandInPass, "backward", backward),
        mock.patch.object(flat_gradients.FlatGradients, "_send", send),
    ):
        value, _ = backward_batch(engine, objective, batch, micro_batches=1, accumulation="exact")
    gradients = whole_gradients(engine)
    close(engine)
    return events, value.item(), gradients


def close(engine: Engine) -> None:
    """Let go of an engine's hooks and buffers, so that the next case starts clean."""
    with contextlib.suppress(AttributeError):
        engine.deepspeed.destroy()


def training_case(argv: list[str]) -> int:
    """`python -m pipeline.train argv...` within the pool."""
    from pipeline.train import main

    return main(argv)


def training_in(folder: str, argv: list[str]) -> int:
    """`python -m pipeline.train argv...` in `folder`, within the pool."""
    with contextlib.chdir(folder):
        return training_case(argv)


def precision_case(stage: int, micro_batches: int, precision: str) -> tuple[float, float, float, float]:
    """Loss and gradient norm of one batch in fp32, then in `precision`."""
    found = []
    for settings in ({"precision": "fp32"}, {"precision": precision, "device": "auto"}):
        engine = make_engine(stage, make_model(), OptimConfig(clip_norm=0.0), **settings)
        if engine.loss_scale is not None:
            engine.loss_scale.value = 16.0  # the gradients of the tiny model are large
        engine.train()
        batch = make_batch(16, rank=rank(), world_size=world_size())
        objective = Objective(LossConfig(name="vsc_fc"))
        value, _ = backward_batch(engine, objective, batch, micro_batches=micro_batches, accumulation="exact")
        assert value.dtype == torch.float32
        found += [value.item(), engine.gradient_norm()]
        engine.step()
        assert all(parameter.dtype == torch.float32 for parameter in engine.module.parameters())
        close(engine)
    return found[0], found[1], found[2], found[3]


def overflow_case(stage: int, passthrough: dict[str, Any]) -> list[tuple[float, float, bool, float]]:
    """Steps in fp16, the first ones with a scale that is too large.

    Gradient norm, the norm that the optimizer sees (0: none), whether a weight has changed, loss scale.
    """
    optim = OptimConfig(lr=1e-2, clip_norm=5.0)
    engine = make_engine(stage, make_model(), optim, passthrough, precision="fp16", device="auto")
    true_step, seen = engine.deepspeed.step, [0.0]

    def step() -> None:
        assert engine.loss_scale is not None
        seen[0] = engine.gradient_norm() * engine.loss_scale.value
        true_step()

    engine.deepspeed.step = step
    assert engine.loss_scale is not None
    engine.loss_scale.value = 2.0**15
    engine.train()
    objective, found = Objective(LossConfig(name="vsc_fc")), []
    before = engine.whole_weights()
    for _ in range(12):
        batch = make_batch(8, 0, rank(), world_size())
        backward_batch(engine, objective, batch, micro_batches=2, accumulation="exact")
        norm = engine.gradient_norm()
        engine.step()
        after = engine.whole_weights()
        changed = any(not torch.equal(before[name], tensor) for name, tensor in after.items())
        found.append((norm, seen[0], changed, engine.loss_scale.value))
        before = after
    close(engine)
    return found


def masters_case(stage: int) -> bool:
    """Whether, after three steps, the whole weights are the fp32 masters of the optimizer, put together."""
    from deepspeed.utils import safe_get_full_fp32_param

    engine = make_engine(stage, make_model(), OptimConfig(lr=1e-2))
    engine.train()
    objective = Objective(LossConfig(name="vsc_fc"))
    for seed in range(3):
        batch = make_batch(8, seed, rank(), world_size())
        backward_batch(engine, objective, batch, micro_batches=1, accumulation="exact")
        engine.step()
    weights = engine.whole_weights()
    same = True
    for name, parameter in engine.module.named_parameters():
        master = parameter.detach() if stage == 0 else safe_get_full_fp32_param(parameter)
        if is_main():
            same = same and torch.equal(weights[name], master.view_as(weights[name]))
    close(engine)
    return same


def thinned_case(stage: int, micro_batches: int) -> Any:
    """The gradient of a model that drops patches at random, in exact parts, from a given random state."""
    engine = make_engine(stage, make_model(patch_dropout=0.5), OptimConfig(clip_norm=0))
    engine.train()
    batch, objective = make_batch(8, rank=rank(), world_size=world_size()), Objective(LossConfig(name="vsc_fc"))
    torch.manual_seed(5)
    value, _ = backward_batch(engine, objective, batch, micro_batches=micro_batches, accumulation="exact")
    drawn = torch.rand(1).item()
    gradients = whole_gradients(engine)
    close(engine)
    return value.item(), gradients, drawn


def steps_case(stage: int, passthrough: dict[str, Any], settings: dict[str, Any]) -> tuple[list[float], Any]:
    """Losses and norms of three steps, the second in two parts, and the weights after them."""
    from unittest import mock

    from pipeline import acceleration
    from pipeline import engine as engine_module

    # The default backend would spend minutes in a C++ compiler; this one traces and differentiates the same graphs.
    with (
        mock.patch.object(acceleration, "COMPILER_BACKEND", "aot_eager"),
        mock.patch.object(engine_module, "COMPILER_BACKEND", "aot_eager"),
    ):
        engine = make_engine(stage, make_model(), OptimConfig(lr=1e-2, clip_norm=1.0), passthrough, **settings)
    engine.train()
    objective, found = Objective(LossConfig(name="vsc_fc")), []
    for seed in range(3):
        batch = make_batch(8, seed, rank(), world_size())
        parts = 1 + seed % 2
        value, _ = backward_batch(engine, objective, batch, micro_batches=parts, accumulation="exact")
        found += [value.item(), engine.gradient_norm()]
        engine.step()
    weights = engine.whole_weights()
    close(engine)
    return found, weights


def memory_case(stage: int) -> list[int]:
    """Parameters of a model of mostly weights, and the most bytes of tensors after forward, backward and update."""
    from unittest import mock

    from pipeline.optim import ClampedAdamW

    before, seen, watched = live_storages(), [], [False]
    wide = architecture() | {"vision_cfg": architecture()["vision_cfg"] | {"width": 512, "layers": 3}}
    engine = make_engine(stage, make_model(architecture=wide), OptimConfig(clip_norm=0.0))
    engine.train()
    engine.module.register_forward_hook(lambda *_: look())
    batch, objective = make_batch(2, rank=rank(), world_size=world_size()), Objective(LossConfig(name="vsc_fc"))
    true_step = ClampedAdamW.step

    def look() -> None:
        if watched[0]:
            seen.append(sum(size for place, size in live_storages().items() if place not in before))

    def step(self: ClampedAdamW) -> None:
        true_step(self)
        look()

    with mock.patch.object(ClampedAdamW, "step", step):
        for looks in (False, True):
            watched[0] = looks  # the moments are there from the second step on
            backward_batch(engine, objective, batch, micro_batches=1, accumulation="exact")
            look()
            engine.step()
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    close(engine)
    return [parameters, max(seen)]


def live_storages() -> dict[int, int]:
    """Address -> bytes of what every reachable tensor, or its gradient, lies in."""
    import gc

    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def groups_case(argv: list[str]) -> list[dict[str, Any]]:
    """The optimizer's groups of a run as they are once it has resumed, without their parameters."""
    from unittest import mock

    from pipeline import train
    from pipeline.trainer import Run

    seen: list[dict[str, Any]] = []

    def look(run: Run) -> str:
        kept = ("name", "weight_decay", "lr_multiplier", "betas", "eps", "clamp")
        seen.extend({key: group[key] for key in kept} for group in run.engine.base_optimizer.param_groups)
        return "stopped"

    with mock.patch.object(train, "train", look):
        assert train.main(argv) == 0
    return seen


def clamp_case(stage: int) -> dict[str, Any]:
    """Push the logit scale past ln 200 and below 0; what the master, the module and the saved weights hold then."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for direction in (-1.0, 1.0):
        model = make_model()
        engine = make_engine(stage, model, OptimConfig(lr=0.5, weight_decay=0.0, clip_norm=0.0))
        engine.train()
        batch = make_batch(8, rank=rank(), world_size=world_size())
        for _ in range(20):
            features = engine(video=batch.video_BTCHW, subtitle=batch.subtitle_BL)
            rest = features.video_BD.sum() * 0 + features.subtitle_BD.sum() * 0
            engine.backward(direction * features.logit_scale.log() + rest)
            engine.step()
        parameter = engine.module.get_parameter("logit_scale")
        master = parameter if stage == 0 else safe_get_full_fp32_param(parameter)
        with _whole(engine, parameter):
            module = parameter.item()
        found[direction] = (master.item(), module, engine.whole_weights().get("logit_scale", torch.zeros(1)).item())
        close(engine)
    return found


def _whole(engine: Engine, parameter: nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter]) if engine.zero_stage == 3 else contextlib.nullcontext()


def trajectory_case(stage: int) -> list[dict[str, float]]:
    """The golden run: 20 steps of the official preset on one batch."""
    from safetensors.torch import load_file

    from pipeline.model.clip_vip import CLIPViP
    from pipeline.optim import set_learning_rate
    from tests.pipeline.model import golden

    recipe = golden.expected()["optimisation"]
    optim = OptimConfig(
        preset="official",
        lr=recipe["lr"],
        betas=recipe["betas"],
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
        warmup=recipe["warmup_ratio"],
        clip_norm=recipe["clip"],
    )
    engine = make_engine(stage, CLIPViP.from_config(golden.config()), optim)
    engine.train()
    inputs = load_file(str(golden.FOLDER / "inputs.safetensors"))
    share = len(inputs["video_BTCHW"]) // world_size()
    inputs = {name: tensor[rank() * share :][:share] for name, tensor in inputs.items()}
    present = torch.ones(share, dtype=torch.bool)
    objective = Objective(LossConfig(name="vsc_fc"))
    rows = []
    for step in range(1, recipe["steps"] + 1):
        features = engine(
            video=inputs["video_BTCHW"],
            subtitle=inputs["subtitle_ids_BL"],
            middle=inputs["frame_B1CHW"][:, 0],
            caption=inputs["caption_ids_BL"],
        )
        loss, _ = objective(features, present, present)
        engine.backward(loss)
        norm, lr = engine.gradient_norm(), optim.lr_at(step, recipe["steps"])
        set_learning_rate(engine.param_groups, lr)
        engine.step()
        scale = torch.tensor(engine.logit_scale()).log().item()
        rows.append({"step": step, "loss": loss.item(), "lr": lr, "grad_norm": norm, "logit_scale": scale})
    close(engine)
    return rows


def training_with_poison(argv: list[str], poisoned_steps: list[int]) -> tuple[int, str]:
    """A run whose loss is no number at some steps; the exit code, or the message of its RunError."""
    from unittest import mock

    from pipeline.errors import PipelineError
    from pipeline.train import main

    calls = [0]
    true_loss = Objective.__call__

    def loss(self: Objective, *arguments: Any) -> Any:
        calls[0] += 1
        value, terms = true_loss(self, *arguments)
        return (value * torch.nan if calls[0] in poisoned_steps else value), terms

    with mock.patch.object(Objective, "__call__", loss):
        try:
            return main(argv), ""
        except PipelineError as error:
            return error.exit_code, str(error)


def training_with_full_disk(argv: list[str], full_on_rank: int, full_at_step: int) -> int:
    """A run during whose save at one step one rank can write no file over 64 KiB."""
    import resource
    from unittest import mock

    from pipeline.checkpoint.save import Saver, Snapshot
    from pipeline.train import main

    true_write = Saver._write

    def write(self: Saver, snapshot: Snapshot) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank() == full_on_rank and snapshot.step == full_at_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
        try:
            true_write(self, snapshot)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with mock.patch.object(Saver, "_write", write):
        return main(argv)


def training_with_slow_save(argv: list[str]) -> int:
    """A run whose first save takes 5 s on rank 0 after every rank has written its part."""
    import time
    from unittest import mock

    from pipeline.checkpoint.save import Saver
    from pipeline.train import main

    true_write, waits_s = Saver._write_whole, [5.0, 0.0, 0.0]

    def write(self: Saver, *arguments: Any) -> None:
        time.sleep(waits_s.pop(0))
        true_write(self, *arguments)

    with mock.patch.object(Saver, "_write_whole", write):
        return main(argv)


def training_with_endless_save(argv: list[str]) -> int:
    """A run whose saves never end."""
    import time
    from unittest import mock

    from pipeline.checkpoint.save import Saver
    from pipeline.train import main

    with mock.patch.object(Saver, "_write_whole", lambda *_: time.sleep(600)):
        return main(argv)


def training_interrupted_while_built(argv: list[str]) -> int:
    """A run that gets Ctrl-C before it can make a step."""
    import os
    import signal
    from unittest import mock

    from pipeline import train

    def build(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)

    with mock.patch.object(train, "build", build):
        return train.main(argv)


def saves_case(
    folder: str, saves: list[tuple[int, int | None, bool]], settings: dict[str, int], mute_rank: int | None = None
) -> list[tuple[list[str], str]] | str:
    """Names of the checkpoints, and what `best` says, after each save of a state that is nothing but a step.

    A save is (step, step of the best, whether the disk is full). Rank `mute_rank` has lost the store of the votes.
    Where the saver ends the run, its error.
    """
    from pathlib import Path
    from unittest import mock

    from pipeline.checkpoint.folder import list_checkpoints
    from pipeline.checkpoint.save import CheckpointConfig, Saver
    from pipeline.checkpoint.vote import Ballot
    from pipeline.errors import RunError

    run_folder, is_full, found = Path(folder), [False], []

    class Nothing:
        def save(self, staging: Path, tag: str, writer: Any) -> None:
            writer.save({}, str(staging / tag / f"part_{rank()}.pt"))

        def whole_weights(self) -> dict[str, Tensor]:
            return {}

    def save_weights(into: Path, weights: dict[str, Tensor]) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        (into / "model.safetensors").write_bytes(b"weights")

    saver = Saver(run_folder, CheckpointConfig.model_validate(settings), "", save_weights, lambda: None)
    for step, best_step, is_full[0] in saves:
        lost = mock.patch.object(Ballot, "cast", side_effect=RuntimeError("Broken pipe"))
        try:
            with lost if rank() == mute_rank else contextlib.nullcontext():
                saver.save(Nothing(), step, {}, best_step, wait=True)  # type: ignore[arg-type]
        except RunError as error:
            return str(error)
        best = run_folder / "best"
        names = [path.name for path in list_checkpoints(run_folder)]
        found.append((names, best.read_text().strip() if best.exists() else ""))
    return found


def training_with_slow_disk(argv: list[str], steps_later: int) -> int:
    """A run whose every write waits until training is so many steps further, or at its end."""
    import threading
    from unittest import mock

    from pipeline.checkpoint.save import Saver, Snapshot
    from pipeline.meters import StepClock
    from pipeline.train import main

    true_write, true_settle, true_stop = Saver._write, Saver.settle, StepClock.stop
    steps, moved = [0], threading.Condition()

    def advance(by: float) -> None:
        with moved:
            steps[0] += by
            moved.notify_all()

    def stop(self: StepClock) -> None:
        true_stop(self)
        advance(1)

    def settle(self: Saver) -> None:
        advance(float("inf"))
        true_settle(self)
        steps[0] = 0

    def write(self: Saver, snapshot: Snapshot) -> None:
        with moved:
            assert moved.wait_for(lambda: steps[0] >= steps_later, timeout=60)
        true_write(self, snapshot)

    with (
        mock.patch.object(Saver, "_write", write),
        mock.patch.object(Saver, "settle", settle),
        mock.patch.object(StepClock, "stop", stop),
    ):
        return main(argv)
