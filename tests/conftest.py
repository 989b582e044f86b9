"""Every test runs offline from hubs, with one thread per worker."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis  # noqa: E402
import torch  # noqa: E402 - the environment must stand before anything that reads it

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# How long an example takes is a matter of the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
