"""Every test runs offline from hubs, with one thread per worker; which are left out of `make check`; the command line as it is typed."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402 - the environment must stand before anything that reads it

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# How long an example takes is a matter of the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


FAST = ("bert", "llama")
"""A masked and a causal one: on these `make check` runs what is asked of every family."""
HERE = Path(__file__).parent


def slow(path: Path) -> bool:
    """Whether all of a file is: comparisons with other libraries, and whole commands but those of test_cli.py."""
    kind = path.relative_to(HERE).parts[0]
    return kind == "reference" or (kind == "flows" and path.name != "test_cli.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no slow test is wanted, files of nothing else are not even imported."""
    return True if config.option.markexpr == "not slow" and collection_path.suffix == ".py" and slow(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests, and the other families' cases."""
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if family not in (None, *FAST) or slow(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def fewtune(capsys, monkeypatch):
    """(exit code, standard output, standard error) of one command."""

    from fewtune.cli import app as cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewtune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run
