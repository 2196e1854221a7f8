"""The command: arguments, reports, re-scoring, the page. The model and the reader are painted ones."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import evaluate
from pipeline.errors import InputError, RunError
from pipeline.evaluate import main, parse_arguments
from pipeline.evaluation import page, retrieval
from tests.pipeline.evaluation.painted import PaintedModel, PaintedReader, Tokenizer, right_texts, write_queries


@pytest.fixture
def painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, and a config of the painted set; c1 and c2 have each other's text."""
    monkeypatch.setattr(retrieval, "ClipReader", PaintedReader)
    monkeypatch.setattr(page, "ClipReader", PaintedReader)
    monkeypatch.setattr(evaluate, "load_model", lambda path: PaintedModel())
    texts = right_texts() | {"c1": "2", "c2": "1"}
    queries = write_queries(tmp_path / "queries.jsonl", texts)
    bank = write_queries(tmp_path / "texts.jsonl", {"c1": "1 2", "c3": "4"})
    config = {
        "shards": str(tmp_path),
        "queries": str(queries),
        "num_frames": 4,
        "rescoring": ["dsl_official", "dsl", "qb_norm"],
        "query_bank": str(bank),
    }
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"sets": {"painted": config}, "device": "cpu"}))
    (tmp_path / "run").mkdir()
    return tmp_path


def test_writes_every_form_and_prints_the_table(painted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(painted / "run"), str(painted / "set.yaml")]) == 0
    output = capsys.readouterr().out
    assert "painted (test): N = 12 of 12 queries, 12 videos" in output
    assert re.search(r"text -> video +83\.3 +100\.0 +100\.0", output)
    assert re.search(r"chance +8\.3 +41\.7", output)
    assert "re-scored, dsl_official (sees all test queries)" in output
    assert "re-scored, qb_norm (does not see the test queries)" in output
    folder = painted / "run" / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == [f"painted.{end}" for end in ("csv", "html", "json", "md")]
    report = json.loads((folder / "painted.json").read_text())
    assert report["metrics"]["t2v_r1"] == 10 / 12
    assert report["protocol"]["ties"] == "average"
    assert report["intervals"]["t2v_r1"][0] < 10 / 12 < report["intervals"]["t2v_r1"][1]
    assert all(name.startswith("t2v_") for name in report["rescored"]["qb_norm"]["metrics"])


def test_page_is_self_contained_and_shows_the_worst_first(painted: Path) -> None:
    main([str(painted / "run"), str(painted / "set.yaml"), "sets.painted.page_queries=3"])
    html = (painted / "run" / "evaluation" / "painted.html").read_text()
    sections = html.split("<section>")[1:]
    assert len(sections) == 3
    assert "miss" in sections[0] and "miss" in sections[1] and "hit" in sections[2]
    assert all(section.count("<figure class=true>") == 1 for section in sections)
    assert "<h2>2</h2>" in sections[0] and "1. 1</figcaption>" in sections[0], "a wrong hit shows its own text"
    assert "12 true pairs" in html and "132 other pairs" in html
    assert not re.search(r'(src|href)="(?!data:)', html), "nothing is loaded from elsewhere"


def test_page_can_be_left_out(painted: Path) -> None:
    main([str(painted / "run"), str(painted / "set.yaml"), "sets.painted.page_queries=0", f"output={painted / 'out'}"])
    assert not (painted / "out" / "painted.html").exists()
    assert (painted / "out" / "painted.json").exists()


def test_compare_reads_what_was_written(painted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(painted / "run"), str(painted / "set.yaml")])
    capsys.readouterr()
    assert main(["compare", str(painted / "run"), f"output={painted / 'table'}"]) == 0
    assert "| run " in capsys.readouterr().out
    assert (painted / "table" / "comparison.csv").exists()


