"""The figures of a planned run, and what follows from them: time of a step, hours, memory under every ZeRO stage.

plan.step_s, plan.hours, plan.peak_gb(stage=1)
"""

from dataclasses import dataclass

from pipeline.flops import ClipWork, Gpu
from pipeline.planning.activations import Kept
from pipeline.planning.communication import Links
from pipeline.planning.length import Length
from pipeline.planning.memory import buffer_bytes, resident_bytes, state_bytes_per_parameter
from pipeline.planning.speeds import Speed


@dataclass(frozen=True)
class Plan:
    """The figures of one run on `num_gpus` GPUs."""

    parameters: int
    work: ClipWork
    length: Length
    gpu: Gpu
    num_gpus: int
    clips_per_gpu: float
    micro_batches: int
    micro_step: Speed
    """Of one micro-batch, forward and backward, without recomputation and communication."""
    checkpointing: bool
    encodes_twice: bool
    """Exact accumulation: features first, then each part again."""
    traffic_bytes: float
    """Per GPU and step."""
    links: Links
    bytes_per_value: int
    """Of an activation: 2 in bf16 and fp16."""
    kept: Kept
    """How measured activation memory relates to that of the shapes."""
    frame_cost: float
    """Decoding and storing, relative to 12 frames of 224 px."""

    @property
    def traffic_s(self) -> float:
        """All traffic of a step, hidden or not."""
        return self.traffic_bytes / (self.links.gb_per_s(self.num_gpus) * 1e9)

    @property
    def step_s(self) -> float:
        """A step, with what communication adds."""
        computing = self.micro_batches * self.micro_step.seconds * self.extra_forward
        return computing + self.traffic_s * (1 - self.links.overlap)

    @property
    def clips_per_s(self) -> float:
        """Over all GPUs."""
        return self.num_gpus * self.clips_per_gpu / self.step_s

    @property
    def extra_forward(self) -> float:
        """Time over one forward and backward: a forward pass more for each way of recomputing."""
        return 1 + (int(self.checkpointing) + int(self.encodes_twice)) / 3

    @property
    def hours(self) -> float:
        """Of the run."""
        return self.length.steps * self.step_s / 3600

    def states_gb(self, stage: int) -> float:
        """Parameters, gradients, optimizer and DeepSpeed's buffers per GPU, at the update."""
        states = self.parameters * state_bytes_per_parameter(stage, self.num_gpus)
        return (states + buffer_bytes(stage, self.num_gpus, self.parameters)) / 1e9

    def resident_gb(self, stage: int) -> float:
        """What lies beside the activations: states without gradients, buckets, weights in half precision."""
        states = resident_bytes(stage, self.num_gpus, self.parameters, self.bytes_per_value)
        return (states + self.kept.constant_bytes) / 1e9

    @property
    def activations_gb(self) -> float:
        """Per GPU; with checkpointing only the input of each layer."""
        per_clip = self.work.activation_bytes(self.bytes_per_value) * self.kept.factor
        if self.checkpointing:
            per_clip = sum(4 * each.tokens * each.width * each.layers for each in self.work.sequences)
        return per_clip * self.clips_per_gpu / self.micro_batches / 1e9

    def peak_gb(self, stage: int) -> float:
        """The larger of the two moments of `pipeline.planning.memory`."""
        return max(self.resident_gb(stage) + self.activations_gb, self.states_gb(stage))
