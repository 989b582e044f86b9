"""Threads that wait for one another do not spin for long, unless the user says how they wait."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "expected"), [
    ({}, "1000"),
    ({"GOMP_SPINCOUNT": "7"}, "7"),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
])  # fmt: skip
def test_how_threads_wait_is_settled_before_torch_is_loaded_and_left_to_the_user(given, expected):
    before = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import sys, os, fewtune; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], env={**before, **given}, check=True, capture_output=True, text=True)
    assert found.stdout.split() == [expected, "False"]
