"""Without ray it is said what to install; with it, jobs come to the same as here."""

import socket
import sys
from types import SimpleNamespace

import pytest

from fewtune.errors import DataError, FewtuneError, MissingExtraError
from fewtune.runs import on_ray


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fewtune\[ray\]'"):
        on_ray.require()


def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch):
    with socket.socket() as unheard:  # bound, so that nobody else takes it, and not listening
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            monkeypatch.setattr(on_ray, "require", lambda: SimpleNamespace())
            with pytest.raises(FewtuneError, match=f"--ray-address {given}: expected a Ray that answers"):
                on_ray.run((), lambda result: None, lambda: True, address=given)


def test_errors_of_a_task_are_those_of_fewtune():
    class TaskError(Exception):
        def __init__(self, cause):
            self.cause = cause

    def get(error):
        raise TaskError(error)

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=TaskError, **dict.fromkeys(on_ray._DIED, RuntimeError)))
    with pytest.raises(DataError):
        on_ray._result(ray, DataError(expected="a", got="b", where="c", fix="d"))
    with pytest.raises(TaskError):
        on_ray._result(ray, ValueError())


@pytest.mark.parametrize("name", ["WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError"])
def test_a_worker_that_died_is_one_line_whatever_it_died_of(name):
    exceptions = pytest.importorskip("ray").exceptions

    def get(reference):
        raise BaseException.__new__(getattr(exceptions, name))

    with pytest.raises(FewtuneError, match="See whether memory is enough, and type the same command again"):
        on_ray._result(SimpleNamespace(get=get, exceptions=exceptions), None)


def test_a_worker_of_other_code_refuses():
    with pytest.raises(FewtuneError, match="Install the same versions"):
        on_ray._there(None, "another")
