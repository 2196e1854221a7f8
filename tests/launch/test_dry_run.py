"""`--dry-run` of every launcher: everything that is missing in one list, the verdict first, the script last."""

from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from launch import disk, slurm_chain, slurm_evaluate, slurm_finetune, slurm_pretrain, slurm_shards
from launch.disk import compare_disk
from pipeline.errors import InputError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _return_to_the_old_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


@pytest.fixture
def free_gb(monkeypatch: pytest.MonkeyPatch):
    """free_gb(72): the disk has so much room."""

    def put(size: float) -> None:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: Usage(0, 0, int(size * 1e9)))

    put(10_000)
    return put


@pytest.fixture
def absent(train_file: str, tmp_path: Path) -> str:
    """A training whose shards, weights, held-out set and pairs are not there."""
    config = yaml.safe_load(Path(train_file).read_text())
    config["data"]["sources"] = [{"shards": str(tmp_path / "absent" / "a")}, {"shards": str(tmp_path / "absent" / "b")}]
    held = {"name": "held", "shards": str(tmp_path / "absent" / "h"), "queries": str(tmp_path / "absent" / "q.jsonl")}
    config["evaluation"] = {"sets": [held | {"pairs": {"motion": str(tmp_path / "absent" / "p.jsonl")}}]}
    config["evaluation"]["sets"][0] |= {"num_text_tokens": 16}
    config["init_from"] = str(tmp_path / "absent" / "weights.pt")
    path = tmp_path / "absent.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def missing(shown: str) -> list[str]:
    return [line.removeprefix("missing  ") for line in shown.splitlines() if line.startswith("missing  ")]


@pytest.mark.parametrize("launcher", [slurm_pretrain, slurm_finetune])
def test_a_training_lists_all_that_is_missing(
    commands, site_file: str, absent: str, tmp_path: Path, free_gb, capsys: pytest.CaptureFixture[str], launcher
) -> None:
    commands()
    words = ["--site", site_file, "--config", absent, "--dry-run"]
    assert launcher.main(words) == 1
    shown = capsys.readouterr().out
    where = tmp_path / "absent"
    for path in (where / "a", where / "b", where / "h", where / "q.jsonl", where / "p.jsonl", where / "weights.pt"):
        assert sum(str(path) in line for line in missing(shown)) == 1, path
    assert shown.startswith("# verdict: not ready, 6 things missing; nothing was submitted (--dry-run)\n")
    assert launcher.main([*words, "--allow-missing"]) == 0
    assert missing(capsys.readouterr().out) == missing(shown)
    with pytest.raises(InputError) as refused:
        launcher.main(words[:-1])
    assert all(line in str(refused.value) for line in missing(shown)), "a submission names all of it as well"


