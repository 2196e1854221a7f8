"""metrics.jsonl has one line a step, over any number of resumes and crashes."""

import errno
import json
import os
from contextlib import closing

from pipeline.log import MetricsFile, read_metrics


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with closing(MetricsFile(path, resume_step=0)) as before:
        for step in (1, 2, 3, 4):
            before.write(step, {"train/loss": step / 3})
        with closing(MetricsFile(path, resume_step=2)) as after:
            after.write(3, {"train/loss": 7.0})
        before.write(5, {"train/loss": -1.0})  # a predecessor that does not know yet: nobody sees this line
    assert [(row["step"], row["train/loss"]) for row in read_metrics(path)] == [(1, 1 / 3), (2, 2 / 3), (3, 7.0)]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2}\n{"step": 2, "a"')
    with closing(MetricsFile(path, resume_step=9)) as metrics:
        metrics.write(2, {"a": 3})
    assert read_metrics(path) == [{"step": 1, "a": 2}, {"step": 2, "a": 3}]


def test_lines_that_do_not_fit_are_written_when_there_is_room(tmp_path, monkeypatch):
    metrics = MetricsFile(tmp_path / "m", resume_step=0)
    raw, room = metrics._stream, [60]

    class NearlyFull:
        def write(self, content: bytes) -> int:
            taken = min(len(content), room[0])
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room[0] -= taken
            return raw.write(content[:taken])

        close = raw.close

    monkeypatch.setattr(metrics, "_stream", NearlyFull())
    for step in range(1, 8):
        room[0] = 1000 if step == 6 else room[0] if step < 6 else 3
        metrics.write(step, {"train/loss": step / 3})
        seen = read_metrics(tmp_path / "m")
        assert seen[-1]["step"] == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 6, 7: 6}[step]
    room[0] = 1000
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path / "m")] == list(range(1, 8))


def test_what_is_no_number_stays_valid_json(tmp_path):
    with closing(MetricsFile(tmp_path / "m", resume_step=0)) as metrics:
        metrics.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert json.loads((tmp_path / "m").read_text()) == {"step": 1, "a": "nan", "b": "inf", "c": 1.5}
