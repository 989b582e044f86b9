"""Keep the libraries underneath from writing to the terminal. Knows nothing of what they are asked to do."""

from __future__ import annotations

import logging as standard_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers shows no progress bars, no load reports and no warnings; its settings come back afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = standard_logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(standard_logging.CRITICAL)  # it reports each retry of a connection
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(hub_level)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
