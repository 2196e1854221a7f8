"""Evaluate a model on text-video retrieval sets: print the tables, keep them as JSON, Markdown, CSV and HTML.

    python -m pipeline.evaluate CHECKPOINT --set NAME... FILE.yaml... key=value...
    python -m pipeline.evaluate runs/b32 --set msrvtt_1ka didemo sets.msrvtt_1ka.num_workers=4
    python -m pipeline.evaluate runs/b32 my_set.yaml
    python -m pipeline.evaluate configs/evaluate/clip_b32.yaml --set msrvtt_1ka
    python -m pipeline.evaluate compare RUN... [output=FOLDER]
    python -m pipeline.evaluate features videos.parquet texts.parquet --set NAME [name=MODEL]

CHECKPOINT is a run folder, a checkpoint, an exported model, or an official .pt file; without one, the config's `model`
is built and evaluated as it is, such as CLIP with mean pooling. `--set NAME` is short for `configs/evaluate/NAME.yaml`.
`compare` puts what was evaluated into one table with the paper's numbers beside. `features` ranks what another model
encoded, by the same exact metrics: tables of clip_id and feature, of text (or query_id) and feature. Under torchrun
every rank encodes and ranks its share; the numbers do not depend on how many there are.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator

from pipeline.config import Section, load_config, nearest_name, read_yaml, render_help, split_arguments
from pipeline.dist import is_main, local_rank
from pipeline.errors import InputError, run_command
from pipeline.evaluation.compare import comparison_rows, load_reports, markdown, write_comparison
from pipeline.evaluation.encoding import Encode, Tokenize, encode_texts, tokenize_texts
from pipeline.evaluation.given_features import bank_features, read_tables, retrieve_given, write_tables
from pipeline.evaluation.page import render_page
from pipeline.evaluation.protocol import RetrievalSetConfig, read_rows
from pipeline.evaluation.report import Report, console_table, make_folder, set_report, write_report
from pipeline.evaluation.rescored import rescored_metrics
from pipeline.evaluation.rescoring import RescoreMethod
from pipeline.evaluation.retrieval import Retrieval, check_set, retrieve
from pipeline.evaluation.selection import Which, select_checkpoint
from pipeline.model.clip_vip import CLIPViP, Features
from pipeline.model.config import ModelConfig
from pipeline.model.start import WEIGHTS_SUFFIXES
from pipeline.model.weights import load_model
from pipeline.start import start_model

PROGRAM = "python -m pipeline.evaluate [CHECKPOINT]"
PROGRAM_OF_FEATURES = "python -m pipeline.evaluate features videos.parquet texts.parquet"
FEATURES_IMAGE_SIZE_PX = 224
"""Of the strips on the page of features from elsewhere."""
SETS_FOLDER = Path(__file__).parents[1] / "configs" / "evaluate"


class EvaluatedSet(RetrievalSetConfig):
    """A retrieval set with what is done beyond plain ranking."""

    rescoring: tuple[RescoreMethod, ...] = ()
    """Re-scored results, reported apart: dsl_official, dsl (both see all test queries), qb_norm (sees none)."""
    query_bank: Path | None = None
    """For qb_norm: JSON lines with a `text` each, such as the training captions."""
    page_queries: int = Field(default=60, ge=0)
    """Queries on the HTML page, the worst first; 0: no page."""

    @model_validator(mode="after")
    def _bank_has_a_use(self) -> Self:
        if ("qb_norm" in self.rescoring) != (self.query_bank is not None):
            raise ValueError("rescoring: qb_norm and query_bank need each other; set both or neither")
        return self


class EvaluateConfig(Section):
    """What to evaluate a checkpoint on."""

    sets: dict[str, EvaluatedSet] = Field(min_length=1)
    """Retrieval sets by name."""
    model: ModelConfig | None = None
    """The model to evaluate where no CHECKPOINT is given; needs `output`."""
    output: Path | None = None
    """Folder for the reports; default: `evaluation/` in the run folder, or beside a model file."""
    which: Which = "last"
    """Of a run folder: its last checkpoint, or the best by the run's own evaluation.best_metric."""
    device: Literal["cpu", "cuda"] | None = None
    """Where it runs; default: a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of encoding: bf16 by autocast is for speed on GPUs; it may move a recall, so the report says so. Ranks are
    exact in either."""
    export_features: bool = False
    """Also write the features as {set}_videos.parquet and {set}_texts.parquet, which `features` reads."""
    name: str = ""
    """With `features`: what the reports call the model; default: the path of the table of videos."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_sets(cls, values: Any) -> Any:
        """A set's name is its key."""
        sets = values.get("sets") if isinstance(values, dict) else None
        if not isinstance(sets, dict):
            return values
        named = {key: {"name": key, **one} if isinstance(one, dict) else one for key, one in sets.items()}
        return {**values, "sets": named}


