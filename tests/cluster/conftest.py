"""A SLURM for every worker of pytest-xdist, one small corpus for all; a skipped test is a failure here.

The tests mostly wait (for a node to be taken for dead, for a requeue), so two workers side by side use the machine
better than one. What is made once for all workers lies in a shared folder, under a lock.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from drill import Bench, make_corpus
from slurm import Cluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the cluster, and more time than a test usually gets."""
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Turn a skip into a failure: a cluster test that did not run has shown nothing."""
    report = (yield).get_result()
    if report.skipped and HERE in Path(item.fspath).parents:
        report.outcome = "failed"
        report.longrepr = f"{item.name} was skipped: {report.longrepr}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run have in common."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "shared"
    folder.mkdir(exist_ok=True)
    # Ranks start by the dozen; without kept byte code each of them compiles torch and DeepSpeed anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    return folder


def once(shared: Path, name: str, make: Callable[[], object]) -> None:
    """Let the first worker make something, and the others wait for it."""
    with open(shared / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shared / f".{name}.done"
        if not done.exists():
            make()
            done.touch()


@pytest.fixture(scope="session")
def cluster(shared: Path) -> Iterator[Cluster]:
    """Eight nodes; the packages are installed when they are missing."""
    once(shared, "install", lambda: subprocess.run(["bash", str(HERE / "install.sh")], check=True))
    # A short name: munge's socket lies below it, and such names have a length limit.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder) / "cluster") as running:
        yield running


@pytest.fixture(scope="session")
def corpus(shared: Path) -> Path:
    """A small sample corpus, raw videos and texts, and the configs of all drills beside it."""
    once(shared, "corpus", lambda: make_corpus(shared))
    return shared


@pytest.fixture
def bench(cluster: Cluster, corpus: Path) -> Iterator[Bench]:
    """Launchers that talk to the cluster; whatever a test leaves queued is cancelled."""
    yield Bench(cluster, corpus)
    cluster.cancel_all()


@pytest.fixture(scope="session")
def shards(cluster: Cluster, corpus: Path) -> Path:
    """The training and held-out shards, written by one process: what arrays must equal byte for byte."""
    bench = Bench(cluster, corpus)

    def make() -> None:
        for name in ("train", "heldout"):
            bench.run_module("preprocess.run", bench.file(f"shards_{name}.yaml"))

    once(corpus, "shards", make)
    return corpus / "shards"


@pytest.fixture(scope="session")
def reference(cluster: Cluster, shards: Path, corpus: Path) -> dict[int, float]:
    """{step: loss} of an undisturbed run on two nodes."""
    bench = Bench(cluster, corpus)

    def make() -> None:
        words = ["--config", bench.file("pretrain.yaml"), "--nodes", "2", "--name", "undisturbed"]
        done = bench.launch("slurm_pretrain.py", *words, "--wait")
        assert done.returncode == 0, done.stdout + done.stderr

    once(corpus, "reference", make)
    return bench.losses("undisturbed")


def pytest_configure() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