def test_a_model_of_the_config_is_evaluated_as_it_is(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(evaluate, "start_model", lambda config: built.append(config) or PaintedModel())
    words = ["configs/evaluate/clip_b32.yaml", str(painted / "set.yaml"), f"output={painted / 'clip' / 'evaluation'}"]
    assert main(words) == 0
    assert (built[0].pooling, built[0].num_proxies, built[0].num_temporal) == ("mean", 1, 0)
    report = json.loads((painted / "clip" / "evaluation" / "painted.json").read_text())
    assert (report["checkpoint"], report["chosen_by"]) == (
        "ViT-B-32-quickgelu",
        "no training here, weights: openai",
    )


def test_encoding_in_bf16_is_said_and_does_not_reach_the_ranking(
    painted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {"encode": set(), "rank": set()}
    call, rank = PaintedModel.__call__, retrieval.rank_both_ways

    def encode(self: PaintedModel, **inputs: torch.Tensor) -> object:
        seen["encode"].add(torch.is_autocast_enabled("cpu"))
        return call(self, **inputs)

    def ranks(*words: object, **options: object) -> object:
        seen["rank"].add(torch.is_autocast_enabled("cpu"))
        return rank(*words, **options)

    monkeypatch.setattr(PaintedModel, "__call__", encode)
    monkeypatch.setattr(retrieval, "rank_both_ways", ranks)
    assert main([str(painted / "run"), str(painted / "set.yaml"), "precision=bf16", "device=cpu"]) == 0
    assert seen == {"encode": {True}, "rank": {False}}
    assert "encoded in bf16, not in fp32" in capsys.readouterr().out


def test_a_checkpoint_may_have_an_equals_sign_in_its_name(painted: Path) -> None:
    checkpoint = painted / "lr=1e-5"
    (painted / "run").rename(checkpoint)
    assert parse_arguments([str(checkpoint), str(painted / "set.yaml")])[0] == checkpoint


def test_sets_by_name(painted: Path) -> None:
    run = str(painted / "run")
    for words in (["--set", "msrvtt_1ka", "didemo"], ["--set=msrvtt_1ka", "--set", "didemo", "device=cpu"]):
        checkpoint, config = parse_arguments([run, *words])
        assert checkpoint == painted / "run"
        assert list(config.sets) == ["msrvtt_1ka", "didemo"]
    words = ["--set", str(painted / "set.yaml"), "lsmdc", "sets.lsmdc.num_frames=7"]
    assert parse_arguments([run, *words])[1].sets["lsmdc"].num_frames == 7
    assert list(parse_arguments([run, *words])[1].sets) == ["painted", "lsmdc"]
    without = ["--set", "activitynet", "model.name=ViT-B-32-quickgelu", f"output={painted}"]
    assert parse_arguments(without)[0] is None
    with pytest.raises(InputError, match=r"--set msrvtt: did you mean 'msrvtt_1ka'\? There are activitynet, didemo"):
        parse_arguments([run, "--set", "msrvtt"])
    with pytest.raises(InputError, match="--set needs a name"):
        parse_arguments([run, "--set"])
    with pytest.raises(InputError, match="unknown option '--sets'"):
        parse_arguments([run, "--sets", "didemo"])


def test_wrong_arguments(painted: Path) -> None:
    with pytest.raises(InputError, match="give either a checkpoint or a config with `model`"):
        parse_arguments([str(painted / "set.yaml")])
    with pytest.raises(InputError, match="give either a checkpoint or a config with `model`"):
        parse_arguments([str(painted / "run"), str(painted / "set.yaml"), "model.name=ViT-B-32-quickgelu"])
    with pytest.raises(InputError, match="needs output=FOLDER"):
        parse_arguments([str(painted / "set.yaml"), "model.name=ViT-B-32-quickgelu"])
    with pytest.raises(InputError, match=r"no checkpoint at nowhere"):
        parse_arguments(["nowhere"])
    with pytest.raises(InputError, match="did you mean 'sets"):
        parse_arguments([str(painted / "run"), str(painted / "set.yaml"), "sets.painted.num_frame=3"])
    with pytest.raises(InputError, match="qb_norm and query_bank need each other"):
        parse_arguments([str(painted / "run"), str(painted / "set.yaml"), "sets.painted.rescoring=[dsl]"])
    with pytest.raises(InputError, match="nowhere does not exist; usage"):
        main(["compare", "nowhere"])


def test_what_is_wrong_is_found_before_anything_is_encoded(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second set, a query bank, the output: not after hours of the first set."""
    monkeypatch.setattr(evaluate, "load_model", lambda path: pytest.fail("the model was loaded"))
    words = [str(painted / "run"), str(painted / "set.yaml")]
    (painted / "bank.jsonl").write_text('{"caption": "no text"}\n')
    with pytest.raises(InputError, match=r"bank.jsonl: every row needs a `text`"):
        main([*words, f"sets.painted.query_bank={painted / 'bank.jsonl'}"])
    queries = write_queries(painted / "other.jsonl", {"c1": "1", "c99": "99"})
    with pytest.raises(RunError, match=r"set other: 1 of 2 videos cannot be used"):
        main([*words, f"sets.other.shards={painted}", f"sets.other.queries={queries}"])
    with pytest.raises(InputError, match=r"cannot write into .*set.yaml/out: Not a directory; set output="):
        main([*words, f"output={painted / 'set.yaml' / 'out'}"])
    with pytest.raises(InputError, match=r"cannot write into /proc: "):
        main([*words, "output=/proc"])


def test_what_a_tokenizer_cannot_do_is_found_before_any_video_is_read(
    painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Limited(Tokenizer):
        def __init__(self, context_length: int) -> None:
            super().__init__(context_length)
            if context_length > 77:
                raise InputError(f"context length {context_length} is outside 2..77")

        def whole(self, text: str) -> torch.Tensor:
            raise InputError("windows with CLIP's own tokenizer only")

    monkeypatch.setattr(PaintedModel, "tokenizer", lambda _, context_length: Limited(context_length))
    monkeypatch.setattr(evaluate, "retrieve", lambda *_, **__: pytest.fail("a set was encoded"))
    words = [str(painted / "run"), str(painted / "set.yaml")]
    words += ["sets.other.shards=x", f"sets.other.queries={painted / 'queries.jsonl'}"]
    with pytest.raises(InputError, match="context length 99"):
        main([*words, "sets.other.num_text_tokens=99"])
    with pytest.raises(InputError, match="CLIP's own tokenizer only"):
        main([*words, "sets.other.long_texts=window"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_device_that_is_not_there(painted: Path) -> None:
    with pytest.raises(InputError, match="this machine has no CUDA device; set device=cpu"):
        main([str(painted / "run"), str(painted / "set.yaml"), "device=cuda"])


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for option in ("sets.*.ties", "sets.*.long_texts", "sets.*.clips_per_video", "output", "device"):
        assert f"  {option}: " in text
