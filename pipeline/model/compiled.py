"""Blocks of a tower compiled one by one, for a bounded number of shapes.

    compiled = CompiledBlocks(list(transformer.resblocks), "inductor", must=False)
    for block in compiled.for_input(x_BNW, attend): ...

All blocks have the same code, so that what is compiled for the first serves the others. Each shape is compiled for
itself: kernels of fixed sizes are faster, and there are few (whole clips, middle frames, texts of a few lengths).
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.log import logger

MAX_SHAPES = 24
"""Of one tower, with and without gradient counted apart; other shapes run eagerly."""


class CompiledBlocks:
    """The blocks as they are, and compiled."""

    def __init__(self, blocks: list[nn.Module], backend: str, *, must: bool) -> None:
        """`must`: a block that cannot be compiled is an error, and not run eagerly."""
        import torch._dynamo

        # Both towers run the same code, and guards count their shapes together.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 4 * MAX_SHAPES)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * MAX_SHAPES)
        self._eager = blocks
        self._compiled: list[Any] = [
            torch.compile(block, fullgraph=True, dynamic=False, backend=backend) for block in blocks
        ]
        self._must = must
        self._known: set[Any] = set()

    @property
    def num_shapes(self) -> int:
        """For which it was compiled."""
        return len(self._known)

    def for_input(self, x_BNW: Tensor, attend: Any) -> Sequence[Any]:
        """The blocks to run on this input: compiled, or as they are where that cannot be."""
        kind = x_BNW.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (tuple(x_BNW.shape), x_BNW.dtype, autocast, torch.is_grad_enabled(), x_BNW.requires_grad)
        if key in self._known:
            return self._compiled
        if len(self._known) >= MAX_SHAPES or not self._compiled:
            return self._eager
        try:
            self._compile(x_BNW, attend)
        except torch._dynamo.exc.TorchDynamoException as error:
            if self._must:
                raise
            logger.warning(f"blocks run without torch.compile, which failed: {' '.join(str(error).split())[:200]}")
            self._compiled = []
            return self._eager
        self._known.add(key)
        return self._compiled

    def _compile(self, x_BNW: Tensor, attend: Any) -> None:
        """Run the first block on this input, for the compiler's sake."""
        with warnings.catch_warnings():
            # The compiler itself looks whether its inputs have gradients.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
            self._compiled[0](x_BNW, attend)
