"""How ranks find each other."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from launch.rendezvous import Place, expand_nodes, interface_address, meet, own_address
from pipeline.errors import RunError

FIRST = Place(rank=0, world_size=4, local_rank=0, local_world_size=2, node="n1", nodes=("n1", "n2"), job="7", restart=0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("a[1-2]b,c[9-10]", ["a1b", "a2b", "c9", "c10"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert list(expand_nodes(text)) == names


def test_tasks_fill_nodes_in_order() -> None:
    assert [FIRST.node_of(rank) for rank in range(4)] == ["n1", "n1", "n2", "n2"]


def test_loopback_has_an_address() -> None:
    assert interface_address("lo") == "127.0.0.1"
    assert own_address(None)
    with pytest.raises(RunError, match=r"no address on interface 'none0'.*this node has"):
        interface_address("none0")


def test_ranks_meet_and_two_jobs_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")
    stores = {}

    def join(job: str, rank: int) -> None:
        place = replace(FIRST, job=job, rank=rank)
        stores[job, rank] = meet(place, folder=tmp_path, timeout_s=60, interface="lo")

    threads = [threading.Thread(target=join, args=(job, rank)) for job in ("7", "8") for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    assert len({stores["7", rank].port for rank in range(4)}) == 1
    assert stores["7", 0].port != stores["8", 0].port


def test_missing_ranks_and_their_nodes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")
    with pytest.raises(RunError, match=r"3 ranks did not come within 0.5 s: \[1, 2, 3\], on \['n1', 'n2'\]"):
        meet(FIRST, folder=tmp_path, timeout_s=0.5, interface="lo")


def test_no_first_rank(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"rank 3 on n1 found no .*rank 0 on n1 did not start"):
        meet(replace(FIRST, rank=3), folder=tmp_path, timeout_s=0.3, interface="lo")
