"""What a docstring shows holds."""

import doctest
import importlib
import pkgutil

import pdoc
import pytest

import fewtune

MODULES = sorted(module.name for module in pkgutil.walk_packages(fewtune.__path__, "fewtune."))


def test_every_module_was_found():
    assert len(MODULES) > 40 and "fewtune.prompt.template" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_some_modules_show_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    shown = sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert shown >= 8


def test_the_reference_has_every_public_name_and_what_is_said_of_it(tmp_path):
    pdoc.pdoc("fewtune", "!fewtune.", output_directory=tmp_path)
    page = (tmp_path / "fewtune.html").read_text(encoding="utf-8")
    public = [name for name in fewtune.__all__ if not name.startswith("_")]
    assert [name for name in public if f'id="{name}"' not in page] == []
    assert "Raises <code>SpecError</code>" in page
