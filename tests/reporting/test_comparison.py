"""A run beside another model's."""

import math
from dataclasses import replace

from fashion.reporting.comparison import HEADER, Contender, compare

import numpy as np
import pytest


def contender(model, correct, positions=None, **changes):
    """A run on as many test images as `correct`, 0 or 1 each, has."""
    correct = np.array(correct, bool)
    positions = np.arange(len(correct)) if positions is None else positions
    of = Contender(
        model=model,
        data_sha256={"a file": "of these bytes"},
        train_images=1760,
        validation_accuracy=0.8125,
        test_accuracy=float(correct.mean()),
        test_interval95=(0.25, 0.5),
        seconds=12.3,
        finished=100.0,
        read_answers=lambda: (positions, correct),
    )
    return replace(of, **changes)


RIGHT = np.ones(400, int)
HALF = np.tile([1, 0], 200)


def test_alone_there_is_a_row_and_no_sentence():
    this = contender("cnn_basic", HALF)
    expected = ["cnn_basic", "1,760", "81.2%", "50.0% (25.0% to 50.0%)", "12 s"]
    for others in [], [contender("cnn_basic", RIGHT)]:  # of the same model
        alone = compare(this, others)
        assert alone.rows == [list(HEADER), expected]
        assert alone.sentence == ""


def test_difference_is_that_of_paired_test_images():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 400)) < [[0.9], [0.8]]
    compared = compare(contender("this", one), [contender("that", other)])
    assert [row[0] for row in compared.rows] == ["model", "that", "this"]
    differences = one.astype(int) - other.astype(int)
    mean = differences.mean()
    half = 1.96 * math.sqrt(np.mean((differences - mean) ** 2) / 399)
    assert compared.sentence == (
        f"On the same 400 test images, this is {100 * mean:.1f} points better than that "
        f"(difference, 95 % interval: {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})."
    )
    back = compare(contender("that", other), [contender("this", one)])
    assert f"that is {100 * mean:.1f} points worse than this" in back.sentence


def test_other_data_are_not_compared():
    other = contender("other", RIGHT, data_sha256={"a file": "of other bytes"})
    assert len(compare(contender("this", HALF), [other]).rows) == 2


def test_the_last_of_the_others_counts():
    others = [
        contender("first", RIGHT, finished=1.0),
        contender("last", RIGHT, finished=3.0),
        contender("second", RIGHT, finished=2.0),
        contender("this", RIGHT, finished=4.0),
        contender("elsewhere", RIGHT, finished=5.0, data_sha256={}),
    ]
    compared = compare(contender("this", HALF), iter(others))
    assert [row[0] for row in compared.rows[1:]] == ["last", "this"]
    assert "than last" in compared.sentence


@pytest.mark.parametrize(
    "positions", [np.arange(400)[::-1], np.arange(401), np.arange(1, 401)], ids=str
)
def test_other_test_images_stand_beside_without_a_difference(positions):
    other = contender("other", RIGHT, positions=positions)
    compared = compare(contender("this", HALF), [other])
    assert len(compared.rows) == 3 and compared.sentence == ""


def test_a_handful_of_differences_is_no_basis_for_an_interval():
    for different, said in (9, False), (10, True):
        other = RIGHT.copy()
        other[:different] = 0
        compared = compare(contender("this", RIGHT), [contender("other", other)])
        assert bool(compared.sentence) == said


@pytest.mark.parametrize("error", [OSError, ValueError, IndexError])
def test_answers_that_cannot_be_read_are_no_reason_to_fail(error):
    def fail():
        raise error

    other = contender("other", RIGHT, read_answers=fail)
    compared = compare(contender("this", HALF), [other])
    assert len(compared.rows) == 3 and compared.sentence == ""


def test_second_of_two_runs_stands_beside_the_first(offline_runs):
    """With the interval of the paired difference, from the runs' own files."""
    first, second = (
        np.loadtxt(offline_runs[s].result.folder / "predictions.csv", delimiter=",", skiprows=1).T
        for s in ("resnet50_fashion", "cnn_basic")
    )
    assert first[:2].tolist() == second[:2].tolist()
    differences = (second[2] == second[1]).astype(int) - (first[2] == first[1]).astype(int)
    count, mean = len(differences), np.mean(differences)
    half = 1.96 * math.sqrt(np.mean((differences - mean) ** 2) / (count - 1))
    sentence = (
        f"On the same 400 test images, cnn_basic is {100 * mean:.1f} points better than "
        f"resnet50_fashion (difference, 95 % interval: {100 * (mean - half):+.1f} to "
        f"{100 * (mean + half):+.1f})."
    )
    out = offline_runs["cnn_basic"].out
    assert sentence in out
    assert "resnet50_fashion" in out
    assert sentence in (offline_runs["cnn_basic"].result.folder / "report.html").read_text()
    assert "On the same" not in offline_runs["resnet50_fashion"].out
