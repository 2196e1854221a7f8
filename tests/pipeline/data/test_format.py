"""The shard contract: keys hold no dot, stay distinct, and survive the tar convention."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.format import MAX_KEY_CHARS, manifest_hash, sample_key


def test_dotted_clip_ids_stay_apart() -> None:
    assert sample_key("QMi8x8o55Ns.1.mp4") != sample_key("QMi8x8o55Ns.2.mp4")
    assert sample_key("a.b") != sample_key("a+b")


@given(st.text(max_size=300), st.text(max_size=300))
def test_keys_are_safe_and_one_to_one(first: str, second: str) -> None:
    keys = [sample_key(clip_id) for clip_id in (first, second)]
    for key in keys:
        assert len(key) <= MAX_KEY_CHARS
        assert not set(key) & set("./\\\n\0 ") and key.isascii()
    if first.removesuffix(".mp4") != second.removesuffix(".mp4"):
        assert keys[0] != keys[1]


def test_manifest_hash_ignores_order_and_sees_every_field() -> None:
    rows = [("shards/0", "a", "b"), ("shards/1", "c", "d")]
    assert manifest_hash(rows) == manifest_hash(reversed(rows))
    assert manifest_hash(rows) != manifest_hash([("shards/0", "a", "x"), rows[1]])
