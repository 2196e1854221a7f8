"""What a user sees of an error: one line and an exit code, or a traceback where the mistake is ours."""

import errno
import os

import pytest

from pipeline.errors import InputError, RunError, run_command


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/x.tar")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no such key"), 2, "error: no such key\n"),
        (RunError("rank 3 is gone"), 1, "error: rank 3 is gone\n"),
        (full_disk(), 1, "error: No space left on device (data/x.tar); mend that and run the same command again\n"),
    ],
)
def test_errors_that_a_user_is_meant_to_read(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == code
    assert capsys.readouterr().err == line


def test_our_own_mistakes_keep_their_traceback() -> None:
    def main(argv: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "forgotten")

    with pytest.raises(FileNotFoundError):
        run_command(main)
