"""Entry: write the sample corpus, or what is missing of it.

Usage: `python -m preprocess.sample [FILE.yaml ...] [key=value ...]`
"""

import json

from pipeline.config import parse_command_line
from pipeline.errors import run_command
from preprocess.sample.corpus import build_corpus
from preprocess.sample.plan import SampleConfig

ABOUT = "Write a generated corpus of raw videos, subtitles and captions in the shape of HD-VILA-100M."


def main(argv: list[str]) -> int:
    """Build the corpus and say what there is."""
    config = parse_command_line(SampleConfig, argv, program="python -m preprocess.sample", about=ABOUT)
    written = build_corpus(config)
    facts = json.loads((config.folder / "corpus.json").read_text())
    state = "written" if written else "complete, nothing to do"
    print(
        f"sample corpus {config.folder}: {facts['num_train_clips']:,} training and {facts['num_heldout_clips']:,} "
        f"held-out clips in {facts['num_videos']:,} videos ({facts['num_bad_clips']} bad on purpose): {state}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
