"""Arrays over missing shards."""

import json
from pathlib import Path

import pytest
import yaml

from launch.cluster import Resources
from launch.options import make_parser, parse_options
from launch.shards import ShardPlan, add_shard_options, plan_shards, share, split, start_shards
from launch.slurm_shards import main
from pipeline.errors import InputError
from tests.launch.conftest import BATCH, cluster


@pytest.fixture(autouse=True)
def _return_to_the_old_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


@pytest.fixture
def shards_file(tmp_path: Path) -> str:
    """A set of 20 shards, as far as the metadata go."""
    span = ["00:00:00.000", "00:00:02.000"]
    videos = [
        {"video_id": f"video{n}", "url": "", "clip": [{"clip_id": f"video{n}.0.mp4", "span": span}]} for n in range(40)
    ]
    (tmp_path / "hdvila_part0.jsonl").write_text("".join(json.dumps(video) + "\n" for video in videos))
    path = tmp_path / "shards.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "output": str(tmp_path / "set"),
                "metadata": {"layout": "hdvila", "files": [str(tmp_path / "hdvila_part0.jsonl")]},
                "videos": {"templates": [str(tmp_path / "{video_id}.{ext}")]},
                "shards": {"clips_per_shard": 2},
            }
        )
    )
    return str(path)


@pytest.fixture
def plan(site_file: str, shards_file: str, commands):
    commands(scontrol=cluster(BATCH, max_array_size=3))

    def make(*words: str) -> ShardPlan:
        parser = make_parser("slurm_shards.py", "about", shards_file)
        add_shard_options(parser)
        parser.set_defaults(gpus_per_node=0)
        return plan_shards(parse_options(parser, ["--site", site_file, *words]))

    return make


def test_arrays_stay_below_max_array_size(plan) -> None:
    made = plan("--shards-per-task", "3", "--nodes", "2")
    assert [len(job.array) for job in made.arrays] == [2, 2, 3]  # 20 shards in 7 tasks, at most 3 tasks an array
    assert made.lanes == 2, "the third array waits for the first"
    assert [job.throttle for job in made.arrays] == [1, 1, 1], "together two tasks at a time"
    words = [argv[1:] for job in made.arrays for argv in job.array]
    assert words == [(f"tasks.index={index}", "tasks.count=7") for index in range(7)]


def test_only_what_is_missing_is_submitted(plan, tmp_path: Path) -> None:
    plan()
    (tmp_path / "set" / "shards").mkdir(exist_ok=True)
    for number in range(20):
        if number not in (5, 12):
            (tmp_path / "set" / "shards" / f"{number:06d}.parquet").touch()
    made = plan("--shards-per-task", "3")
    assert [argv[1] for job in made.arrays for argv in job.array] == ["tasks.index=5"]  # 5 and 12 are 5 modulo 7
    assert "2 of 20 shards are missing: 1 tasks" in made.facts[-1]


def test_a_complete_set_is_only_merged(plan, tmp_path: Path) -> None:
    plan()
    (tmp_path / "set" / "shards").mkdir(exist_ok=True)
    for number in range(20):
        (tmp_path / "set" / "shards" / f"{number:06d}.parquet").touch()
    assert plan().arrays == ()


def test_split_is_even() -> None:
    tasks = [(str(n),) for n in range(10)]
    parts = split(tasks, 4)
    assert [len(part) for part in parts] == [3, 3, 4]
    assert [task for part in parts for task in part] == tasks
    assert split([], 4) == []


@pytest.mark.parametrize(("throttle", "num_arrays"), [(8, 3), (2, 5), (1, 1), (7, 7), (3, 0)])
def test_arrays_side_by_side_share_the_throttle(throttle: int, num_arrays: int) -> None:
    parts = share(throttle, num_arrays)
    assert sum(parts) == throttle
    assert min(parts) >= 1


def test_dry_run_shows_every_script(plan, site_file: str, shards_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("slurm_shards.py", "about", shards_file)
    add_shard_options(parser)
    words = ["--site", site_file, "--dry-run", "--nodes", "2", "--shards-per-task", "3"]
    options = parse_options(parser, words)
    assert start_shards(plan_shards(options), options) == 0
    shown = capsys.readouterr().out
    assert shown.count("#SBATCH --array=") == 3
    assert "#SBATCH --array=0-2%1" in shown
    assert "shards_set_merge" in shown


def test_dry_run_leaves_nothing_behind(
    commands, site_file: str, shards_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    words = ["--site", site_file, "--config", shards_file, "--dry-run"]
    (tmp_path / "video0.mp4").touch()
    assert main(words) == 0
    assert "20 of 20 shards are missing" in capsys.readouterr().out
    (tmp_path / "hdvila_part0.jsonl").unlink()
    assert main(words) == 1
    assert "missing  metadata.files: there is no file" in capsys.readouterr().out
    assert not (tmp_path / "set").exists()
    with pytest.raises(InputError, match="there is no file"):
        main(words[:-1])


def test_gpus_and_cpus_of_a_task(shards_file: str, commands) -> None:
    """The default site has 8 GPUs a node, of which shards take none unless they are asked for."""
    commands(scontrol=cluster(BATCH))
    parser = make_parser("slurm_shards.py", "about", shards_file)
    add_shard_options(parser)
    parser.set_defaults(gpus_per_node=0)
    for words, expected in (
        ([], Resources(cpus_per_task=8)),
        (["--cpus-per-gpu", "6"], Resources(cpus_per_task=6)),
        (["--cpus-per-gpu", "6", "--gpus-per-node", "2"], Resources(gpus_per_node=2, cpus_per_task=12)),
    ):
        made = plan_shards(parse_options(parser, ["--time", "60", *words]))
        assert made.arrays[0].resources == expected


def test_a_captioner_without_gpus_is_told(shards_file: str, commands) -> None:
    commands(scontrol=cluster(BATCH))
    parser = make_parser("slurm_shards.py", "about", shards_file)
    add_shard_options(parser)
    parser.set_defaults(gpus_per_node=0)
    captioner = "captioner.kind=open_clip"
    for words, is_told in (([], False), ([captioner], True), ([captioner, "--gpus-per-node", "2"], False)):
        made = plan_shards(parse_options(parser, ["--time", "60", *words]))
        assert any("captions will be written on CPUs" in fact for fact in made.facts) == is_told


def test_nothing_stays_queued_when_one_array_is_refused(
    site_file: str, shards_file: str, commands, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    refusal = "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1"
    commands(
        scontrol=cluster(BATCH, max_array_size=3),
        srun="exit 1",
        sbatch=f'echo x >> {count}; n=$(wc -l < {count}); [ "$n" -lt 3 ] || {{ {refusal}; }}; '
        'echo "Submitted batch job $((100 + n))"',
        scancel=f'echo "$@" > {tmp_path}/cancelled',
    )
    with pytest.raises(InputError, match=r"QOSMaxSubmit.*nothing stays queued.*larger --shards-per-task"):
        main(["--site", site_file, "--config", shards_file, "--shards-per-task", "3", "--nodes", "2"])
    assert (tmp_path / "cancelled").read_text() == "101 102\n"
