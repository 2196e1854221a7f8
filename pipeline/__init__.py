"""CLIP-ViP at scale: shards -> batches -> model -> losses -> trainer -> checkpoints -> evaluation.

from pipeline import CLIPViP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.encode import CLIPViP

__all__ = ["CLIPViP"]


def __getattr__(name: str) -> Any:
    """Load the model's class when it is asked for: commands that need no torch start without it."""
    if name == "CLIPViP":
        from pipeline.encode import CLIPViP

        return CLIPViP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
