"""Tar headers: the same members at the same places as Python's `tarfile` finds, and damage that is named."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tar import TarDamage, TarMember, TarWalk, key_in_old_sidecars, split_name

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/", min_codepoint=32), min_size=1, max_size=90)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
MEMBERS = st.lists(st.tuples(PATHS, st.binary(max_size=1200), st.sampled_from("0125")), max_size=6)
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def walked(content: bytes) -> list[TarMember]:
    return list(TarWalk(lambda offset, size: content[offset : offset + size], len(content)))


def written(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def info_of(name: str, kind: str = "0") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind.encode()
    info.linkname = "elsewhere" * 20 if kind in "12" else ""
    return info


@pytest.mark.parametrize("form", FORMATS, ids=["ustar", "gnu", "pax"])
@given(members=MEMBERS)
def test_the_members_are_those_that_tarfile_finds(form: int, members: list[tuple[str, bytes, str]]) -> None:
    try:
        content = written([(info_of(name, kind), data if kind == "0" else b"") for name, data, kind in members], form)
    except ValueError:
        return  # a name that ustar cannot hold
    kinds = {"0": "file", "1": "link", "2": "link", "5": "folder"}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [
            (one.name.rstrip("/"), kinds[one.type.decode()], one.offset, one.offset_data, one.size) for one in tar
        ]
    found = [(one.name.rstrip("/"), one.kind, one.offset, one.data_offset, one.size) for one in walked(content)]
    assert found == expected


@given(members=MEMBERS, change=st.tuples(st.integers(0), st.integers(0, 255)), cut=st.integers(0))
def test_any_bytes_end_in_members_or_in_named_damage(
    members: list[tuple[str, bytes, str]], change: tuple[int, int], cut: int
) -> None:
    content = bytearray(written([(info_of(name, kind), data * (kind == "0")) for name, data, kind in members]))
    content[change[0] % len(content)] = change[1]
    content = content[: cut % (len(content) + 1) or None]
    try:
        found = walked(bytes(content))
    except TarDamage as damage:
        assert str(damage)
    else:
        assert all(0 <= one.offset < one.data_offset <= len(content) - one.size for one in found)


def with_header(member: bytes, **fields: tuple[int, bytes]) -> bytes:
    """A member whose header has other bytes at these places, and the checksum of them."""
    header = bytearray(member[:512])
    for place, value in fields.values():
        header[place : place + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + member[512:]


def test_sizes_in_base_256_and_in_pax_records() -> None:
    plain = written([(info_of("a.mp4"), b"x" * 700)])
    binary = with_header(plain, size=(124, b"\x80" + (700).to_bytes(11, "big")))
    assert [(one.name, one.size) for one in walked(binary)] == [("a.mp4", 700)]
    stated = info_of("a.mp4")
    stated.pax_headers = {"size": "700", "comment": "a\nb=c"}
    pax = written([(stated, b"x" * 700), (info_of("b.mp4"), b"y")], tarfile.PAX_FORMAT)
    place = pax.index(b"a.mp4")
    zeroed = pax[:place] + with_header(pax[place : place + 512], size=(124, b"00000000000\0")) + pax[place + 512 :]
    assert [(one.name, one.size) for one in walked(zeroed)] == [("a.mp4", 700), ("b.mp4", 1)]
    # Over 8 GB: what octal digits cannot say. Only headers are read.
    huge = 9 * 2**30
    header = with_header(plain, size=(124, b"\x80" + huge.to_bytes(11, "big")))[:512]
    behind = written([(info_of("b.mp4"), b"")])
    end = 512 + huge

    def read(offset: int, size: int) -> bytes:
        return header[offset : offset + size] if offset < end else behind[offset - end : offset - end + size]

    assert [(one.name, one.size) for one in TarWalk(read, end + len(behind))] == [("a.mp4", huge), ("b.mp4", 0)]


def test_sparse_members_have_a_kind_of_their_own() -> None:
    old = with_header(written([(info_of("a.mp4"), b"x" * 512)]), kind=(156, b"S"), magic=(257, b"ustar  \0"))
    assert [(one.kind, one.data_offset) for one in walked(old)] == [("sparse", 512)]
    longer = with_header(old[:512], extended=(482, b"\1")) + bytes(504) + b"\0" * 8 + old[512:]
    assert [(one.kind, one.data_offset) for one in walked(longer)] == [("sparse", 1024)]
    info = info_of("GNUSparseFile.0/a.mp4")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.mp4", "GNU.sparse.realsize": "99999"}
    pax = written([(info, b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512), (info_of("b.mp4"), b"")], tarfile.PAX_FORMAT)
    assert [(one.name, one.kind) for one in walked(pax)] == [("a.mp4", "sparse"), ("b.mp4", "file")]


def test_a_global_header_is_skipped_unless_it_changes_members() -> None:
    def with_global(**records: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=records) as tar:
            tar.addfile(info_of("a.mp4"))
        return buffer.getvalue()

    (member,) = walked(with_global(comment="of git archive"))
    assert member.name == "a.mp4" and member.offset > 0
    with pytest.raises(TarDamage, match="one path or size"):
        walked(with_global(path="b.mp4"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000000.mp4", ("000000", "mp4")),
        ("./000000.mp4", ("000000", "mp4")),
        ("train/000000.MP4", ("train/000000", "mp4")),
        ("/a.b//./c.seg.json", ("a.b/c", "seg.json")),
        ("../c.json", ("../c", "json")),
        ("caf\udce9.jpg", ("caf\\udce9", "jpg")),
        ("._000000.mp4", None),
        ("a/.DS_Store", None),
        ("README", None),
        ("a.b/README", None),
        ("a.", None),
        ("a/", None),
    ],
)
def test_keys_follow_the_tar_convention(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_the_keys_of_old_indexes_are_known() -> None:
    assert [key_in_old_sidecars(name) for name in ("./0.mp4", "train/0.mp4", "0.mp4")] == ["./0", "train/0", "0"]
