"""Memory per GPU of a step: parameters, gradients, optimizer states and buffers under every ZeRO stage.

    state_bytes_per_parameter(1, world_size=8), resident_bytes(1, 8, parameters=151_000_000, bytes_per_value=2)

Two moments decide. When forward turns to backward, activations are at their fullest and gradients are not there yet; at
the update it is the other way round. The larger of the two is the peak.
"""

from pipeline.engine_config import REDUCE_BUCKET_ELEMENTS


def state_bytes_per_parameter(stage: int, world_size: int) -> float:
    """fp32 parameters, gradients and two moments at the fullest moment of a step.

    ZeRO 1 and 2 have a master copy as well, and part all but the parameters: a gradient goes into its partition as soon
    as it is reduced. Under ZeRO 3 either the parameters are whole, when forward turns to backward, or the update has
    its partition of the gradient twice.

    >>> state_bytes_per_parameter(0, 8), state_bytes_per_parameter(1, 4), state_bytes_per_parameter(3, 10)
    (16.0, 8.0, 6.0)
    """
    return (16.0, 4 + 16 / world_size, 4 + 16 / world_size, max(4 + 20 / world_size, 24 / world_size))[stage]


def resident_bytes_per_parameter(stage: int, world_size: int) -> float:
    """The same without gradients: what lies beside the activations when forward turns to backward.

    >>> resident_bytes_per_parameter(0, 8), resident_bytes_per_parameter(1, 1)
    (12.0, 16.0)
    """
    return (12.0, 4 + 12 / world_size, 4 + 12 / world_size, 4 + 16 / world_size)[stage]


def buffer_bytes(stage: int, world_size: int, parameters: int) -> int:
    """What reducing takes beside the gradients: ZeRO 0 all of them once more, else a bucket and what waits for it.

    ZeRO 1 and 2 fill a second bucket while the first is reduced.
    """
    waiting = min(REDUCE_BUCKET_ELEMENTS, parameters) if stage in (1, 2) else 0
    buckets = (1 + (stage < 3)) * REDUCE_BUCKET_ELEMENTS
    elements = buckets + waiting if stage > 0 else parameters * (world_size > 1)
    return 4 * elements


def resident_bytes(stage: int, num_gpus: int, parameters: int, bytes_per_value: int) -> float:
    """Beside the activations when forward turns to backward, with the buckets that reducing starts with.

    Autocast (`bytes_per_value` 2) keeps a copy of every weight in half precision.
    """
    copies = 2 * parameters if bytes_per_value == 2 else 0
    buckets = 4 * REDUCE_BUCKET_ELEMENTS * (0, 2, 2, 1)[stage]
    return parameters * resident_bytes_per_parameter(stage, num_gpus) + buckets + copies