def main(argv: list[str]) -> int:
    """Evaluate one checkpoint on every set of the config, or compare what was evaluated."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(render_help(EvaluateConfig, program=PROGRAM, about=__doc__ or ""))
        return 0 if argv else 2
    if argv[0] == "compare":
        return compare(argv[1:])
    if argv[0] == "features":
        return evaluate_features(argv[1:])
    checkpoint, config = parse_arguments(argv)
    device = start_ranks(config.device)
    try:
        evaluate_checkpoint(checkpoint, config, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def compare(words: list[str]) -> int:
    """Print one table of several evaluations; write it when `output=FOLDER` is given."""
    sources = [Path(word) for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    missing = [source for source in sources if not source.exists()]
    if not sources or missing or options.keys() - {"output"}:
        wrong = f"{missing[0]} does not exist; " if missing else ""
        raise InputError(f"{wrong}usage: python -m pipeline.evaluate compare RUN... [output=FOLDER]")
    rows = comparison_rows(load_reports(sources))
    print(markdown(rows))
    if "output" in options:
        print(f"written: {', '.join(str(path) for path in write_comparison(rows, Path(options['output'])))}")
    return 0


def evaluate_features(words: list[str]) -> int:
    """Rank what the tables hold on every set of the config: the numbers and reports of `evaluate_checkpoint`."""
    files = [Path(word) for word in words if word.endswith(".parquet") and "=" not in word]
    if len(files) != 2:
        raise InputError(f"give one table of videos and one of texts; usage: {PROGRAM_OF_FEATURES} --set NAME")
    rest = [word for word in words if Path(word) not in files]
    config = load_config(EvaluateConfig, *split_arguments(with_set_files(rest), program=PROGRAM_OF_FEATURES))
    if config.model is not None or config.which != "last" or config.export_features:
        raise InputError("model, which and export_features are for checkpoints; remove them beside `features`")
    tables = read_tables(*files)
    folder = config.output or files[0].with_name(f"{files[0].stem}_evaluation")
    make_folder(folder)
    device = start_ranks(config.device)
    try:
        for set_config in config.sets.values():
            found = retrieve_given(tables, set_config, device=device)
            texts = [] if set_config.query_bank is None else bank_texts(set_config.query_bank)
            bank = bank_features(tables, texts) if texts else None
            facts = {"checkpoint": config.name or str(files[0]), "chosen_by": "features that were given"}
            publish(found, set_config, bank, facts | tables.videos.facts, folder, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def parse_arguments(argv: list[str]) -> tuple[Path | None, EvaluateConfig]:
    """The checkpoint comes first, if there is one, then files and overrides."""
    is_override = "=" in argv[0] and not Path(argv[0]).exists()
    is_option = argv[0].startswith("-") or is_override or argv[0].endswith((".yaml", ".yml"))
    checkpoint = None if is_option else Path(argv[0])
    if checkpoint is not None and not checkpoint.exists():
        raise InputError(f"no checkpoint at {checkpoint}; give a run folder, a checkpoint or a model file")
    words = argv if checkpoint is None else argv[1:]
    config = load_config(EvaluateConfig, *split_arguments(with_set_files(words), program=PROGRAM))
    check_source(checkpoint, config)
    return checkpoint, config


def check_source(checkpoint: Path | None, config: EvaluateConfig) -> None:
    """Refuse anything but one model: a checkpoint, or the config's `model` with a place for its reports."""
    if (checkpoint is None) == (config.model is None):
        raise InputError(f"give either a checkpoint or a config with `model`; usage: {PROGRAM} FILE.yaml ...")
    if config.model is not None and (config.output is None or config.which != "last"):
        raise InputError("a config with `model` needs output=FOLDER, and has no checkpoints to choose by `which`")


def with_set_files(words: list[str]) -> list[str]:
    """The words with `--set NAME...` replaced by the config files of these sets; a .yaml file stays what it is."""
    found: list[str] = []
    naming = False
    for word in words:
        if word == "--set" or word.startswith("--set="):
            naming = True
            word = word.removeprefix("--set").removeprefix("=")
        elif word.startswith("-") or "=" in word:
            naming = False
        if word:
            found.append(set_file(word) if naming and not word.endswith((".yaml", ".yml")) else word)
    if words and words[-1] == "--set":
        raise InputError("--set needs a name, such as --set msrvtt_1ka, or a .yaml file")
    return found


def set_file(name: str) -> str:
    """configs/evaluate/NAME.yaml."""
    known = [path.stem for path in sorted(SETS_FOLDER.glob("*.yaml")) if "sets" in read_yaml(path)]
    if name not in known:
        nearest = nearest_name(name, known)
        hint = f"did you mean {nearest!r}? " if nearest else ""
        raise InputError(f"--set {name}: {hint}There are {', '.join(known)}; give your own set as a .yaml file")
    return str(SETS_FOLDER / f"{name}.yaml")