def test_a_disk_that_is_too_small_is_missing(
    commands, site_file: str, train_file: str, tmp_path: Path, free_gb, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    words = ["--site", site_file, "--config", train_file, "--dry-run"]
    free_gb(0.01)
    assert slurm_pretrain.main(words) == 1
    (line,) = missing(capsys.readouterr().out)
    assert line.startswith("disk: 3 checkpoints of ") and "has 10.0 MB free; make room" in line
    free_gb(72)
    assert slurm_pretrain.main(words) == 0
    # Shards that are to be written first: an epoch of HD-VILA-100M, 2 frames of 32 px of each clip.
    absent = [f"data.sources=[{{shards: {tmp_path}/hdvila}}]", "steps=null", "epochs=1"]
    assert slurm_pretrain.main([*words, *absent]) == 1
    lines = missing(capsys.readouterr().out)
    assert len(lines) == 2 and lines[1].startswith(f"disk: the shards of {tmp_path}/hdvila, if an epoch has")
    assert "take about 134.6 GB" in lines[1] and "has 72.0 GB free" in lines[1]


def test_the_plan_of_the_whole_corpus_does_not_fit_into_72_gb(tmp_path: Path, free_gb) -> None:
    free_gb(72)
    facts, lacking = compare_disk("the shards", tmp_path / "set" / "deep", 39.6e12)
    assert (facts, lacking) == (
        [],
        [f"disk: the shards take about 39.6 TB, but {tmp_path} has 72.0 GB free; make room"],
    )
    free_gb(50_000)
    assert compare_disk("the shards", tmp_path, 39.6e12)[1] == []


@pytest.fixture
def shards_file(tmp_path: Path) -> str:
    """A set of which nothing is there but its metadata."""
    span = ["00:00:00.000", "00:01:40.000"]
    rows = [f'{{"video_id": "v{n}", "clip": [{{"clip_id": "v{n}.0.mp4", "span": {span}}}]}}\n' for n in range(40)]
    (tmp_path / "part0.jsonl").write_text("".join(rows).replace("'", '"'))
    config = {
        "output": str(tmp_path / "set"),
        "metadata": {"layout": "hdvila", "files": [str(tmp_path / "part0.jsonl")]},
        "videos": {"templates": [str(tmp_path / "videos" / "{video_id:.2}" / "{video_id}.{ext}")]},
        "texts": {"subtitles": [str(tmp_path / "s.jsonl")], "captions": [str(tmp_path / "c"), str(tmp_path / "d")]},
        "shards": {"clips_per_shard": 10},
    }
    path = tmp_path / "shards.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_shard_set_lists_all_that_is_missing(
    commands, site_file: str, shards_file: str, tmp_path: Path, free_gb, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    words = ["--site", site_file, "--config", shards_file, "--dry-run"]
    free_gb(0.1)
    assert slurm_shards.main(words) == 1
    shown = capsys.readouterr().out
    assert missing(shown) == [
        f"texts.subtitles: there is no {tmp_path}/s.jsonl; download it, or take it off the list",
        f"texts.captions: there is no {tmp_path}/c; download it, or take it off the list",
        f"texts.captions: there is no {tmp_path}/d; download it, or take it off the list",
        f"videos.templates: there is no folder {tmp_path}/videos on this machine; mount it, or change the path",
        # 40 clips of 100 s at 430 KB for 13.4 s
        f"disk: shards of 40 clips take about 128.4 MB, but {tmp_path} has 100.0 MB free; make room",
    ]
    assert "4 of 4 shards are missing" in shown
    (tmp_path / "part0.jsonl").unlink()
    assert slurm_shards.main([*words, f"metadata.files=[{tmp_path}/part0.jsonl, {tmp_path}/part1.jsonl]"]) == 1
    shown = capsys.readouterr().out
    assert [line.split(":")[0] for line in missing(shown)] == [
        *["metadata.files"] * 2, "texts.subtitles", *["texts.captions"] * 2, "videos.templates", "disk",
    ]  # fmt: skip
    assert not (tmp_path / "set").exists()


def test_a_submission_of_shards_without_its_texts_is_refused_and_unseen_videos_are_a_warning(
    commands, site_file: str, shards_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(sbatch="echo Submitted batch job 41", srun="exit 1")
    words = ["--site", site_file, "--config", shards_file]
    with pytest.raises(InputError, match=rf"{tmp_path}/s.jsonl.*{tmp_path}/c; .*{tmp_path}/d"):
        slurm_shards.main(words)
    assert slurm_shards.main([*words, "texts.subtitles=[]", "texts.captions=[]"]) == 0
    assert "warning: videos.templates: there is no folder" in capsys.readouterr().out


def test_an_evaluation_and_a_chain(
    commands, site_file: str, absent: str, shards_file: str, tmp_path: Path, free_gb, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    evaluate = tmp_path / "evaluate.yaml"
    held = {"shards": str(tmp_path / "absent" / "h"), "queries": str(tmp_path / "absent" / "q.jsonl")}
    evaluate.write_text(yaml.safe_dump({"sets": {"held": held | {"num_text_tokens": 16}}, "device": "cpu"}))
    words = ["--site", site_file, "--dry-run"]
    assert slurm_evaluate.main([*words, "--config", str(evaluate), str(tmp_path / "absent" / "run")]) == 1
    assert len(missing(capsys.readouterr().out)) == 3
    chain = ["--shards", shards_file, "--pretrain", absent, "--evaluate", str(evaluate)]
    assert slurm_chain.main([*words, *chain]) == 1
    shown = capsys.readouterr().out
    kinds = [line.split(":")[0] for line in missing(shown)]
    assert (kinds.count("shards"), kinds.count("pretrain"), kinds.count("evaluate")) == (4, 6, 2)
    assert shown.index("# verdict") < shown.index("missing  ") < shown.index("ok       ") < shown.index("##### shards")
    scripts = [shown.index(f"# sbatch script of {kind}") for kind in ("shards", "pretrain", "evaluate")]
    assert scripts == sorted(scripts) and shown.rindex("# resolved config") < scripts[0]
    assert slurm_chain.main([*words, *chain, "--allow-missing"]) == 0


def test_a_line_on_each_guard_and_the_script_last(
    commands, site_file: str, train_file: str, free_gb, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    words = ["--site", site_file, "--config", train_file, "--nodes", "2", "--dry-run"]
    assert slurm_pretrain.main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# verdict: ready; nothing was submitted")
    parts = [line for line in shown.splitlines() if line.startswith(("# ", "#!"))]
    assert parts[:4] == [
        "# verdict: ready; nothing was submitted (--dry-run)",
        "# guards",
        "# plan",
        "# resolved config",
    ]
    guards = shown.split("# guards\n")[1].split("# plan\n")[0]
    for name in (
        "time limit  60; SIGUSR2 30 s before it",
        "requeue     after",
        "exclusion   ",
        "preflight   all ranks",
    ):
        assert name in guards, name
    assert shown.split("# sbatch script\n")[1].startswith("#!/bin/bash")
    with pytest.raises(InputError, match="--allow-missing is for --dry-run"):
        slurm_pretrain.main([*words[:-1], "--allow-missing"])


def test_a_config_for_the_cpu_asks_for_no_gpus(
    commands, train_file: str, tmp_path: Path, free_gb, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default site has 8 GPUs a node."""
    commands()
    words = ["--config", train_file, "--dry-run"]
    assert slurm_pretrain.main(words) == 0
    shown = capsys.readouterr().out
    assert "--gpus-per-node" not in shown and "1 ranks (1 x 1)" in shown
    with pytest.raises(InputError, match=r"--gpus-per-node 4, but engine.device is cpu"):
        slurm_pretrain.main([*words, "--gpus-per-node", "4"])
    assert slurm_chain.main(["--pretrain", train_file, "--gpus-per-node", "4", "--dry-run"]) == 0
    assert "--gpus-per-node" not in capsys.readouterr().out, "other links of a chain may want them"
    assert slurm_pretrain.main([*words, "engine.device=auto"]) == 0
    assert "#SBATCH --gpus-per-node=8" in capsys.readouterr().out


def test_the_configs_of_the_sample_corpus_ask_for_no_gpus(commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands()
    words = ["--pretrain", "configs/tiny/pretrain.yaml", "--evaluate", "configs/tiny/evaluate.yaml"]
    slurm_chain.main(["--shards", "configs/preprocess/sample_train.yaml", *words, "--dry-run", "--allow-missing"])
    assert "--gpus-per-node" not in capsys.readouterr().out
