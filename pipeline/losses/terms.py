"""The table of losses: every loss is a list of cross-entropy terms over four features a clip.

    v video    s subtitle    f middle frame    c caption

    for term in TERMS["vsc_fc"]: ...

A new loss is a new row of the table.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.config import Section

LossName = Literal["vs", "vs_fc", "concatenated", "vs_vc", "vs_vc_fc", "vsc", "vsc_fc", "vs_dsl"]
NAMES = {"v": "video", "s": "subtitle", "f": "middle frame", "c": "caption"}
TEXTS = ("s", "c")


class LossConfig(Section):
    """Which pairs are contrasted, and how much memory it may take."""

    name: LossName = "vsc_fc"
    """Pairs of video (v), subtitle (s), middle frame (f), caption (c); `vsc_fc` is the paper's final loss."""

    reduction: Literal["sum", "mean"] = "sum"
    """Over the cross-entropy terms; `sum` is the official form."""

    block_side: int = Field(default=1024, gt=0)
    """Rows and columns of the logit matrix that exist at a time."""


@dataclass(frozen=True)
class Term:
    """One cross-entropy: the mean over the rows of all `pairs` of -log softmax(positive among the candidates)."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    """(query, positive) kinds; several are stacked."""
    candidates: tuple[str, ...]
    own_excluded: bool = False
    """Candidates of the query's own clip, other than the positive, are left out."""
    dual_softmax: bool = False
    """Logits are multiplied by their softmax over the queries."""

    @property
    def text_of(self) -> dict[str, str]:
        """For each kind in `pairs`, the text without which a clip takes no part with it."""
        return {kind: text for pair in self.pairs for kind in pair for text in pair if text in TEXTS}


def _pair(query: str, key: str, *, dual_softmax: bool = False) -> tuple[Term, Term]:
    """Both directions."""
    return (
        Term(f"{query}_to_{key}", ((query, key),), (key,), dual_softmax=dual_softmax),
        Term(f"{key}_to_{query}", ((key, query),), (query,), dual_softmax=dual_softmax),
    )


_VS, _VC, _FC = _pair("v", "s"), _pair("v", "c"), _pair("f", "c")
# The two texts of other clips are negatives together; a clip's other text is no negative of its video.
_VSC = (
    Term("s_to_v", (("s", "v"),), ("v",)),
    Term("c_to_v", (("c", "v"),), ("v",)),
    Term("v_to_s", (("v", "s"),), ("s", "c"), own_excluded=True),
    Term("v_to_c", (("v", "c"),), ("s", "c"), own_excluded=True),
)

TERMS: dict[LossName, tuple[Term, ...]] = {
    "vs": _VS,
    "vs_fc": (*_VS, *_FC),
    "concatenated": (
        Term("vf_to_sc", (("v", "s"), ("f", "c")), ("s", "c")),
        Term("sc_to_vf", (("s", "v"), ("c", "f")), ("v", "f")),
    ),
    "vs_vc": (*_VS, *_VC),
    "vs_vc_fc": (*_VS, *_VC, *_FC),
    "vsc": _VSC,
    "vsc_fc": (*_VSC, *_FC),
    "vs_dsl": _pair("v", "s", dual_softmax=True),
}


def kinds_of(terms: tuple[Term, ...]) -> list[str]:
    """The features that `terms` compare."""
    return sorted({kind for term in terms for pair in term.pairs for kind in pair})


def texts_of(name: LossName) -> tuple[str, ...]:
    """The texts that a loss compares, "subtitle" or "caption" or both: a clip without any of them teaches nothing."""
    return tuple(NAMES[kind] for kind in kinds_of(TERMS[name]) if kind in TEXTS)


def matrices_of(terms: tuple[Term, ...]) -> dict[tuple[str, str], str]:
    """The logit matrices that `terms` read, (visual, text), each with the text that its visual kind must have."""
    matrices: dict[tuple[str, str], str] = {}
    for term in terms:
        for query in term.text_of.keys() & set(TEXTS):
            for visual in term.candidates:
                if visual not in TEXTS:
                    text = matrices.setdefault((visual, query), term.text_of[visual])
                    assert text == term.text_of[visual], (
                        f"{term.name} hides {visual} by another text than a term before"
                    )
    return matrices
