"""The style of figures, whatever the user's style and the names in them."""

import io

from fashion.reporting.plot_style import plot_style, truncate

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image


def render(*names):
    """Render a figure with names as labels; return its pixels."""
    with plot_style():
        figure = Figure(figsize=(6, 3))
        axes = figure.subplots()
        axes.barh(names, np.arange(len(names)) + 1)
        figure.savefig(buffer := io.BytesIO())
    return np.asarray(Image.open(buffer))


def test_plot_style_overrides_the_users_style():
    images = []
    for settings in {}, {"figure.dpi": 30, "figure.facecolor": "red", "font.size": 30}:
        with matplotlib.rc_context(settings):
            images.append(render("a", "b"))
    np.testing.assert_array_equal(*images)


def test_missing_characters_are_reported_once(capfd):
    render("\ue123\ue124", "\ue125")  # private use characters
    assert capfd.readouterr().err == (
        "WARNING: some characters in class or file names are missing from the installed fonts and "
        "are not shown in the figures.\n"
    )


def test_dollar_signs_are_not_formulas():
    assert render(*(f"$\\{i}$" for i in range(40))).shape[1] == 600


def test_truncate_keeps_short_names_and_shortens_long_ones():
    assert truncate("x" * 20) == "x" * 20
    assert truncate("x" * 100) == "x" * 19 + "…"
    assert truncate("abcdef", 4) == "abc…"
