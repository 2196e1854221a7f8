"""The command line that the launchers share."""

from pathlib import Path

import pytest

from launch.options import Options, make_parser, parse_options
from pipeline.errors import InputError


def parse(*words: str) -> Options:
    return parse_options(make_parser("x.py", "about", "configs/pretrain/b32.yaml"), words)


def test_defaults() -> None:
    options = parse("--site", "cpu")
    assert (options.cluster, options.nodes, options.dry_run, options.after) == ("slurm", 1, False, ())
    assert options.config[0].endswith("configs/pretrain/b32.yaml")


def test_config_files_and_overrides_in_any_order(site_file: str, train_file: str) -> None:
    for words in (
        ("--config", train_file, "optim.lr=1", "--nodes", "2"),
        ("optim.lr=1", "--nodes", "2", "--config", train_file),
        ("--nodes", "2", "--config", train_file, "--", "optim.lr=1"),
    ):
        options = parse("--site", site_file, *words)
        assert (options.config, options.overrides, options.nodes) == ((train_file,), ("optim.lr=1",), 2)


def test_config_is_found_from_any_directory(site_file: str, train_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(train_file).parent)
    assert parse("--site", site_file, "--config", "train.yaml").config == (train_file,)
    assert parse("--site", site_file, "--config", "configs/pretrain/b32.yaml").config[0].endswith("b32.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["oops"], "'oops' is not key=value"),
        (["--config", "none.yaml"], "cannot read config none.yaml"),
        (["--nodes", "0"], "--nodes 0: at least 1"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--after", "yesterday"], "--after yesterday: a job id"),
        (["--time", "soon"], "time: a time limit is written"),
        (["--cluster", "debug", "--nodes", "2"], "--cluster debug is one process"),
        (["--cluster", "local", "--after", "3"], "--after needs SLURM"),
    ],
)
def test_wrong_options(site_file: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse("--site", site_file, *words)


def test_setup_lines_and_cpus(site_file: str) -> None:
    words = ["--setup", "module load a", "--setup", "ulimit -n 4096", "--gpus-per-node", "0", "--cpus-per-gpu", "3"]
    options = parse("--site", site_file, *words)
    assert options.site.setup == ["module load a", "ulimit -n 4096"]
    assert options.site.cpus_per_node == 3


def test_one_word_may_stand_for_an_option(site_file: str) -> None:
    parser = make_parser("x.py", "about", "configs/evaluate/msrvtt_1ka.yaml")
    parser.add_argument("--checkpoint")
    words = ["--site", site_file, "--nodes", "2"]
    for argv in (
        ["runs/b32", *words],
        ["--config", "configs/evaluate/lsmdc.yaml", "runs/b32", *words],
        [*words, "runs/b32", "a=1"],
        [*words, "a=1", "--checkpoint", "runs/b32"],
    ):
        assert parse_options(parser, argv, word="checkpoint").extra["checkpoint"] == "runs/b32"
    with pytest.raises(InputError, match="'c' is not key=value"):
        parse_options(parser, [*words, "c", "d"], word="checkpoint")


def test_memory_is_written_as_slurm_reads_it(site_file: str) -> None:
    for mem in ("500G", "0", "64000", "2t", "800MB"):
        assert parse("--site", site_file, "--mem", mem).site.mem == mem
    with pytest.raises(InputError, match="memory per node is written"):
        parse("--site", site_file, "--mem", "lots")


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        (["--cluster", "local"], 8),
        (["--cluster", "local", "--nodes", "2"], 4),
        (["--cluster", "local", "--nodes", "2", "--gpus-per-node", "2"], 2),
        (["--cluster", "debug"], 1),
        (["--cluster", "debug", "--gpus-per-node", "0"], 0),
    ],
)
def test_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, words: list[str], gpus: int) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert parse_options(make_parser("x.py", "about", None), words).site.gpus_per_node == gpus


def test_more_nodes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    with pytest.raises(InputError, match="--nodes 9 share the 8 GPUs of this machine"):
        parse_options(make_parser("x.py", "about", None), ["--cluster", "local", "--nodes", "9"])
