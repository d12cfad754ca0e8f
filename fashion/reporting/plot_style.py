"""How all pictures look: their style, letters, and small images side by side."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from fashion.datasets.dataset import Split
from fashion.evaluation.metrics import Evaluation

import matplotlib.font_manager
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # told apart by all (Okabe & Ito 2008)
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a name is one
}
# Where the first has no letter, one of the others that are installed: Linux, Windows, macOS.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans GB")


@contextlib.contextmanager
def our_style() -> Iterator[None]:
    """Draws with `STYLE`, not the user's own; says if classes have letters of no font."""
    installed = matplotlib.font_manager.get_font_names()
    fonts = {"font.family": [font for font in FONTS if font in installed]}
    style = matplotlib.style.context(["default", STYLE, fonts])
    with warnings.catch_warnings(record=True) as caught, style:
        yield
    missing = [warning for warning in caught if str(warning.message).startswith("Glyph ")]
    if missing:
        print("The pictures lack letters of some names: no font here has them", file=sys.stderr)
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def shortened(name: str, length: int = 20) -> str:
    """As long as there is room for."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def of_mistake(test: Evaluation, images: Split, row: int, length: int = 20) -> str:
    """The title of a test image that was taken for another class, in three short lines."""
    true, predicted = (
        shortened(test.class_names[label], length)
        for label in (test.labels[row], test.predicted[row])
    )
    return f"{true} →\n{predicted} {test.confidence[row]:.0%}\n{images.title(row)[-length:]}"


def lay_out(axes: Axes, columns: float, rows: float) -> None:
    """Makes room for so many small images, on the same axes.

    As many axes as images would take as long to draw as all other pictures of a run.
    """
    axes.set(xlim=(0, columns), ylim=(1.4 * rows, 0), aspect="equal")
    axes.set_axis_off()


def put(axes: Axes, place: tuple[float, float], image: np.ndarray, title: str, colour: str) -> None:
    """Draws a small image, uint8 (28, 28), below up to three lines, at a column and row."""
    left, top = place[0], place[1] * 1.4
    axes.imshow(
        image,
        extent=(left + 0.07, left + 0.93, top + 1.32, top + 0.46),
        cmap="gray_r",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axes.text(left + 0.5, top + 0.43, title, ha="center", va="bottom", fontsize=9.5, color=colour)
