"""How long a run waits for W&B's server."""

import threading
import time

from fashion import errors
from fashion.tracking import upload

import pytest
import wandb
from wandb_server import Server


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """Nothing is waited for longer than a second."""
    monkeypatch.setattr(upload, "PATIENCE", 1)
    monkeypatch.setattr(upload, "waited", [0.0])
    monkeypatch.setattr(errors, "stuck", threading.Event())


def test_work_is_done_in_time():
    done = []
    with Server() as server:
        assert upload.in_time(lambda: done.append(1), server.url, limit=20)
    assert done == [1]


def test_work_takes_its_time_while_the_server_answers():
    with Server() as server:
        assert upload.in_time(lambda: time.sleep(5), server.url, limit=20)


def test_not_even_a_server_that_answers_is_waited_for_without_limit():
    with Server() as server:
        assert not upload.in_time(lambda: time.sleep(15), server.url, limit=2)
    assert errors.stuck.is_set()


@pytest.mark.parametrize("fault", ["dies", "hangs", 500, 3.0])
def test_server_that_does_not_answer_well_is_not_waited_for(fault):
    end = threading.Event()
    start = time.monotonic()
    with Server(fault) as server:
        assert not upload.in_time(lambda: end.wait(30), server.url, limit=20)
    end.set()
    assert time.monotonic() - start < 10
    assert errors.stuck.is_set()


def test_patience_is_the_whole_runs(monkeypatch):
    monkeypatch.setattr(upload, "PATIENCE", 8)
    with Server("hangs") as server:
        assert upload.in_time(lambda: time.sleep(4), server.url, limit=20)
        assert 2 < upload.waited[0] < 8
        start = time.monotonic()
        assert not upload.in_time(lambda: time.sleep(15), server.url, limit=20)
    assert time.monotonic() - start < 8


def test_wandbs_errors_are_no_end_but_others_are():
    def fail(error):
        raise error

    with Server() as server:
        assert not upload.in_time(lambda: fail(wandb.Error("no")), server.url, limit=20)
        with pytest.raises(OSError, match="disk full"):
            upload.in_time(lambda: fail(OSError("disk full")), server.url, limit=20)


def test_offline_run_is_what_the_work_is_done_with(open_run):
    did = []
    run = open_run.wandb_run
    assert upload.carry(run, did.append, [did.clear], size=0) is run
    assert did == [run]
