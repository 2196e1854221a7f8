"""What ranks say to each other in a step: bytes per GPU, and the time that it adds.

    traffic = step_traffic(parameters, features_bytes, num_gpus=64, zero_stage=1, gradient_bytes=4)
    traffic.seconds(Links(), num_gpus=64)

A ring moves (W - 1) / W of a tensor over the link of every GPU to gather or to scatter it, and twice that to reduce it
for all. The slowest link of the ring counts: that between nodes as soon as there are several.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """How fast GPUs are joined; figures of datasheets, of which collectives reach most."""

    gpus_per_node: int = 8
    node_gb_per_s: float = 450.0
    """Per GPU inside a node, one way (NVLink of an H100 or H200)."""
    network_gb_per_s: float = 50.0
    """Per GPU between nodes, one way (400 Gb/s)."""
    overlap: float = 0.5
    """Share of the traffic that hides behind the backward pass."""

    def gb_per_s(self, num_gpus: int) -> float:
        """Of the slowest link."""
        return self.network_gb_per_s if num_gpus > self.gpus_per_node else self.node_gb_per_s


def gradient_traffic_bytes(parameters: int, *, num_gpus: int, zero_stage: int, gradient_bytes: int) -> float:
    """Per GPU and step. Parameters travel in fp32.

    ZeRO 0 reduces gradients for all; 1 and 2 scatter them and gather new parameters; 3 gathers parameters twice.

    >>> gradient_traffic_bytes(1000, num_gpus=2, zero_stage=0, gradient_bytes=4)
    4000.0
    """
    passes = (2 * gradient_bytes, gradient_bytes + 4, gradient_bytes + 4, gradient_bytes + 8)[zero_stage]
    return parameters * passes * (num_gpus - 1) / num_gpus


def feature_traffic_bytes(clips_per_gpu: float, embed_dim: int, num_texts: int, *, num_gpus: int) -> float:
    """Per GPU and step: text features of all ranks in fp32, there, and their gradients back."""
    return 2 * 4 * num_texts * embed_dim * clips_per_gpu * (num_gpus - 1)
