"""Two real processes that take each step together: the same weights as one that takes both their batches, also after a stop."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from fewtune.errors import SpecError
from fewtune.train.fit import FitOptions, Group, fit
from fewtune.train.world import World, joined

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from fewtune.errors import Interrupted
from fewtune.train.fit import FitOptions, Group, Session, fit
from fewtune.train.world import joined

folder, stop_at = Path(sys.argv[1]), int(sys.argv[2])
def problem():
    drawn = torch.Generator().manual_seed(0)
    weight, unused = nn.Parameter(torch.randn(4, 3, generator=drawn)), nn.Parameter(torch.ones(2))
    def batches(number):
        drawn = torch.Generator().manual_seed(number)
        return number, torch.randn(8, 4, generator=drawn), torch.randn(8, 3, generator=drawn)
    def loss(batch):
        number, inputs, aims = batch
        found = (nn.functional.dropout(inputs, 0.3) @ weight - aims).square().mean()
        return found + unused.sum() if number % 2 else found  # only every other batch reaches it
    return [Group({"weight": weight, "unused": unused}, 0.05)], batches, loss

def run(options, session):
    groups, batches, loss = problem()
    losses = fit(groups, batches, loss, steps=10, options=options, seed=7, session=session)
    return {"losses": losses, "weight": groups[0].weights["weight"].tolist(), "unused": groups[0].weights["unused"].tolist()}

if __name__ == "__main__":
    with joined() as world:
        def progress(what, done, steps, loss):
            if done == stop_at and world.rank == 1:
                import os, signal
                os.kill(os.getpid(), signal.SIGINT)
        # A folder of its own for each, as on two machines: only the first one's is written to.
        session = Session(folder / str(world.rank), "key", world=world, progress=progress)
        try:
            found = run(FitOptions(average=0.0), session)
        except Interrupted:
            found = None
        (folder / f"{world.rank}.json").write_text(json.dumps(found))
"""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def together(folder, *, stop_at=0):
    """What each of two processes has in the end; None where it was stopped."""
    (folder / "script.py").write_text(SCRIPT)
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "script.py"), str(folder), str(stop_at)]
    running = [subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=180) for process in running] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def alone(tmp_path):
    """What one process makes of both processes' batches."""
    scope = {"__name__": "problem"}
    exec(compile(SCRIPT.replace("folder, stop_at =", "# "), "problem", "exec"), scope)
    return scope["run"](FitOptions(average=0.0, accumulate=2), None)


@pytest.mark.slow
def test_a_step_of_two_processes_is_one_of_both_their_batches(tmp_path, alone):
    first, second = together(tmp_path)
    assert first == second
    assert torch.allclose(torch.tensor(first["weight"]), torch.tensor(alone["weight"]), atol=1e-6, rtol=0)
    assert torch.allclose(torch.tensor(first["unused"]), torch.tensor(alone["unused"]), atol=1e-6, rtol=0)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert (tmp_path / "0" / "fit.safetensors").exists() and not (tmp_path / "1").exists()


@pytest.mark.slow
def test_what_stops_one_stops_both_and_they_go_on_together(tmp_path, alone):
    assert together(tmp_path, stop_at=4) == [None, None]
    found = together(tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    assert found == together(whole)


def test_a_step_of_two_batches_is_one_of_their_rows_together():
    def fitted(batches, accumulate):
        weight = torch.nn.Parameter(torch.ones(3))
        options = FitOptions(accumulate=accumulate)
        fit([Group({"weight": weight}, 0.1)], batches, lambda rows: (rows @ weight).square().mean(), steps=5, options=options, seed=1)
        return weight.detach()

    def rows(number):
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(number))

    both = fitted(lambda step: torch.cat([rows(2 * step), rows(2 * step + 1)]), 1)
    assert torch.allclose(fitted(rows, 2), both, atol=1e-6, rtol=0)


def test_a_process_alone_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert world == World() and world.first and world.told("this") == "this" and world.any(True)
        tensor = torch.ones(2)
        world.average([tensor])
        assert tensor.tolist() == [1, 1]


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SpecError, match="expected RANK beside WORLD_SIZE=2"), joined():
        pass
