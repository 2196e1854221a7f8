"""What is wrong is refused on the login node, in one line, with exit code 2, before anything is queued."""

import pytest
from drill import Bench


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "nowhere"], "no partition 'nowhere' on this cluster; it has batch, frail, urgent"),
        (["--nodes", "9"], "partition batch has 8 nodes, but --nodes is 9"),
        (["--time", "1-00:00:00"], "lets a job run for 60 minutes"),
        (["--time", "2"], "a job of 120 s is told to save 20 s before its end"),
        (["--after", "987654321"], "SLURM knows no such job"),
        (["optim.lrr=1"], "optim.lrr: unknown key"),
        (["data.sources=[{shards: /nowhere}]"], "/nowhere holds no manifest.parquet"),
        (["--constraint", "unheard_of"], "sbatch refused the job 'refused'"),
    ],
)
def test_bad_input_is_refused_at_the_door(bench: Bench, shards, words: list[str], message: str) -> None:
    refuse(bench, message, "--name", "refused", *words)


def test_full_run_folder_is_refused(bench: Bench, reference) -> None:
    refuse(bench, "holds a finished run", "--name", "undisturbed", "--nodes", "2")
    unfinished = bench.run_folder("unfinished") / "checkpoints" / "step_00000012"
    unfinished.mkdir(parents=True)
    (unfinished / "COMPLETE.json").write_text("{}")
    refuse(bench, "checkpoints up to step_00000012; pass --resume", "--name", "unfinished")


def refuse(bench: Bench, message: str, *words: str) -> None:
    before = bench.cluster.squeue().keys()  # SLURM forgets old ones meanwhile
    done = bench.launch("slurm_pretrain.py", "--config", bench.file("pretrain.yaml"), *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, "one line"
    assert bench.cluster.squeue().keys() <= before, "nothing was queued"
