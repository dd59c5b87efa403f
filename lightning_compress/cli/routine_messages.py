"""Messages of Lightning that every run repeats and that say nothing about this one."""

from __future__ import annotations

import logging
import warnings

_ROUTINE = (
    "Seed set to",
    "Tip: ",
    "GPU available: False",
    "TPU available: ",
    "Loading `train_dataloader`",
    "Restoring states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "was configured so ",
    "`Trainer.fit` stopped: `max_epochs",
)
_WARNINGS = (
    ".*LeafSpec.*is deprecated",
    "The dirpath has changed",
    ".*does not have many workers",
    "You have overridden `on_",
)


def hide_routine_messages() -> None:
    """Hide routine messages in this process, so that the end of a run is read; all others are shown."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logger = logging.getLogger(f"lightning.{name}")
        if _is_telling not in logger.filters:
            logger.addFilter(_is_telling)
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)


def _is_telling(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _ROUTINE)
