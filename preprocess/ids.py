"""Ids as they come in tables, and what becomes of a row that repeats one."""

from decimal import Decimal
from typing import Any

KEEP_ALL_TEXTS = (
    'to train on all captions of a clip, list them as rows {"clip_id", "text"} in a file and name it as `texts` of the '
    "source (data.sources); python -m preprocess.benchmarks.plain writes such a set"
)
"""The way out where one text of a clip stays and the others go."""


def id_text(value: Any) -> Any:
    """An id as text: whole numbers of JSON and Parquet in decimal digits. Anything else that is no text stays as it is,
    for the failures table."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # A column of whole numbers with gaps is one of floats in many tools: 7.0 was 7. Over 2^53 digits are lost.
    whole_float = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    whole_decimal = isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value()
    return str(int(value)) if whole_float or whole_decimal else value
