"""How all pictures look, whatever the user's own style, and whatever names are in them."""

import io

from fashion.cli import predict
from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.metrics import Evaluation
from fashion.reporting import figures, plot_style

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

PHOTO = Image.new("RGB", (20, 20), "white")
IMAGE = np.zeros((28, 28), "uint8")


def test_users_own_style_does_not_show(tmp_path):
    own = [predict.OwnPicture("a.png", PHOTO, IMAGE)]
    drawn = []
    for changes in {}, {"figure.dpi": 30, "figure.facecolor": "red", "font.size": 30}:
        with matplotlib.rc_context(changes):
            predict.save(tmp_path, own, np.eye(10)[:1], CLASS_NAMES)
        drawn.append(np.asarray(Image.open(tmp_path / predict.PICTURE)))
    np.testing.assert_array_equal(*drawn)


def test_letters_that_no_font_has_are_told_of_once(tmp_path, capfd):
    own = [predict.OwnPicture("\u1e000.png", PHOTO, IMAGE)]
    names = ("\ue123\ue124", "x" * 100, *"abcdefgh")  # of private use
    predict.save(tmp_path, own, np.eye(10)[:1], names)
    assert capfd.readouterr().err == (
        "The pictures lack letters of some names: no font here has them\n"
    )
    figure = figures.draw_confusion_matrix(Evaluation(np.eye(10), np.arange(10), names))
    assert figure.axes[0].get_yticklabels()[1].get_text() == "x" * 19 + "…"


def test_names_are_shown_as_they_are(tmp_path):
    names = tuple(f"$\\{i}$" for i in range(40))  # would be formulas, and wrong ones
    own = [predict.OwnPicture("$\\x$.png", PHOTO, IMAGE)]
    predict.save(tmp_path, own, np.eye(40)[30:31], names)
    assert Image.open(tmp_path / predict.PICTURE).width == 1400


def test_small_images_are_side_by_side_and_the_right_way_up():
    image = np.zeros((28, 28), "uint8")
    image[:14, :7] = 255
    with plot_style.our_style():
        figure = Figure(figsize=(4, 2.8))
        axes = figure.subplots()
        plot_style.lay_out(axes, columns=2, rows=1)
        plot_style.put(axes, (1, 0), image, "", "black")
        figure.savefig(written := io.BytesIO())
        pixels = np.asarray(Image.open(written))[:, :, 0]
        (left, top), (right, bottom) = (
            axes.transData.transform(corner) for corner in ((1.07, 0.46), (1.93, 1.32))
        )
    height = pixels.shape[0]
    rows, columns = (
        slice(int(height - top) + 2, int(height - bottom) - 2),
        slice(int(left) + 2, int(right) - 2),
    )
    dark = pixels[rows, columns] < 100
    half, quarter = dark.shape[0] // 2, dark.shape[1] // 4
    assert dark[: half - 3, : quarter - 3].all()
    assert not dark[half + 3 :].any() and not dark[:, quarter + 3 :].any()
