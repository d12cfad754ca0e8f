"""The life of a run: output directory, stages, metadata, error stream."""

from fashion.errors import UserError
from fashion.tracking.run import Run

import pytest
from helpers.scripts import SAMPLE, parse_options

import cnn_basic


def enter(output):
    with Run(parse_options(cnn_basic, "--output-dir", output)):
        pass


def test_output_dir_is_created(tmp_path, capsys):
    enter(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
    assert capsys.readouterr().out == ""


def test_files_to_be_overwritten_are_listed(tmp_path, capsys):
    for name in "report.html", "model.keras", "notes.txt":
        (tmp_path / name).touch()
    enter(tmp_path)
    expected = f"Existing files in {tmp_path} will be overwritten: model.keras, report.html\n"
    assert capsys.readouterr().out == expected


def test_output_dir_that_is_a_file_raises_in_one_line(tmp_path, command_line):
    (tmp_path / "file").touch()
    done = command_line(cnn_basic, "--data-dir", SAMPLE, "--output-dir", "file")
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("cnn_basic.py: error: --output-dir: ")


def test_directory_with_the_name_of_an_output_file_raises(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(
        UserError,
        match=f"^--output-dir: {tmp_path / 'metrics.json'} is a directory; "
        "remove it, or use another output directory$",
    ):
        enter(tmp_path)


def test_stages_are_timed_and_sum_up_to_less_than_the_total(offline_run):
    seconds = dict(offline_run.result.metrics["seconds"])
    total = seconds.pop("total")
    stages = {"imports", "data", "training", "evaluation"}
    if offline_run.result.metrics["model"] == "resnet50_fashion":
        stages |= {"backbone", "extraction"}
    assert seconds.keys() == stages
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= total


def test_successful_run_writes_nothing_to_stderr(offline_run):
    assert offline_run.err == ""
    assert offline_run.out.startswith("Data: ")
