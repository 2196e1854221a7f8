"""What the preflight makes of the facts of all ranks."""

from dataclasses import replace

import pytest

from launch.preflight import PreflightConfig, RankFacts, judge, summary

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
