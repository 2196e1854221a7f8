"""Orders are permutations at every size, look random, and are found at any position alone."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_config
from pipeline.data.order import Blend, EpochOrder, keyed_generator, mix, permute
from pipeline.data.stream import DataConfig
from pipeline.errors import InputError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation_and_any_part_of_it_is_the_same(size: int, key: int) -> None:
    whole = permute(np.arange(size), size, key)
    assert sorted(whole) == list(range(size))
    some = np.arange(size // 3, size)
    assert permute(some, size, key).tolist() == whole[some].tolist()


@pytest.mark.parametrize("size", [6, 100, 1100])
def test_every_place_and_every_step_is_equally_likely(size: int) -> None:
    """Chi-square of where element 0 goes and of how far element 1 lands from it, over many keys."""
    num_keys = 2000
    drawn = np.array([permute(np.arange(2), size, mix(5, key)) for key in range(num_keys)])
    steps = (drawn[:, 1] - drawn[:, 0]) % size
    for values, cells in ((drawn[:, 0], size), (steps - 1, size - 1)):
        expected = num_keys / cells
        chi_square = ((np.bincount(values, minlength=cells) - expected) ** 2 / expected).sum()
        assert chi_square < cells + 5 * (2 * cells) ** 0.5


def test_the_order_is_fixed_for_ever() -> None:
    """A change of these numbers breaks every resume: checkpoints hold positions, not orders."""
    assert permute(np.arange(8), 8, 1).tolist() == [5, 6, 2, 4, 7, 0, 3, 1]
    assert permute(np.array([0, 50_000_000]), 100_000_000, 42).tolist() == [94_563_196, 61_092_330]


@given(SIZES, st.integers(0, 5), st.one_of(st.none(), st.integers(1, 10)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_each_row_once(sizes: list[int], epoch: int, window: int | None, shuffle: bool) -> None:
    window = window if shuffle else None
    order = EpochOrder(np.array(sizes), seed=3, epoch=epoch, shuffle=shuffle, window_shards=window)
    rows = order.rows(np.arange(sum(sizes)))
    assert sorted(rows) == list(range(sum(sizes)))
    assert order.rows(np.array([sum(sizes) - 1]))[0] == rows[-1]
    if not shuffle:
        assert rows.tolist() == list(range(sum(sizes)))


def test_a_window_needs_only_its_own_shards() -> None:
    sizes = np.array([4, 7, 5, 6, 3, 8, 2])
    shard_of_row = np.repeat(np.arange(7), sizes)
    order = EpochOrder(sizes, seed=1, epoch=0, window_shards=3)
    touched = shard_of_row[order.rows(np.arange(35))]
    for position in range(35):
        assert touched[position] in order.shards_ahead(position)[:3]
    assert len(order.shards_ahead(0)) == 6


@given(st.lists(st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.5, 7.0]), min_size=1, max_size=5), st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_blend_counts_what_it_assigns(weights: list[float], num_slots: int) -> None:
    blend = Blend(weights)
    sources, indices = blend.assign(np.arange(num_slots))
    for number in range(len(weights)):
        assert indices[sources == number].tolist() == list(range(int((sources == number).sum())))
    assert blend.counts(num_slots) == np.bincount(sources, minlength=len(weights)).tolist()
    shares = np.array(weights) / sum(weights) * num_slots
    assert np.abs(blend.counts(num_slots) - shares).max() <= len(weights)
    last = blend.num_slots(5)
    assert (blend.counts(last)[0], blend.counts(last + 1)[0]) == (5, 6)


ANY_WEIGHTS = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=5)


@given(ANY_WEIGHTS, st.integers(0, 10**10), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_blend_is_exact_for_any_weights_up_to_ten_billion_slots(weights: list[float], start: int, length: int) -> None:
    """Against fractions: each source takes its share of what the sources before it left over."""
    blend = Blend(weights)
    sources, indices = blend.assign(np.arange(start, start + length))

    def taken_before(slot: int) -> list[int]:
        counts, rest = [], slot
        for number, part in enumerate(blend.parts):
            counts.append(math.ceil(rest * Fraction(part, sum(blend.parts[number:]))))
            rest -= counts[-1]
        return counts

    for slot, source, index in zip(range(start, start + length), sources, indices, strict=True):
        before, after = taken_before(slot), taken_before(slot + 1)
        assert [late - early for early, late in zip(before, after, strict=True)] == [
            int(number == source) for number in range(len(weights))
        ]
        assert index == before[source]
    assert blend.counts(start) == taken_before(start)
    shares = [Fraction(str(weight)) for weight in weights]
    for count, share in zip(blend.counts(start), shares, strict=True):
        # A weight is rounded by less than one in a million, and their sum is at least 0.1.
        assert abs(count - start * share / sum(shares)) <= len(weights) + start * Fraction(1, 10**5)


def test_weights_of_seven_decimals_and_more_show_each_sample_once() -> None:
    """The three of a report: from slot 285 on, samples of the first source came twice or not at all."""
    blend = Blend([0.6180339887, 0.2718281828, 0.1101378285])
    sources, indices = blend.assign(np.arange(4000))
    for number in range(3):
        assert indices[sources == number].tolist() == list(range(int((sources == number).sum())))


def test_weights_of_few_decimals_have_the_parts_that_they_always_had() -> None:
    """Runs are saved with them: an order is a function of these integers."""
    assert Blend([1.0]).parts == (1,)
    assert Blend([0.7, 0.2, 0.1]).parts == (7, 2, 1)
    assert Blend([1.0, 0.333333]).parts == (1_000_000, 333_333)
    sources, _ = Blend([0.7, 0.2, 0.1]).assign(np.arange(10))
    assert sources.tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 0, 2]


def test_a_weight_that_rounds_to_nothing_is_a_mistake_of_the_config() -> None:
    for weights in ([1e-7], [1.0, 1e-9], [4e-7, 1.0]):
        with pytest.raises(ValueError, match="rounds to nothing"):
            Blend(weights)
        sources = [{"shards": "x", "weight": weight} for weight in weights]
        with pytest.raises(InputError, match="rounds to nothing"):
            load_config(DataConfig, [], [f"sources={json.dumps(sources)}"])


def test_draws_depend_on_every_word_of_their_key() -> None:
    drawn = {
        keyed_generator(*words).integers(2**60) for words in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (2, 1, 3)]
    }
    assert len(drawn) == 5
