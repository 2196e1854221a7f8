"""Two configs are compared by value, key by key, whatever the code that wrote the older one knew."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Section
from pipeline.config_difference import differences, listed, with_defaults


class Optim(Section):
    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)


class Source(Section):
    shards: str
    weight: float = 1.0


class Root(Section):
    optim: Optim = Optim()
    sources: list[Source] = []
    cache: Optim | None = None
    extra: dict[str, Any] = {}


def test_options_that_came_since_are_at_their_defaults_at_any_depth() -> None:
    now = Root(sources=[Source(shards="a")]).model_dump(mode="json")
    for stored in ({"sources": [{"shards": "a"}]}, {"optim": {}, "sources": [{"shards": "a", "weight": 1}]}):
        assert differences(with_defaults(Root, stored), now) == []


def test_options_that_went_differ_and_hide_no_other() -> None:
    stored = {"optim": {"lr": 2.0, "momentum": 0.5}, "seed": 3}
    assert differences(with_defaults(Root, stored), Root().model_dump(mode="json")) == [
        "optim.lr (2.0 there, 1.0 now)",
        "optim.momentum (0.5 there, nothing now)",
        "seed (3 there, nothing now)",
    ]


def test_a_value_that_is_no_longer_allowed_differs_and_hides_no_other() -> None:
    stored = {"optim": {"lr": "high", "betas": [0.9, 0.98]}, "extra": {"a": 1}, "gone": {"b": 2}}
    assert differences(with_defaults(Root, stored), Root(extra={"a": 2}).model_dump(mode="json")) == [
        "extra.a (1 there, 2 now)",
        "gone.b (2 there, nothing now)",
        "optim.lr (high there, 1.0 now)",
    ]


def test_a_config_of_another_kind_is_compared_as_it_is() -> None:
    for stored in ({"sources": [{"shards": "a", "colour": 1}]}, {"sources": 3}, {}):
        before = with_defaults(Root, stored)
        found = differences(before, Root(sources=[Source(shards="a")]).model_dump(mode="json"))
        assert any(line.startswith("sources") for line in found)


def test_both_values_of_lists_of_whole_sections_and_of_long_texts() -> None:
    before = {"cache": None, "betas": [1, 2], "text": "/a" * 100 + "/old" + "/b" * 100, "optim": {"lr": 1}}
    now = {"cache": {"lr": 2.0}, "betas": [1, 3], "text": "/a" * 100 + "/new" + "/b" * 100}
    assert differences(before, now) == [
        "betas ([1, 2] there, [1, 3] now)",
        "cache (None there, {'lr': 2.0} now)",
        "optim.lr (1 there, nothing now)",
        "text (...{a}/old{b}... there, ...{a}/new{b}... now)".format(a="a" + "/a" * 14, b="/b" * 13 + "/"),
    ]


def test_lists_of_sections_are_compared_section_by_section() -> None:
    before = Root(sources=[Source(shards="a"), Source(shards="b")]).model_dump(mode="json")
    now = Root(sources=[Source(shards="a"), Source(shards="c")]).model_dump(mode="json")
    assert differences(before, now) == ["sources[1].shards (b there, c now)"]
    assert differences(before, now, ignored=("sources",)) == []
    (line,) = differences(before, Root(sources=[Source(shards="a")]).model_dump(mode="json"))
    assert line.startswith("sources (")


def test_only_and_ignored_hold_for_all_that_lies_below() -> None:
    before, now = {"a": {"b": 1, "c": {"d": 1}}, "ab": 1}, {"a": {"b": 2, "c": {"d": 2}}, "ab": 2}
    assert [one.split()[0] for one in differences(before, now, only=("a.c", "ab"))] == ["a.c.d", "ab"]
    assert [one.split()[0] for one in differences(before, now, ignored=("a",))] == ["ab"]
    assert [one.split()[0] for one in differences(before, {}, ignored=("a.b",))] == ["a.c.d", "ab"]
    assert listed([str(number) for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"


trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_nothing_differs_if_and_only_if_the_leaves_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
        if not isinstance(tree, dict):
            return {path: tree}
        return {key: value for name in tree for key, value in leaves(tree[name], (*path, name)).items()}

    assert (differences(one, other) == []) == (leaves(one) == leaves(other))
    assert len(differences(one, other)) == len(differences(other, one))
