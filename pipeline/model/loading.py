"""Strict loading: every missing, extra or misshaped tensor is named; nothing is skipped in silence.

missing = load_strictly(model, state, may_be_missing=("visual.added_proxies",), origin="weights.pt")
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError

POSITIONS = "visual.positional_embedding"
PATCHES = "visual.conv1.weight"
_MAX_NAMES = 5


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], *, may_be_missing: Iterable[str] = (), origin: str | None = None
) -> set[str]:
    """Copy `state` into `model`; returns which of `may_be_missing` it lacks. InputError names every other difference.

    The vision tower's positions are interpolated when its resolution differs from that of `state`.
    """
    own = model.state_dict()
    state = dict(state)
    same_patches = _shape(state, PATCHES) == _shape(own, PATCHES)
    if POSITIONS in state and POSITIONS in own and same_patches:
        state[POSITIONS] = interpolate_positions(state[POSITIONS], len(own[POSITIONS]))
    missing = own.keys() - state.keys()
    misshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    misshaped.sort(key=lambda name: name != PATCHES)  # the patch size says most: it comes first
    mistakes = [
        *_listed("misshaped", [f"{name} is {_shape(state, name)}, not {_shape(own, name)}" for name in misshaped]),
        *_listed("missing", sorted(missing - set(may_be_missing))),
        *_listed("unknown", sorted(state.keys() - own.keys())),
    ]
    if mistakes:
        raise InputError(f"{origin or 'these weights'} does not fit the model: {'; '.join(mistakes)}")
    model.load_state_dict(state, strict=False)
    return missing


def interpolate_positions(positions_PW: Tensor, num_positions: int) -> Tensor:
    """Position embeddings (the class token's first, then a square grid) at another resolution, bicubic as open_clip."""
    if len(positions_PW) == num_positions:
        return positions_PW
    old_side, new_side = round((len(positions_PW) - 1) ** 0.5), round((num_positions - 1) ** 0.5)
    if old_side**2 != len(positions_PW) - 1:
        return positions_PW  # no square grid: the strict load reports the shapes
    token_1W, grid_PW = positions_PW[:1], positions_PW[1:]
    grid_1WHW = grid_PW.T.reshape(1, -1, old_side, old_side)
    grid_1WHW = F.interpolate(
        grid_1WHW.float(), size=(new_side, new_side), mode="bicubic", antialias=True, align_corners=False
    )
    return torch.cat([token_1W, grid_1WHW[0].flatten(1).T.to(token_1W.dtype)])


def _shape(state: Mapping[str, Tensor], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None


def _listed(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return [f"{kind} {', '.join(names[:_MAX_NAMES])}{more}"]
