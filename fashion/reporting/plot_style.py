"""The style of all figures: colors, fonts, truncated names."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

import matplotlib.font_manager
import matplotlib.style

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"  # colorblind-safe (Okabe & Ito 2008)
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
    "text.parse_math": False,  # dollar signs in names are not formulas
}
# The later fonts supply characters that the first one lacks: Linux, Windows, macOS.
FALLBACK_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Hiragino Sans GB",
)


@contextlib.contextmanager
def plot_style() -> Iterator[None]:
    """Apply `STYLE` in place of the user's style; warn about characters that no font contains."""
    installed = matplotlib.font_manager.get_font_names()
    fonts = {"font.family": [font for font in FALLBACK_FONTS if font in installed]}
    style = matplotlib.style.context(["default", STYLE, fonts])
    with warnings.catch_warnings(record=True) as caught, style:
        yield
    missing = [warning for warning in caught if str(warning.message).startswith("Glyph ")]
    if missing:
        print(
            "WARNING: some characters in class or file names are missing from the installed fonts "
            "and are not shown in the figures.",
            file=sys.stderr,
        )
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def truncate(name: str, length: int = 20) -> str:
    """Shorten a name to `length` characters, with an ellipsis at its end."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
