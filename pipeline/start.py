"""The model that a run starts with, and what can be known of it before there are data, ranks and GPUs.

model = first_weights(config, checkpoint)
check_start(config)          # the login node: InputError for what the start of the run would refuse
"""

from pathlib import Path

import torch

from pipeline.model.clip_vip import CLIPViP
from pipeline.model.start import weights_path
from pipeline.optim import parameter_groups
from pipeline.train_config import TrainConfig


def first_weights(config: TrainConfig, checkpoint: Path | None) -> CLIPViP:
    """The model to put under the engine; a checkpoint to come overwrites its weights."""
    model_config = config.model
    if checkpoint is not None:
        model_config = model_config.model_copy(update={"pretrained": None})
    elif config.init_from is not None:
        # As `model` describes it, so that what it says of training (freeze, checkpointing) holds, now and at a resume.
        model_config = model_config.model_copy(update={"pretrained": str(config.init_from)})
    return CLIPViP.from_config(model_config)


def given_weights(config: TrainConfig) -> Path | None:
    """The file or folder that a run without a checkpoint reads its weights from; None for a tag or a random start."""
    return config.init_from if config.init_from is not None else weights_path(config.model)


def check_start(config: TrainConfig) -> None:
    """Build what can be built: the model (with its weights where they are files that are here), groups, tokenizers."""
    weights = given_weights(config)
    if weights is not None and weights.exists():
        model = first_weights(config, None)
    else:
        with torch.device("meta"):
            model = CLIPViP(config.model)
    parameter_groups(model.named_parameters(), config.optim)
    for num_tokens in {config.data.num_text_tokens, *(chosen.num_text_tokens for chosen in config.evaluation.sets)}:
        model.tokenizer(num_tokens)
