"""The eight losses with whole logit matrices, written down term by term: what the blocks must equal.

A term without one valid row is 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_loss(
    name: str, v: Tensor, s: Tensor, f: Tensor, c: Tensor, scale: Tensor, has_s: Tensor, has_c: Tensor
) -> Tensor:
    """The sum of the terms with whole logit matrices, written down term by term."""

    nothing = scale * 0

    def one_way(queries: Tensor, keys: Tensor) -> Tensor:
        if not len(queries):
            return nothing
        return F.cross_entropy(scale * queries @ keys.T, torch.arange(len(queries)))

    def both_ways(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        return one_way(a[mask], b[mask]) + one_way(b[mask], a[mask])

    def dual(queries: Tensor, keys: Tensor) -> Tensor:
        if not len(queries):
            return nothing
        logits = scale * queries @ keys.T
        return F.cross_entropy(logits * logits.softmax(dim=0), torch.arange(len(queries)))

    def joint(positives: Tensor, mask: Tensor) -> Tensor:
        losses = []
        for i in mask.nonzero().flatten():
            others = torch.arange(len(v)) != i
            negatives = torch.cat([s[has_s & others], c[has_c & others]])
            logits = scale * torch.cat([positives[i : i + 1], negatives]) @ v[i]
            losses.append(logits.logsumexp(0) - logits[0])
        return torch.stack(losses).mean() if losses else nothing

    if name == "concatenated":
        visual, text = torch.cat([v[has_s], f[has_c]]), torch.cat([s[has_s], c[has_c]])
        return one_way(visual, text) + one_way(text, visual)
    if name == "vs_dsl":
        return dual(v[has_s], s[has_s]) + dual(s[has_s], v[has_s])
    if name in ("vsc", "vsc_fc"):
        total = one_way(s[has_s], v[has_s]) + one_way(c[has_c], v[has_c]) + joint(s, has_s) + joint(c, has_c)
    else:
        total = both_ways(v, s, has_s)
    if name in ("vs_vc", "vs_vc_fc"):
        total = total + both_ways(v, c, has_c)
    if name in ("vs_fc", "vs_vc_fc", "vsc_fc"):
        total = total + both_ways(f, c, has_c)
    return total
