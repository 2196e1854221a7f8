"""The numbers to reproduce: CLIP-ViP (arXiv 2209.06430), text to video, in percent.

PAPER["msrvtt_1ka"]["CLIP-ViP B/32"].r1   ->  50.1
"""

from typing import NamedTuple


class PaperRow(NamedTuple):
    """R@1, R@5, R@10, and R@1 with the official DSL where the paper gives it."""

    r1: float
    r5: float
    r10: float
    dsl_r1: float | None = None


# Keys are the names of the sets in configs/evaluate.
PAPER: dict[str, dict[str, PaperRow]] = {
    "msrvtt_1ka": {
        "CLIP-ViP B/32": PaperRow(50.1, 74.8, 84.6, 55.9),
        "CLIP-ViP B/16": PaperRow(54.2, 77.2, 84.8, 57.7),
        "CLIP-ViP B/32, zero-shot": PaperRow(31.5, 53.9, 63.4),
        "CLIP-ViP B/16, zero-shot": PaperRow(31.7, 53.8, 63.2),
    },
    "didemo": {
        "CLIP-ViP B/32": PaperRow(48.6, 77.1, 84.4),
        "CLIP-ViP B/16": PaperRow(50.5, 78.4, 87.1, 55.3),
    },
    "lsmdc": {
        "CLIP-ViP B/32": PaperRow(25.6, 45.3, 54.4),
        "CLIP-ViP B/16": PaperRow(29.4, 50.6, 59.0, 30.7),
    },
    "activitynet": {
        "CLIP-ViP B/32": PaperRow(51.1, 78.4, 88.3),
        "CLIP-ViP B/16": PaperRow(53.4, 81.4, 90.0, 61.4),
    },
}
