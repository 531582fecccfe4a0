"""Libraries that have nothing to say that a user could act on."""

import logging
import warnings


def quiet_libraries() -> None:
    """Keep stderr for what a user can act on: no progress bars or advice from libraries."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
