"""report.html: one self-contained page for a colleague."""

import base64
import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fashion.evaluation.metrics import Evaluation, Evaluations
from fashion.reporting.comparison import Comparison

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1200px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.6em; margin-bottom: 0; }}
h2 {{ font-size: 1.2em; margin: 2em 0 .5em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25em 1em .25em 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }}
</style>
<h1>{title}</h1>
<p>{headline}</p>
{sections}
</html>
"""


@dataclass(frozen=True)
class Page:
    """What is to be seen on it."""

    model: str
    data: str  # the data set's name
    evaluations: Evaluations
    best_epoch: int
    comparison: Comparison
    pictures: Path  # the folder that has them
    settings: Mapping[str, Mapping[str, object]]  # heading → name → value

    def render(self) -> str:
        """The page, with its pictures inside."""
        test = self.evaluations.test
        low, high = test.interval95
        rows, sentence = self.comparison.rows, self.comparison.sentence
        sections = {
            "Results": _table(_results(self.evaluations)),
            "Beside another model's last run": f"{_table(rows)}<p>{html.escape(sentence)}</p>",
            "By class, on the test images": _table(_classes(test)),
            "What is confused with what": self._picture("confusion_matrix.png"),
            "Most confident mistakes: the model's, or the label's": self._picture("mistakes.png"),
            "The training images most like them": self._picture("neighbours.png"),
            "A map of the test images": self._picture("map.png"),
            "How far the confidence can be trusted": self._picture("reliability.png"),
            "Training": self._picture("curves.png"),
        }
        for heading, values in self.settings.items():
            sections[heading] = _table(_settings(values), header=False)
        return PAGE.format(
            title=html.escape(f"{self.model} on {self.data}"),
            headline=f"<b>{test.accuracy:.1%}</b> of {len(test.labels):,} test images right (95 % "
            f"interval {low:.1%} to {high:.1%}), with the weights of epoch {self.best_epoch}.",
            sections="\n".join(f"<h2>{title}</h2>\n{body}" for title, body in sections.items()),
        )

    def _picture(self, name: str) -> str:
        content = base64.b64encode((self.pictures / name).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{content}" alt="{name}">'


def _table(rows: Iterable[Iterable[object]], header: bool = True) -> str:
    lines = []
    for i, row in enumerate(rows):
        tag = "th" if header and i == 0 else "td"
        cells = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _results(evaluations: Evaluations) -> list[list[str]]:
    rows = [["", "accuracy", "95 % interval", "loss", "calibration error", "images"]]
    for name, part in evaluations._asdict().items():
        low, high = part.interval95
        rows.append(
            [
                name,
                f"{part.accuracy:.2%}",
                f"{low:.1%} to {high:.1%}",
                f"{part.loss:.3f}",
                f"{part.expected_calibration_error:.3f}",
                f"{len(part.labels):,}",
            ]
        )
    return rows


def _classes(test: Evaluation) -> list[list[str]]:
    rows = [["class", "precision", "recall", "F1", "images", "most often taken for"]]
    for scores in test.per_class:
        shares = (f"{share:.1%}" for share in (scores.precision, scores.recall, scores.f1))
        other = f"{scores.confused_with} ({scores.confused})" if scores.confused else "–"
        rows.append([scores.name, *shares, str(scores.support), other])
    return rows


def _settings(values: Mapping[str, object]) -> list[list[object]]:
    return [
        [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value]
        for name, value in values.items()
    ]
