"""Every test runs offline from hubs, with one thread per worker."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402 - the environment must stand before anything that reads it

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
