"""open_clip's tokenizer as a small picklable value: workers receive two numbers and build the tables themselves.

tokenize = model.tokenizer(70)
ids_BL = tokenize(["a dog runs left", ""])      # int64 [2, 70]
ids_L = tokenize.whole("a long paragraph ...")  # int64 [L], beyond what the model takes at once: for windows
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.architecture import Architecture
from pipeline.model.library import import_open_clip


@dataclass(frozen=True)
class Tokenizer:
    """Texts to ids [n, context_length], padded with 0, BOS and EOS included, EOS kept on truncation."""

    context_length: int
    hf_name: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def for_architecture(cls, architecture: Architecture, context_length: int) -> "Tokenizer":
        """The tokenizer of `architecture`. InputError where it does not fit the text tower."""
        text = architecture.text_cfg
        if not 2 <= context_length <= text.context_length:
            raise InputError(
                f"context length {context_length} is outside 2..{text.context_length}, what the model takes"
            )
        tokenizer = cls(context_length, text.hf_tokenizer_name, tuple(sorted(text.tokenizer_kwargs.items())))
        if text.hf_tokenizer_name is None and _tables(None, ()).vocab_size > text.vocab_size:
            raise InputError(
                f"the tokenizer has {_tables(None, ()).vocab_size} tokens, but the model only {text.vocab_size}; "
                "give the model that many, or feed it ids of your own"
            )
        return tokenizer

    def __call__(self, texts: list[str]) -> Tensor:
        """int64 [n, context_length]."""
        ids: Tensor = _tables(self.hf_name, self.options)(texts, context_length=self.context_length)
        return ids

    def whole(self, text: str) -> Tensor:
        """int64 [L]: all of one text, BOS and EOS included, whatever its length. InputError for a foreign tokenizer."""
        if self.hf_name is not None:
            raise InputError(f"a text can be read in windows with CLIP's own tokenizer only, not with {self.hf_name}")
        length = self.context_length
        ids: Tensor = _tables(None, self.options)([text], context_length=length)[0]
        while ids[-1] != 0:  # no room is left behind EOS: the text may have been cut
            length *= 2
            ids = _tables(None, self.options)([text], context_length=length)[0]
        return ids[: int(ids.argmax()) + 1]


@lru_cache(maxsize=2)
def _tables(hf_name: str | None, options: tuple[tuple[str, Any], ...]) -> Any:
    import_open_clip()
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    return SimpleTokenizer(**dict(options)) if hf_name is None else HFTokenizer(hf_name, **dict(options))
