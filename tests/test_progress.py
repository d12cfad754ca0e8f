"""Progress of a loop: lines in a file, one line on a terminal."""

import sys
from types import SimpleNamespace

from fashion import errors, progress

import pytest


@pytest.fixture
def run_progress(monkeypatch, capsys):
    """Loop over seven batches of 20 images that take the given seconds; return the output."""

    def run(*seconds):
        now = [1000.0]
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
        seen = []
        for item in progress.with_progress(range(7), "Features", 20):
            seen.append(item)
            now[0] += seconds[item]
        assert seen == list(range(7))
        return capsys.readouterr().out

    return run


def test_file_gets_a_line_per_minute_without_control_characters(run_progress):
    assert run_progress(9, 1, 40, 30, 1, 62, 100).splitlines() == [
        "Features: 14%, 2 images/s, 0.9 min left",
        "Features: 57%, 1 images/s, 1.0 min left",  # 71 s later
        "Features: 86%, 1 images/s, 0.4 min left",  # 63 s later
        "Features: 100%, 1 images/s, 0.0 min left",
    ]


def test_terminal_gets_one_line(run_progress, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    text = run_progress(4, 4, 4, 0.1, 0.1, 4, 4)
    assert text.startswith("\rFeatures: 14%, 5 images/s, 0.4 min left") and text.endswith("\n")
    assert text.count("\n") == 1 and text.count("\r") == 5 and "100%" in text
    widths = [len(part) for part in text.strip("\r\n").split("\r")]
    assert widths[-1] >= max(widths) - 2  # the last one covers the others


def test_quick_loop_prints_nothing(run_progress):
    assert run_progress(*(7 * [0.1])) == ""
    assert list(progress.with_progress([], "Features")) == []


def test_loop_ends_if_a_signal_has_arrived(run_progress, monkeypatch):
    monkeypatch.setattr(errors, "_received_signal", 15)
    with pytest.raises(SystemExit, match="143"):
        run_progress(*(7 * [1]))
