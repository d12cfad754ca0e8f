"""`--predict`: predictions for photos, output files, error messages."""

import shutil

from fashion import predict

import pytest
from helpers.photos import check_photos, draw_garment, printed_classes, save_image
from helpers.scripts import SAMPLE, directory_contents, train_in_process
from PIL import Image

import cnn_basic


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output directory of the baseline, trained on the sample."""
    output_dir = tmp_path_factory.mktemp("trained") / "output"
    train_in_process(cnn_basic, "--data-dir", SAMPLE, "--epochs", 20, "--output-dir", output_dir)
    return output_dir


def test_baseline_classifies_photos(trained, command_line, sample, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(predict, "MAX_PLOTTED", 5)  # plotting is slow
    photos = tmp_path_factory.mktemp("photos")
    check_photos(command_line, cnn_basic, trained, photos, sample.test)


def test_unusable_files_are_skipped_with_a_message(trained, command_line, tmp_path):
    directory = tmp_path / "photos"
    directory.mkdir()
    save_image(directory / "a.png", Image.fromarray(draw_garment()))
    (directory / "b.png").write_text("no image")
    save_image(directory / "c.png", Image.new("L", (50, 50), "gray"))
    save_image(directory / "d.png", Image.new("1", (10_000, 9_000)))  # 90 million pixels
    (directory / "notes.txt").write_text("ignored")
    paths = (directory, tmp_path / "absent.jpg")
    done = command_line(cnn_basic, "--output-dir", trained, "--predict", *paths)
    assert done.code == 1
    assert list(printed_classes(done.out)) == ["a.png"]
    lines = [line for line in done.err.splitlines() if "skipped:" in line or "error:" in line]
    names = [line.split(":")[0].rsplit("/", 1)[-1] for line in lines[:-1]]
    assert names == ["b.png", "c.png", "d.png", "absent.jpg"]
    assert lines[-1] == "cnn_basic.py: error: 4 of 5 images were skipped, as listed above"
    assert "Traceback" not in done.err and "notes.txt" not in done.err


def test_empty_directory_is_an_error(trained, command_line, tmp_path):
    (tmp_path / "empty").mkdir()
    done = command_line(cnn_basic, "--predict", tmp_path / "empty", "--output-dir", trained)
    assert done.code == 1
    message = "empty contains no image files; give files, or a directory that contains some\n"
    assert done.err.endswith(message)


def test_memory_is_flat_as_only_plotted_images_keep_a_thumbnail(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "MAX_PLOTTED", 2)
    files = [
        save_image(tmp_path / f"{i}.png", Image.fromarray(draw_garment()).resize((600, 500)))
        for i in range(4)
    ]
    thumbnails = [user_image.thumbnail for user_image in predict.read_images(files)]
    assert [image.size for image in thumbnails[:2]] == [(256, 213)] * 2
    assert thumbnails[2:] == [None, None]


def test_predict_keeps_the_runs_files_and_an_error_keeps_existing_ones(
    trained, command_line, tmp_path
):
    shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("user_*"))
    before = directory_contents(tmp_path / "model")
    (tmp_path / "model" / predict.PREDICTIONS_PNG).mkdir()
    save_image(tmp_path / "a.png", Image.fromarray(draw_garment()))
    argv = ("--predict", tmp_path / "a.png", "--output-dir", tmp_path / "model")
    done = command_line(cnn_basic, *argv)
    assert done.code == 1
    (line,) = (line for line in done.err.splitlines() if "error:" in line)
    assert f"--output-dir: cannot write to {tmp_path / 'model'}: " in line
    (tmp_path / "model" / predict.PREDICTIONS_PNG).rmdir()
    assert command_line(cnn_basic, *argv).code == 0
    after = directory_contents(tmp_path / "model")
    names = {path.name for path in after.keys() - before.keys()}
    assert names == {predict.PREDICTIONS_CSV, predict.PREDICTIONS_PNG}
    assert before.items() <= after.items()
