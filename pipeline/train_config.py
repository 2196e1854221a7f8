"""`TrainConfig`: the whole of a training run. One YAML file = one run; see configs/pretrain and configs/finetune.

config = load_config(TrainConfig, ["configs/pretrain/b32.yaml"], ["optim.lr=1e-5"])
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.checkpoint.save import CheckpointConfig
from pipeline.config import Section
from pipeline.data.stream import DataConfig
from pipeline.engine_config import ROUND_ROBIN_KEY, EngineConfig, moves_parameters, repeated_keys
from pipeline.evaluation.metrics import RISING
from pipeline.evaluation.protocol import RetrievalSetConfig
from pipeline.losses import LossConfig
from pipeline.model.config import ModelConfig
from pipeline.optim import OptimConfig


class BatchConfig(Section):
    """The batch, and how it is cut so that it fits."""

    global_batch_size: int = Field(default=1024, gt=0)
    """Clips of one step over all ranks."""
    micro_batches: int = Field(default=1, gt=0)
    """Parts of a rank's share of the batch that go through the model one after the other."""
    accumulation: Literal["exact", "plain"] = "exact"
    """exact: the loss sees the whole global batch (features first, then each part again with gradients: one more
    forward pass). plain: each part is contrasted with itself only, as the official code does; fewer negatives."""


class EvaluationConfig(Section):
    """Retrieval during training."""

    every_steps: int = Field(default=0, ge=0)
    """Evaluate after every so many steps; 0: only after the last."""
    sets: list[RetrievalSetConfig] = []
    """Held-out sets. Their metrics are logged as eval/<set name>/<metric>."""
    best_metric: str | None = None
    """<set name>/<metric>, higher is better; the best checkpoint by it is kept and named in `best`. The set must have
    split: val, unless `best_on_test` says otherwise."""
    best_on_test: bool = False
    """Allow `best_metric` on a set with split: test, as the official code does."""

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        names = [config.name for config in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets: names must differ, got {names}")
        if self.best_metric is not None:
            set_name, _, metric = self.best_metric.partition("/")
            chosen = [config for config in self.sets if config.name == set_name]
            if not chosen:
                raise ValueError(f"best_metric {self.best_metric!r} names no set of {names}; write <set name>/t2v_r1")
            known = [*RISING, *(f"pairs_{kind}" for kind in chosen[0].pairs)]
            if metric not in known:
                raise ValueError(
                    f"best_metric {self.best_metric!r}: {metric!r} is no metric of which higher is better; there are "
                    f"{', '.join(known)}"
                )
            if chosen[0].split == "test" and not self.best_on_test:
                raise ValueError(
                    f"best_metric chooses on the test split of {chosen[0].name!r}; name a set with split: val, or set "
                    "best_on_test: true"
                )
        return self


class LogConfig(Section):
    """What is logged."""

    every_steps: int = Field(default=20, gt=0)
    """A line on the console and in metrics.jsonl after every so many steps."""
    wandb: Literal["auto", "online", "offline", "off"] = "off"
    """auto: online with a login, else offline. wandb being absent or down never stops a run."""
    wandb_project: str = "clip-vip"
    """Project in wandb."""
    tensorboard: bool = False
    """Also write event files for TensorBoard into the run folder; needs the extra `tensorboard`."""


class FailureConfig(Section):
    """What to do about losses and gradients that are no numbers."""

    skip_nonfinite_batches: int = Field(default=0, ge=0)
    """So many batches with a NaN or infinite loss or gradient are skipped, weights untouched; one more ends the run."""
    spike_factor: float = Field(default=3.0, gt=1)
    """A loss over this multiple of its running mean is reported."""


class TrainConfig(Section):
    """A training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder below runs_dir."""
    runs_dir: Path = Path("runs")
    """Where run folders are made."""
    seed: int = Field(default=42, ge=0)
    """Start of every random draw."""
    steps: int | None = Field(default=None, gt=0)
    """Length of the run in steps; give this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in epochs of the data as it is when the run starts; shards that come later do not change it."""
    stop_at_step: int | None = Field(default=None, gt=0)
    """Save and leave after this step, as if a signal had come, or at once where the run is past it; the same command
    without it goes on."""
    resume: str = "auto"
    """auto: go on from the newest intact checkpoint of the run folder; a path: the same, and where there is none, from
    that checkpoint or run folder; never: start over, what the folder holds is set aside as <name>_before_<n>."""
    init_from: Path | None = None
    """Weights to start from when nothing is resumed, in place of model.pretrained: an export, a checkpoint, a run
    folder, an official .pt. They must fit the model that `model` describes."""
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()
    failure: FailureConfig = FailureConfig()
    deepspeed: dict[str, Any] = {}
    """Engine-only keys passed through to DeepSpeed (zero_optimization.offload_optimizer, ...)."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.steps is None and self.epochs is None:
            raise ValueError("the run has no length; give steps or epochs")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps is {self.steps} and epochs is {self.epochs:g}: a run has one length; add steps=null to go by "
                "epochs, or epochs=null to go by steps"
            )
        if self.steps is not None and self.stop_at_step is not None and self.stop_at_step > self.steps:
            raise ValueError(f"stop_at_step is {self.stop_at_step}, but the run ends at {self.steps}; leave it out")
        if repeated := repeated_keys(self.deepspeed):
            raise ValueError(f"deepspeed.{repeated[0]} repeats what our own config decides; remove it")
        if moves_parameters(self.deepspeed):
            raise ValueError(f"deepspeed.{ROUND_ROBIN_KEY}: checkpoints could not be converted; remove it")
        return self

    @property
    def run_folder(self) -> Path:
        """The folder of this run."""
        return self.runs_dir / self.name