def start_ranks(wanted: Literal["cpu", "cuda"] | None) -> torch.device:
    """Join the process group that torchrun or the launcher describes, if any; returns this rank's device."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but this machine has no CUDA device; set device=cpu")
    kind = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(kind, local_rank()) if kind == "cuda" else torch.device(kind)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def evaluate_checkpoint(checkpoint: Path | None, config: EvaluateConfig, device: torch.device) -> None:
    """Evaluate every set; rank 0 prints and writes. Collective."""
    if checkpoint is None:
        assert config.model is not None and config.output is not None, "parse_arguments checked it"
        name, folder = config.model.name, config.output
        chosen_by = f"no training here, weights: {config.model.pretrained or 'random'}"
        check_inputs(config, folder)
        model = start_model(config.model)
    else:
        path, chosen_by = select_checkpoint(checkpoint, config.which)
        name, folder = str(path), config.output or default_output(checkpoint)
        check_inputs(config, folder)
        model = load_model(path)
    model = model.to(device).eval()
    encode = in_precision(model, config.precision, device)
    check_texts(model, config.sets.values())  # before any video is encoded, not after the last
    for set_config in config.sets.values():
        found = retrieve(encode, model.tokenizer, model.image_size_px, set_config, device=device)
        bank = encode_bank(encode, model.tokenizer, set_config, device)
        facts = {
            "checkpoint": name,
            "chosen_by": chosen_by,
            "precision": config.precision,
            "image_size_px": model.image_size_px,
        }
        publish(found, set_config, bank, facts, folder, device)
        if config.export_features and is_main():
            texts = None if bank is None or set_config.query_bank is None else bank_texts(set_config.query_bank)
            paths = write_tables(found, None if bank is None or texts is None else (texts, bank), facts, folder)
            print(f"written: {', '.join(str(path) for path in paths)}\n", flush=True)


def publish(
    found: Retrieval,
    set_config: EvaluatedSet,
    bank: torch.Tensor | None,
    facts: dict[str, Any],
    folder: Path,
    device: torch.device,
) -> None:
    """Re-score one set; rank 0 prints its table and writes its reports. `facts`: where the features are from.

    Must be called by every rank.
    """
    rescored = {method: rescored_metrics(found, method, bank, device) for method in set_config.rescoring}
    if not is_main():
        return
    report = set_report(
        found,
        checkpoint=facts["checkpoint"],
        rescored=rescored,
        chosen_by=facts["chosen_by"],
        precision=facts.get("precision", "fp32"),
    )
    paths = write_report(report, folder)
    image_size_px = facts.get("image_size_px", FEATURES_IMAGE_SIZE_PX)
    paths += write_page(found, report, folder, set_config.page_queries, image_size_px)
    print(console_table(report))
    print(f"written: {', '.join(str(path) for path in paths)}\n", flush=True)


def check_inputs(config: EvaluateConfig, folder: Path) -> None:
    """Whatever can be wrong with any set, its query bank, or the folder of the reports, before anything is encoded."""
    for set_config in config.sets.values():
        check_set(set_config)
        if set_config.query_bank is not None:
            bank_texts(set_config.query_bank)
    make_folder(folder)


def check_texts(model: CLIPViP, sets: Iterable[EvaluatedSet]) -> None:
    """Refuse a set whose texts the model's tokenizer cannot give as the set asks."""
    for set_config in sets:
        tokenize_texts(
            model.tokenizer, [" 1" * 100], set_config.num_text_tokens, window=set_config.long_texts == "window"
        )


def bank_texts(path: Path) -> list[str]:
    """The distinct texts of a query bank."""
    texts = list(dict.fromkeys(str(row.get("text", "")) for _, row in read_rows(path)))
    if not all(text.strip() for text in texts) or not texts:
        raise InputError(f"{path}: every row needs a `text`; give a texts.jsonl")
    return texts


def in_precision(model: CLIPViP, precision: Literal["fp32", "bf16"], device: torch.device) -> Encode:
    """The model as it is called for encoding: as it is, or under bf16 autocast. Ranking is not under it."""

    def encode(**inputs: torch.Tensor | None) -> Features:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            features: Features = model(**inputs)
            return features

    return encode


def encode_bank(
    encode: Encode, tokenizer: Callable[[int], Tokenize], config: EvaluatedSet, device: torch.device
) -> torch.Tensor | None:
    """Features of the distinct texts of the query bank, if there is one. Collective."""
    if config.query_bank is None:
        return None
    texts = bank_texts(config.query_bank)
    windows = tokenize_texts(tokenizer, texts, config.num_text_tokens, window=config.long_texts == "window")
    return encode_texts(encode, windows, batch_size=config.batch_size, device=device)


def write_page(found: Retrieval, report: Report, folder: Path, num_queries: int, image_size_px: int) -> list[Path]:
    """{set}.html, unless it is switched off."""
    if num_queries == 0:
        return []
    path = folder / f"{found.config.name}.html"
    page = render_page(found, report, num_queries=num_queries, image_size_px=image_size_px)
    path.write_text(page, encoding="utf-8")
    return [path]


def default_output(checkpoint: Path) -> Path:
    """`evaluation/` in a run folder or exported model, there or to come; `{stem}_evaluation/` beside a file."""
    is_file = checkpoint.is_file() or (not checkpoint.exists() and checkpoint.suffix in WEIGHTS_SUFFIXES)
    return checkpoint.with_name(f"{checkpoint.stem}_evaluation") if is_file else checkpoint / "evaluation"


if __name__ == "__main__":
    run_command(main)
