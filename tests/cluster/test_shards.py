"""Shard sets written by an array of jobs: faults strike its tasks, and the bytes are those of one quiet process."""

import sys
from pathlib import Path

from drill import Bench, digests, draw
from slurm import wait_until

from launch.run_folder import JobFolder


def num_published(folder: Path) -> int:
    return len(list(folder.glob("shards/*.parquet")))


def test_killed_and_requeued_tasks_write_the_same_bytes(bench: Bench, shards) -> None:
    output = bench.folder / "struck"
    words = ["--config", bench.file("shards_train.yaml"), "--nodes", "2", "--shards-per-task", "4", "--name", "struck"]
    array, merge = bench.queue("slurm_shards.py", *words, f"output={output}")
    tasks = [f"{array}_0", f"{array}_1"]
    wait_until(lambda: num_published(output) >= draw("struck", 1, 3), 300, "shards appear", interval_s=0.01)
    bench.cluster.kill_rank(tasks[0])
    bench.cluster.run("scontrol", "requeue", tasks[1])
    bench.await_end(merge, "struck")
    starts = {task: [row for row in bench.events("struck", task) if row["event"] == "started"] for task in tasks}
    assert {task: len(rows) for task, rows in starts.items()} == dict.fromkeys(tasks, 2), "a fault did not land"
    assert digests(output) == digests(shards / "train")


def test_the_same_command_submits_what_is_missing(bench: Bench, shards) -> None:
    output = bench.folder / "made_up"
    words = ["--config", bench.file("shards_heldout.yaml"), "--shards-per-task", "1", "--name", "made_up"]
    array, merge = bench.queue("slurm_shards.py", *words, f"output={output}", "--throttle", "1")
    bench.cluster.run("scancel", f"{array}_1")
    wait_until(lambda: bench.cluster.state(merge) == "FAILED", 300, "the merge says that shards are missing")
    assert [row["action"] for row in bench.endings("made_up", merge)] == ["stop"]
    assert "run the same command again that writes them" in bench.launch_status("made_up")
    again = bench.launch("slurm_shards.py", *words, f"output={output}", "--wait")
    assert (again.returncode, again.stderr) == (0, ""), again.stdout + again.stderr
    assert "1 of 2 shards are missing: 1 tasks" in again.stdout
    assert digests(output) == digests(shards / "heldout")
    tasks = list(JobFolder(bench.run_folder("made_up")).path.glob("*_0_log.out"))
    assert len(tasks) >= 3, "a log for every task"


def test_a_node_without_its_videos_is_left_out(bench: Bench, shards) -> None:
    """On n1 the mount point is empty: its tasks come back on other nodes, and not one clip is lost."""
    nodes, output = bench.folder / "nodes", bench.folder / "unmounted"
    for number in range(1, bench.cluster.num_nodes + 1):
        (nodes / f"n{number}").mkdir(parents=True)
        if number > 1:
            (nodes / f"n{number}" / "videos").symlink_to(bench.folder / "sample" / "videos")
    (nodes / "n1" / "videos").mkdir()
    # A task sees what its node has mounted: its working directory.
    (nodes / "python").write_text(f'cd {nodes}/$SLURMD_NODENAME && exec {sys.executable} "$@"\n')
    words = ["--config", bench.file("shards_train.yaml"), "--nodes", "2", "--shards-per-task", "4"]
    words += ["--name", "unmounted", "--python", f"bash {nodes}/python", "videos.templates=['videos/{video_id}.{ext}']"]
    array, merge = bench.queue("slurm_shards.py", *words, f"output={output}")
    bench.await_end(merge, "unmounted")
    ended = [row for task in (0, 1) for row in bench.endings("unmounted", f"{array}_{task}")]
    requeued = [row for row in ended if row["action"] == "requeue"]
    assert requeued and {row["excluded"] for row in requeued} == {"n1"}, ended
    assert all("by a fault of its machine" in row["why"] and "videos" in row["why"] for row in requeued)
    assert [row["action"] for row in ended if row not in requeued] == ["done", "done"]
    assert digests(output) == digests(shards / "train")
    assert "left out    n1" in bench.launch_status("unmounted")
