"""One SLURM and one small corpus for all cluster tests; a skipped test is a failure here."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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
def scratch() -> Iterator[Path]:
    """A folder with a short name: munge's socket lies below it, and such names have a length limit."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def cluster(scratch: Path) -> Iterator[Cluster]:
    """Eight nodes; the packages are installed when they are missing."""
    subprocess.run(["bash", str(HERE / "install.sh")], check=True)
    with Cluster(scratch / "cluster") as running:
        yield running


@pytest.fixture(scope="session")
def corpus(scratch: Path) -> Path:
    """A small sample corpus: raw videos and texts, no shards yet."""
    return make_corpus(scratch)


@pytest.fixture
def bench(cluster: Cluster, corpus: Path, scratch: Path) -> Iterator[Bench]:
    """Launchers that talk to the cluster; whatever a test leaves queued is cancelled."""
    yield Bench(cluster, scratch)
    cluster.cancel_all()


@pytest.fixture(scope="session")
def shards(cluster: Cluster, corpus: Path, scratch: Path) -> Path:
    """The training and held-out shards, written by one process: what the array must equal byte for byte."""
    bench = Bench(cluster, scratch)
    for name in ("train", "heldout"):
        bench.run_module("preprocess.run", bench.file(f"shards_{name}.yaml"))
    return scratch / "shards"


@pytest.fixture(scope="session")
def reference(cluster: Cluster, shards: Path, scratch: Path) -> dict[int, float]:
    """{step: loss} of an undisturbed run on two nodes."""
    bench = Bench(cluster, scratch)
    done = bench.launch("slurm_pretrain.py", "--config", bench.file("pretrain.yaml"), "--nodes", "2", "--wait",
                        "--name", "undisturbed")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return bench.losses("undisturbed")


def pytest_configure() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
