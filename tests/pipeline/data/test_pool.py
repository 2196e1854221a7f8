"""Data workers: in order, alone, and without a trace when something is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.data.pool import WorkerDied, empty_bytes, pinned, run_workers

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[3]


def square(number: int) -> dict[str, Any]:
    pixels = empty_bytes(3, 4)
    pixels[:] = number
    return {"pixels": pixels, "square": np.array([number * number]), "pid": os.getpid(), "empty": np.zeros((0, 2))}


def fail_at_three(number: int) -> int:
    if number == 3:
        raise KeyError("the third")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dispositions(_: int) -> dict[str, Any]:
    return {
        "ignored": [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGTERM, signal.SIGUSR1)],
        "pytest": "pytest" in sys.modules["__main__"].__dict__,
        "files": [name.resolve().name for name in Path("/proc/self/fd").iterdir()],
    }


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_items_come_in_order_from_every_worker(num_workers: int) -> None:
    items = list(run_workers(square, range(10), num_workers=num_workers, prefetch=2))
    assert [int(item["square"][0]) for item in items] == [number * number for number in range(10)]
    assert all((item["pixels"] == number).all() for number, item in enumerate(items))
    items[0]["pixels"][:] = 7  # what arrives may be written to
    assert len({item["pid"] for item in items}) == max(1, num_workers)


def test_more_workers_than_a_message_has_room_for() -> None:
    items = list(run_workers(square, range(70), num_workers=70, prefetch=1))
    assert len({item["pid"] for item in items}) == 70


def test_requests_are_taken_only_as_far_ahead_as_there_is_room() -> None:
    taken: list[int] = []
    items = run_workers(square, (taken.append(number) or number for number in range(100)), num_workers=2, prefetch=2)  # type: ignore[func-returns-value]
    next(items)
    assert len(taken) == 5
    items.close()


def test_an_error_in_a_worker_is_raised_with_its_traceback() -> None:
    items = run_workers(fail_at_three, range(9), num_workers=2, prefetch=1)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match=r"(?s)fail_at_three.*KeyError: 'the third'"):
        next(items)


def test_a_killed_worker_is_an_error_at_once() -> None:
    items = run_workers(die_at_three, range(9), num_workers=2, prefetch=1)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerDied):
        next(items)


def test_a_stopped_worker_is_named_and_goes_on_when_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    items = run_workers(square, range(12), num_workers=3, prefetch=1, slow_after_s=0.1)
    pids = [next(items)["pid"] for _ in range(3)]
    caplog.clear()  # the first items wait for imports
    os.kill(pids[2], signal.SIGSTOP)
    name = f"waits for data of worker 2 (process {pids[2]}, stopped by a signal; kill -CONT lets it go on) since "

    def wake() -> None:
        if eventually(lambda: caplog.text.count(name) >= 3):
            os.kill(pids[2], signal.SIGCONT)

    waker = threading.Thread(target=wake)
    waker.start()
    rest = [int(item["square"][0]) for item in items]
    waker.join()
    assert rest == [number * number for number in range(3, 12)], "nothing is lost and nothing comes twice"
    said = [record.getMessage() for record in caplog.records if "worker 2" in record.getMessage()]
    assert len(said) >= 4 and all(line.startswith(name) for line in said[:-1]), "at 0.1, 0.2 and 0.4 s"
    assert said[-1].startswith("worker 2 answers again, after ")


def never(_: int) -> None:
    time.sleep(600)


def test_a_worker_that_hangs_from_its_first_request_on_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As where its shards lie on a file system that is away; a worker that is killed meanwhile is an error at once."""
    items = run_workers(never, range(2), num_workers=1, prefetch=1, slow_after_s=0.05)

    def kill() -> None:
        named = eventually(lambda: "waits for data of worker 0 (process " in caplog.text)
        pid = int(caplog.text.rpartition("worker 0 (process ")[2].partition(",")[0])
        os.kill(pid, signal.SIGKILL if named else signal.SIGCONT)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerDied):
        next(items)
    killer.join()


def test_what_cannot_be_unpickled_in_a_fresh_process_is_an_error() -> None:
    code = (
        "from pipeline.data.pool import run_workers\n"
        "def f(x): return x\n"
        "list(run_workers(f, [1], num_workers=1, prefetch=1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "keep it in a module, not a script" in done.stderr


def test_workers_inherit_nothing_but_their_socket() -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with open(__file__):
            (facts,) = run_workers(dispositions, [0], num_workers=1, prefetch=1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert facts["ignored"] == [True, True]
    assert not facts["pytest"]
    assert Path(__file__).name not in facts["files"]


def test_pinning_keeps_the_order_and_passes_errors_on() -> None:
    def items() -> Any:
        yield from range(3)
        raise WorkerDied("x")

    doubled = pinned(items(), lambda item: item * 2)
    assert [next(doubled) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(WorkerDied):
        next(doubled)
    assert list(pinned(iter_of(3), str)) == ["0", "1", "2"]


def iter_of(count: int) -> Any:
    yield from range(count)


def test_a_killed_trainer_leaves_no_worker_and_no_file(tmp_path: Path) -> None:
    """SIGKILL while batches are on their way: every process ends, /dev/shm and the temporary folder are as before."""
    code = (
        "import itertools, sys, os\n"
        "sys.path.insert(0, os.environ['TESTS'])\n"
        "from pipeline.data.pool import run_workers\n"
        "import test_pool\n"
        "items = run_workers(test_pool.square, itertools.count(), num_workers=2, prefetch=2)\n"
        "print(next(items)['pid'], next(items)['pid'], flush=True)\n"
        "for item in items: pass\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "TESTS": str(Path(__file__).parent), "PYTHONPATH": str(ROOT)}
    before = set(Path("/dev/shm").iterdir())
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=environment)
    assert trainer.stdout is not None
    trainer.stdout.readline()
    family = psutil.Process(trainer.pid).children(recursive=True)
    assert len(family) == 3
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert not list(temporary.iterdir())
    # Other tests may use the folder at the same time: only names that tell these processes count.
    pids = [str(trainer.pid), *(str(process.pid) for process in family)]
    new = set(Path("/dev/shm").iterdir()) - before
    assert not [path for path in new if any(pid in path.name for pid in pids)]


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_workers_end_with_their_iterator() -> None:
    items = run_workers(square, range(100), num_workers=2, prefetch=1)
    pids = [next(items)["pid"] for _ in range(2)]
    items.close()
    assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
