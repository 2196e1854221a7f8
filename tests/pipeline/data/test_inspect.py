"""Inspect: lines and a contact sheet that show what training sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pipeline.data.inspect import main
from pipeline.errors import InputError

MakeSet = Callable[..., Any]


def test_it_prints_samples_and_draws_them(
    make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = make_set([3, 2], num_frames=8)
    sheet = tmp_path / "sheet.png"
    options = ["num_samples=5", "seconds=0.01", "data.num_frames=2", "data.shuffle=false", "data.jitter=false"]
    assert main([str(written.folder), f"sheet={sheet}", "image_size_px=32", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{written.folder}: 5 samples an epoch"
    assert lines[1:6] == [f"{c.key}  subtitle: 'said {c.number}'  caption: 'seen {c.number}'" for c in written.clips]
    assert "clips/s" in lines[-1]
    pixels = np.asarray(PIL.Image.open(sheet)).astype(int)
    assert pixels.shape == (5 * 32, 3 * 32, 3)
    for row in range(5):
        shown = [pixels[row * 32 + 16, column * 32 + 16].tolist() for column in range(3)]
        assert shown == [pytest.approx([40 + 8 * row, 20 + 5 * frame, 128], abs=4) for frame in (0, 7, 4)]


def test_a_bad_sample_is_shown_as_bad(make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = make_set([3, 2])
    written.tar(1).unlink()
    main([str(written.folder), f"sheet={tmp_path / 'sheet.png'}", "image_size_px=32", "seconds=0"])
    assert capsys.readouterr().out.count("BAD: shard_missing") == 2


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first argument must be a shard set"):
        main(["num_samples=3"])
    with pytest.raises(InputError, match=r"has no manifest\.parquet"):
        main([str(tmp_path)])
