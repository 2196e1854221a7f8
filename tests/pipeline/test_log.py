"""metrics.jsonl has one line a step, over any number of resumes and crashes; a full disk silences nothing."""

import contextlib
import errno
import io
import json
import logging
import os
import resource
import subprocess
import sys
from contextlib import closing

import pytest

from pipeline import log as module
from pipeline.log import Console, LogFile, MetricsFile, file_logger, logger, read_metrics


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


def test_lines_that_do_not_fit_are_written_when_there_is_room(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="clip_vip")
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
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition("/m ")[2][:25] for line in said] == 2 * [
        "cannot be written (No spa",
        "is written again, with th",
    ], "once, not with every line"
    assert "since step 2" in said[1] and "since step 7" in said[3]


def test_what_is_no_number_stays_valid_json(tmp_path):
    with closing(MetricsFile(tmp_path / "m", resume_step=0)) as metrics:
        metrics.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert json.loads((tmp_path / "m").read_text()) == {"step": 1, "a": "nan", "b": "inf", "c": 1.5}


class Stale:
    """A handle of a file system that has come back under another one: no write through it will ever work."""

    def write(self, content: bytes) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_stale_handle_heals_unless_another_run_has_its_own_file_there(tmp_path, monkeypatch, caplog, is_ours):
    path = tmp_path / "m"
    metrics = MetricsFile(path, resume_step=0)
    metrics.write(1, {"a": 1})
    metrics._stream.close()
    metrics._stream = Stale()
    if not is_ours:
        MetricsFile(path, resume_step=9).close()  # it took over; the first does not know yet
    for step in (2, 3):
        metrics.write(step, {"a": 1})
    metrics.close()
    assert [row["step"] for row in read_metrics(path)] == ([1, 2, 3] if is_ours else [1])
    assert ("2 lines from step 2 on are not in" in caplog.text) != is_ours


ROWS = [b'{"step": %d, "train/loss": 2.5}' % step for step in range(1, 6)]
DAMAGE = {
    "NULs in place of a line": (bytes(31) + b"\n", 1),
    "a page of NULs, and a row in the same line": (bytes(4096), 1),
    "half a line": (ROWS[1][:17] + b"\n", 1),
    "half a line, and a row in the same line": (ROWS[1][:17], 1),
    "bytes that are no text": (b"\xff\xfe\x00\x80\n", 1),
    "another value than an object": (b'[1, 2]\n"step"\n', 2),
    "an object without a step": (b'{"loss": 1}\n{"step": "7"}\n{"step": true}\n', 3),
    "deep nesting": (b"[" * 100_000 + b"\n", 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("place", [0, 2, 5])
def test_damage_ends_nothing_and_is_kept_aside(tmp_path, caplog, kind, place):
    """What a power cut, a full disk or another program leaves in the middle of a file, at its start or its end."""
    damage, count = DAMAGE[kind]
    path = tmp_path / "metrics.jsonl"
    lines = [row + b"\n" for row in ROWS]
    path.write_bytes(b"".join([*lines[:place], damage, *lines[place:]]))
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    with closing(MetricsFile(path, resume_step=4)) as metrics:
        metrics.write(5, {"train/loss": 7.0})
    assert path.read_bytes().splitlines() == [*ROWS[:4], b'{"step": 5, "train/loss": 7.0}'], "the others byte for byte"
    assert (tmp_path / "metrics.bad").read_bytes() == damage.removesuffix(b"\n") + b"\n"
    assert f"has {count} damaged line" in caplog.text and "now in metrics.bad" in caplog.text
    caplog.clear()
    MetricsFile(path, resume_step=5).close()
    assert not caplog.text, "once is enough"


def test_an_intact_file_has_nothing_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(row + b"\n" for row in ROWS))
    MetricsFile(path, resume_step=9).close()
    assert path.read_bytes().splitlines() == ROWS and not (tmp_path / "metrics.bad").exists()


@contextlib.contextmanager
def little_room(num_bytes: int):
    """No file of this process may grow beyond that: writes fail as on a full disk, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def own_logger():
    """The run's loggers, as they were afterwards."""
    before = [(one, one.handlers[:], one.level, one.propagate) for one in (logger, file_logger)]
    for one, *_ in before:
        one.handlers[:], one.propagate = [], False
        one.setLevel(logging.INFO)
    yield logger
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


def test_a_log_on_a_full_disk_says_so_once_and_loses_no_line(tmp_path, own_logger, capsys):
    handler = LogFile(tmp_path / "rank_00000.log")
    own_logger.addHandler(handler)
    with little_room(100):
        for number in range(50):
            own_logger.info(f"line {number:04d}")
    assert (tmp_path / "rank_00000.log").stat().st_size == 100
    own_logger.info("there is room")
    lines = (tmp_path / "rank_00000.log").read_text().splitlines()
    assert lines == [*(f"line {number:04d}" for number in range(50)), "there is room"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "rank_00000.log cannot be written (File too large); its lines wait in memory" in said[0]
    handler.close()


def test_no_message_ends_a_run(tmp_path, capsys):
    """A path that is no text, and a mistake of ours."""
    with closing(LogFile(tmp_path / "log")) as handler:
        for record in ({"msg": os.fsdecode(b"video \xff.mp4")}, {"msg": "%d", "args": ("none",)}, {"msg": "after"}):
            handler.handle(logging.makeLogRecord(record))
    assert (tmp_path / "log").read_text().splitlines() == ["video \\udcff.mp4", "after"]
    assert "TypeError" in capsys.readouterr().err


def test_what_a_log_cannot_hold_in_memory_is_counted(tmp_path, own_logger, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 40)
    handler = LogFile(tmp_path / "log")
    own_logger.addHandler(handler)
    with little_room(0):
        for number in range(10):
            own_logger.info(f"line {number:04d}")
    own_logger.info("room")
    assert (tmp_path / "log").read_text().splitlines() == [
        *(f"line {number:04d}" for number in range(4)),
        "(7 more lines were dropped here: they had no room)",
    ]
    handler.close()


def test_a_console_that_fails_says_so_once_in_the_log_and_goes_on(tmp_path, own_logger, capsys):
    class Stream(io.StringIO):
        error: OSError | None = None

        def flush(self) -> None:
            if self.error:
                raise self.error

    stream, handler = Stream(), LogFile(tmp_path / "log")
    own_logger.handlers[:] = [handler, Console(stream)]
    file_logger.handlers[:] = [handler]
    for number in (errno.ENOSPC, errno.EPIPE):
        stream.error = OSError(number, os.strerror(number))
        for _ in range(5):
            own_logger.info("hidden")
    stream.error = None
    own_logger.info("shown")
    assert capsys.readouterr().err == "", "no traceback"
    assert (tmp_path / "log").read_text().count("standard output cannot be written (No space left on device)") == 1
    assert stream.getvalue().endswith("shown\n(10 lines before the last could not be shown here)\n")
    own_logger.info("fine")
    assert stream.getvalue().endswith("here)\nfine\n")
    handler.close()


def test_a_process_whose_output_is_full_ends_with_its_own_exit_code(tmp_path):
    """Python's own last flush would turn it into 120, with a traceback."""
    code = (
        "import resource; from pipeline.errors import run_command\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "run_command(lambda argv: print('x' * 100))"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open(tmp_path / "out", "w") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (done.returncode, done.stderr) == (1, "error: the output could not be written (File too large)\n")
