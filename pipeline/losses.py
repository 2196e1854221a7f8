"""The contrastive losses of CLIP-ViP, local to the rank, with logits in blocks.

loss, terms = contrastive_loss(*features, has_subtitle_B, has_caption_B, config)
"""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.distributed import ProcessGroup

from pipeline.config import Section

LossName = Literal["vs", "vs_fc", "concatenated", "vs_vc", "vs_vc_fc", "vsc", "vsc_fc", "vs_dsl"]


class LossConfig(Section):
    """Which pairs are contrasted, and how much memory it may take."""

    name: LossName = "vsc_fc"
    """Pairs of video (v), subtitle (s), middle frame (f), caption (c); `vsc_fc` is the paper's final loss."""

    reduction: Literal["sum", "mean"] = "sum"
    """Over the cross-entropy terms; `sum` is the official form."""

    block_rows: int = Field(default=512, gt=0)
    """Rows of the logit matrix that exist at a time."""


def contrastive_loss(
    video_BD: Tensor,
    subtitle_BD: Tensor | None,
    frame_BD: Tensor | None,
    caption_BD: Tensor | None,
    logit_scale: Tensor,
    has_subtitle_B: Tensor,
    has_caption_B: Tensor,
    config: LossConfig,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss over the clips of all ranks, from this rank's features, and its detached cross-entropy terms.

    Every rank has the same number of rows and gets the global value. The gradients, averaged over ranks, are those of
    one process with the whole batch. Features that the named loss does not use may be None.
    """
    raise NotImplementedError
