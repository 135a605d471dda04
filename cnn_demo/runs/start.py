"""Where a run starts: from random weights or a checkpoint's, with how many images held out. The one rule."""

from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..pictures.catalog import DATASETS
from ..training.budget import count_steps
from ..training.config import VALIDATION_PICTURES, RunConfig
from .checkpoints import Checkpoint, find_checkpoint


def resolve_start(root: Path, config: RunConfig) -> RunConfig:
    """Return the configuration with a number of validation images; the checkpoint it starts from is checked.

    What a checkpoint has learned must not validate it: if no number is given, as many are held out as it held out,
    5,000 at most. Raises CheckpointError (`start_from` is not there, or is of another network or other classes),
    ConfigError (more than it held out, or too few are left to train on).
    """
    held_out = config.held_out
    if config.start_from is not None:
        known = find_start(root, config, config.start_from, with_weights=False).held_out
        if config.validation_pictures is None:
            held_out = min(VALIDATION_PICTURES, VALIDATION_PICTURES if known is None else known)
        elif known is not None and held_out > known:
            raise ConfigError(
                "validation_pictures",
                f"Validation images: {config.start_from} was trained on all images but {known:,}, so holding out "
                f"{held_out:,} would validate on images it has learned. Give {known:,} or fewer.",
            )
    config = replace(config, validation_pictures=held_out)
    count_steps(config, DATASETS[config.dataset].train_pictures)
    return config


def find_start(root: Path, config: RunConfig, start_from: str, with_weights: bool = True) -> Checkpoint:
    """Return the checkpoint that a run starts from. Raises CheckpointError as above."""
    checkpoint = find_checkpoint(root, start_from, with_weights)
    if checkpoint.model != config.model:
        raise CheckpointError(f"{start_from} is a {checkpoint.model}, but the run trains a {config.model}.")
    classes = DATASETS[config.dataset].classes
    if checkpoint.classes != classes:
        theirs, ours = (f"({', '.join(names[:3])}, …)" for names in (checkpoint.classes, classes))
        raise CheckpointError(f"{start_from} knows other classes {theirs} than {config.dataset} {ours}.")
    return checkpoint
