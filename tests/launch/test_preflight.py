"""What the preflight makes of the facts of all ranks."""

from dataclasses import replace

import pytest
import torch

from launch import preflight
from launch.preflight import PreflightConfig, RankFacts, best_time, judge, own_device, summary
from launch.rendezvous import Place, SickNodes

PLACE = Place(3, 4, 1, 2, "n2", ("n1", "n2"), "7", 0)

CONFIG = PreflightConfig(min_free_gb=10)


def ranks(num_nodes: int = 4, per_node: int = 2) -> list[RankFacts]:
    return [
        RankFacts(
            rank=rank,
            node=f"n{rank // per_node}",
            product_s=0.010,
            all_reduce_s=0.002,
            clock_s=1000.0,
            free_gb={"/runs": 500.0, "/tmp": 50.0},
            versions={"torch": "2.8", "deepspeed": "0.19"},
        )
        for rank in range(num_nodes * per_node)
    ]


def test_healthy_nodes_pass() -> None:
    report = judge(ranks(), CONFIG)
    assert (report.slow_nodes, report.findings, report.fatal) == ([], [], [])
    assert summary(report.rows).startswith("8 ranks on 4 nodes")


def test_one_slow_rank_names_its_node() -> None:
    rows = ranks()
    rows[5] = replace(rows[5], product_s=0.031)
    report = judge(rows, CONFIG)
    assert report.slow_nodes == ["n2"]
    assert "n2 is slow: 31.0 ms for a product that takes 10.0 ms" in report.findings


def test_the_slow_one_of_two_nodes_is_named() -> None:
    rows = ranks(num_nodes=2)
    rows[2] = replace(rows[2], product_s=0.031)
    assert judge(rows, CONFIG).slow_nodes == ["n1"]


def test_a_little_slower_is_fine() -> None:
    rows = ranks()
    rows[5] = replace(rows[5], product_s=0.029)
    assert judge(rows, CONFIG).slow_nodes == []


def test_clock_skew_is_found() -> None:
    rows = [replace(row, clock_s=row.clock_s - 60) if row.node == "n3" else row for row in ranks()]
    assert judge(rows, CONFIG).findings == ["the clock of n3 is -60.0 s off that of n0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"free_gb": {"/runs": 500.0, "/tmp": 3.0}}, "n1 has 3.0 GB free in /tmp, 10 are wanted"),
        ({"versions": {"torch": "2.7", "deepspeed": "0.19"}}, "torch is 2.8 on n0, but 2.7 on n1"),
    ],
)
def test_what_keeps_a_run_from_starting(change: dict[str, object], message: str) -> None:
    rows = [replace(row, **change) if row.node == "n1" else row for row in ranks()]
    report = judge(rows, CONFIG)
    assert (report.fatal, sorted(set(report.failed_nodes))) == ([message], ["n1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_node_without_its_gpus_is_sick() -> None:
    assert own_device(PLACE, has_gpus=False).type == "cpu"
    with pytest.raises(SickNodes, match="n2 has no GPU that works, though the job asked for GPUs") as sick:
        own_device(PLACE, has_gpus=True)
    assert sick.value.nodes == ["n2"]


def test_a_gpu_that_fails_at_its_first_use_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", fail)
    with pytest.raises(SickNodes, match="n2 failed at the first use of a GPU: CUDA error: uncorrectable ECC") as sick:
        own_device(PLACE, has_gpus=True)
    assert sick.value.nodes == ["n2"]


def test_warming_up_takes_its_time_and_collectives_run_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = [0.0], []

    def action() -> None:
        runs.append(now[0])
        now[0] += 0.2 if now[0] < 0.5 else 0.1

    monkeypatch.setattr(preflight.time, "perf_counter", lambda: now[0])
    assert best_time(action, torch.device("cpu"), warm_up_s=0.5) == pytest.approx(0.1)
    assert len(runs) == 3 + 5
    runs.clear()
    best_time(action, torch.device("cpu"))
    assert len(runs) == 1 + 5
