"""Deadlines for an unresponsive W&B server."""

import threading
import time

from fashion import errors
from fashion.tracking import offline_fallback

import pytest
import wandb
from helpers.wandb_server import Server


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch):
    """Wait at most a second for an unresponsive server."""
    monkeypatch.setattr(offline_fallback, "MAX_UNRESPONSIVE_SECONDS", 1)
    monkeypatch.setattr(offline_fallback, "unresponsive_seconds", [0.0])
    monkeypatch.setattr(errors, "skip_interpreter_shutdown", threading.Event())


def test_run_with_deadline_calls_the_function():
    done = []
    with Server() as server:
        assert offline_fallback.run_with_deadline(lambda: done.append(1), server.url, limit=20)
    assert done == [1]


def test_run_with_deadline_waits_while_the_server_responds():
    with Server() as server:
        assert offline_fallback.run_with_deadline(lambda: time.sleep(5), server.url, limit=20)


def test_run_with_deadline_gives_up_at_the_limit():
    with Server() as server:
        assert not offline_fallback.run_with_deadline(lambda: time.sleep(15), server.url, limit=2)
    assert errors.skip_interpreter_shutdown.is_set()


@pytest.mark.parametrize(
    "fault", ["dies", 500, *(pytest.param(f, marks=pytest.mark.slow) for f in ("hangs", 3.0))]
)
def test_run_with_deadline_gives_up_on_an_unresponsive_server(fault):
    end = threading.Event()
    start = time.monotonic()
    with Server(fault) as server:
        assert not offline_fallback.run_with_deadline(lambda: end.wait(30), server.url, limit=20)
    end.set()
    assert time.monotonic() - start < 10
    assert errors.skip_interpreter_shutdown.is_set()


@pytest.mark.slow
def test_unresponsive_seconds_add_up_over_calls(monkeypatch):
    monkeypatch.setattr(offline_fallback, "MAX_UNRESPONSIVE_SECONDS", 8)
    with Server("hangs") as server:
        assert offline_fallback.run_with_deadline(lambda: time.sleep(4), server.url, limit=20)
        assert 2 < offline_fallback.unresponsive_seconds[0] < 8
        start = time.monotonic()
        assert not offline_fallback.run_with_deadline(lambda: time.sleep(15), server.url, limit=20)
    assert time.monotonic() - start < 8


def test_run_with_deadline_swallows_wandb_errors_and_propagates_others():
    def fail(error):
        raise error

    with Server() as server:
        assert not offline_fallback.run_with_deadline(
            lambda: fail(wandb.Error("no")), server.url, limit=20
        )
        with pytest.raises(OSError, match="disk full"):
            offline_fallback.run_with_deadline(
                lambda: fail(OSError("disk full")), server.url, limit=20
            )


def test_log_with_offline_fallback_logs_to_an_offline_run(open_run):
    calls = []
    run = open_run.wandb_run
    assert (
        offline_fallback.log_with_offline_fallback(run, calls.append, [calls.clear], size=0) is run
    )
    assert calls == [run]
