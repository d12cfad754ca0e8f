"""Progress of feature extraction: lines, a bar, W&B metrics."""

import io
import re
import sys
from types import SimpleNamespace

from fashion.backbones import progress
from fashion.backbones.progress import Progress

import pytest


@pytest.fixture
def logged(open_run, monkeypatch):
    """The metrics that are sent to W&B, one row per call."""
    rows = []
    monkeypatch.setattr(open_run.wandb_run, "log", rows.append)
    return rows


@pytest.fixture
def run_progress(open_run, logged, monkeypatch):
    """Report 140 images in steps of 20 that take the given seconds; return the `Progress`."""

    def run(*seconds):
        now = [1000.0]
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        reporter = Progress("Features", open_run.wandb_run)
        reporter.reset(140)
        for duration in seconds:
            now[0] += duration
            reporter.update(20)
        return reporter

    return run


def test_rate_leaves_out_the_first_step(run_progress, logged, capsys):
    assert run_progress(100, 2, 2, 2, 2, 2, 2).rate == pytest.approx(10)  # images/s
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "40 of 140 images at 10 images/s, about 0.2 minutes left"  # 100 images at 10
    assert [row["features/images"] for row in logged] == [20, 40, 60, 80, 100, 120, 140]
    assert [row["features/seconds"] for row in logged] == [100, 102, 104, 106, 108, 110, 112]
    rates = [row.get("features/images_per_second") for row in logged]
    assert rates[0] is None and rates[1:] == pytest.approx(6 * [10])


def test_rate_is_the_mean_after_warmup(run_progress):
    assert run_progress(100, 1, 2, 3).rate == pytest.approx(60 / 6)


def test_rate_after_one_step_is_none(run_progress, capsys):
    assert run_progress(3).rate is None
    assert capsys.readouterr().out == ""


def test_pipe_gets_a_line_per_minute_without_control_characters(run_progress, capsys):
    run_progress(9, 1, 40, 30, 1, 62, 100)
    out = capsys.readouterr().out
    assert re.findall("^([0-9]+ of [0-9]+) images", out, re.MULTILINE) == [
        "40 of 140",  # once the rate is known
        "80 of 140",  # 70 s later
        "120 of 140",  # 63 s later
    ]
    assert len(out.splitlines()) == 3
    assert not set("\x1b\b\r") & set(out)


def test_terminal_gets_a_progress_bar(run_progress, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    run_progress(100, 2, 2, 2, 2, 2, 2)
    estimate, bar = terminal.getvalue().split("\n", 1)
    assert "10 images/s" in estimate
    first, *_, last = bar.strip("\r").split("\r")
    assert "40/140" in first and "140/140" in last


def test_total_may_shrink(run_progress, monkeypatch, capsys):
    reporter = run_progress(10)
    reporter.total -= 60
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 1012.0))
    reporter.update(20)
    assert capsys.readouterr().out.startswith("40 of 80 images")


def test_run_prints_and_logs_progress(offline_runs):
    run = offline_runs["resnet50_fashion"]
    assert not set("\x1b\b") & set(run.out + run.err)
    assert "Features: 680 images, each processed once" in run.out
    assert "40 of 680 images" in run.out
    rows = [row for row in run.wandb.rows if "features/images" in row]
    # One row per complete file of 20 images: 140 training, 140 validation and 400 test images.
    assert [row["features/images"] for row in rows] == [*range(20, 681, 20)]
    assert run.result.metrics["extraction"]["images_per_second"] == pytest.approx(
        rows[-1]["features/images_per_second"]
    )
