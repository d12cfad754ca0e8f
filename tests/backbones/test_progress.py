"""The progress that a long pass shows, to a pipe and to a terminal, and sends to W&B."""

import io
import re
import sys
from types import SimpleNamespace

from fashion.backbones import progress
from fashion.backbones.progress import Progress

import pytest


@pytest.fixture
def logged(open_run, monkeypatch):
    """What goes to W&B, a row for each call."""
    rows = []
    monkeypatch.setattr(open_run.wandb_run, "log", rows.append)
    return rows


@pytest.fixture
def go(open_run, logged, monkeypatch):
    """A pass of 140 images whose steps, of 20 images, take these seconds; gives the `Progress`."""

    def go_through(*seconds):
        now = [1000.0]
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        shown = Progress("Features", open_run.wandb_run)
        shown.begin(140)
        for duration in seconds:
            now[0] += duration
            shown.advance(20)
        return shown

    return go_through


def test_rate_and_estimate_leave_out_the_first_step(go, logged, capsys):
    assert go(100, 2, 2, 2, 2, 2, 2).rate == pytest.approx(10)  # images/s
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "40 of 140 images at 10 images/s, about 0.2 minutes to go"  # 100 images at 10
    assert [row["features/images"] for row in logged] == [20, 40, 60, 80, 100, 120, 140]
    assert [row["features/seconds"] for row in logged] == [100, 102, 104, 106, 108, 110, 112]
    rates = [row.get("features/images_per_second") for row in logged]
    assert rates[0] is None and rates[1:] == pytest.approx(6 * [10])


def test_rate_is_the_mean_of_all_warm_steps(go):
    assert go(100, 1, 2, 3).rate == pytest.approx(60 / 6)


def test_one_step_tells_no_rate(go, capsys):
    assert go(3).rate is None
    assert capsys.readouterr().out == ""


def test_a_pipe_gets_a_line_a_minute_and_no_codes_of_a_terminal(go, capsys):
    go(9, 1, 40, 30, 1, 62, 100)
    out = capsys.readouterr().out
    assert re.findall("^([0-9]+ of [0-9]+) images", out, re.MULTILINE) == [
        "40 of 140",  # as soon as a rate is known
        "80 of 140",  # 70 s later
        "120 of 140",  # 63 s later
    ]
    assert len(out.splitlines()) == 3
    assert not set("\x1b\b\r") & set(out)


def test_a_terminal_gets_a_bar(go, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    go(100, 2, 2, 2, 2, 2, 2)
    estimate, bar = terminal.getvalue().split("\n", 1)
    assert "10 images/s" in estimate
    first, *_, last = bar.strip("\r").split("\r")
    assert "40/140" in first and "140/140" in last


def test_images_that_another_process_has_done_are_not_to_be_done(go, monkeypatch, capsys):
    shown = go(10)
    shown.target -= 60
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 1012.0))
    shown.advance(20)
    assert capsys.readouterr().out.startswith("40 of 80 images")


def test_a_process_into_a_pipe_shows_lines(offline_runs):
    done = offline_runs["resnet50_fashion"]
    assert not set("\x1b\b") & set(done.out + done.err)
    assert "Features: extracting 650 images" in done.out
    assert "250 of 650 images" in done.out
    rows = [row for row in done.wandb.rows if "features/images" in row]
    # Steps of whole files; of 400 test images, the last file is of 25.
    assert [row["features/images"] for row in rows] == [125, 250, 375, 500, 625, 650]
    assert done.result.metrics["extraction"]["images_per_second"] == pytest.approx(
        rows[-1]["features/images_per_second"]
    )
