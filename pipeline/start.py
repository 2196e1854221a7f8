"""The model that a run starts with, and what can be known of it before there are data, ranks and GPUs.

model = first_weights(config, checkpoint)
check_start(config)          # the login node: InputError for what the start of the run would refuse
"""

from pathlib import Path

import torch

from pipeline.dist import gather_values, local_rank
from pipeline.errors import PipelineError
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.start import weights_path
from pipeline.model.tags import fetch_weights
from pipeline.optim import parameter_groups
from pipeline.train_config import TrainConfig


def first_weights(config: TrainConfig, checkpoint: Path | None) -> CLIPViP:
    """The model to put under the engine; a checkpoint to come overwrites its weights."""
    if checkpoint is not None:
        return CLIPViP.from_config(config.model.model_copy(update={"pretrained": None}))
    return start_model(first_model(config))


def start_model(config: ModelConfig) -> CLIPViP:
    """The model as its config says. Where that is a tag, the first rank of each node fetches it for all. Collective."""
    if needs_tag(config):
        error = None
        if local_rank() == 0:
            try:
                fetch_weights(config.name, str(config.pretrained))
            except PipelineError as caught:
                error = caught
        errors = [one for one in gather_values(error) if one is not None]
        if errors:
            raise errors[0]
    return CLIPViP.from_config(config)


def needs_tag(config: ModelConfig) -> bool:
    """Whether the weights are open_clip's, by a tag."""
    return config.pretrained is not None and weights_path(config) is None


def first_model(config: TrainConfig) -> ModelConfig:
    """`model` of a run without a checkpoint, with `init_from` in place of its own weights."""
    if config.init_from is None:
        return config.model
    # As `model` describes it, so that what it says of training (freeze, checkpointing) holds, now and at a resume.
    return config.model.model_copy(update={"pretrained": str(config.init_from)})


def given_weights(config: TrainConfig) -> Path | None:
    """The file or folder that a run without a checkpoint reads its weights from; None for a tag or a random start."""
    return config.init_from if config.init_from is not None else weights_path(config.model)


def model_as_far_as_here(config: ModelConfig) -> CLIPViP:
    """The model with its weights where they are files that are here, else its shapes alone."""
    weights = weights_path(config)
    if weights is not None and weights.exists():
        return CLIPViP.from_config(config)
    with torch.device("meta"):
        return CLIPViP(config)


def check_start(config: TrainConfig) -> None:
    """Build what can be built: the model (with its weights where they are files that are here), groups, tokenizers."""
    model = model_as_far_as_here(first_model(config))
    parameter_groups(model.named_parameters(), config.optim)
    for num_tokens in {config.data.num_text_tokens, *(chosen.num_text_tokens for chosen in config.evaluation.sets)}:
        model.tokenizer(num_tokens)
