"""report.html: a self-contained page with the results of a run, from a Jinja2 template."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fashion.evaluation.metrics import Evaluation, SplitEvaluations
from fashion.reporting.comparison import Comparison
from fashion.reporting.figures import FIGURE_FILES

import jinja2

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Report:
    """The contents of the report.

    Attributes:
        model_name: Name of the model.
        data_name: Name of the data set.
        evaluations: Evaluations of the model.
        best_epoch: Epoch whose weights are used.
        comparison: Comparison with another run.
        figures_dir: Directory that contains the figures.
        training_command: Command that trains the model again.
        prediction_command: Command that classifies an image with the model.
        details: Heading → name → value, for the last tables.
    """

    model_name: str
    data_name: str
    evaluations: SplitEvaluations
    best_epoch: int
    comparison: Comparison
    figures_dir: Path
    training_command: str
    prediction_command: str
    details: Mapping[str, Mapping[str, object]]

    def render(self) -> str:
        """Return the page as HTML with embedded figures."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        test = self.evaluations.test
        return environment.get_template(TEMPLATE).render(
            title=f"{self.model_name} on {self.data_name}",
            accuracy=f"{test.accuracy:.1%}",
            num_images=f"{len(test.labels):,}",
            interval=_format_interval(test),
            best_epoch=self.best_epoch,
            metric_rows=_metric_rows(self.evaluations),
            comparison=self.comparison,
            training_command=self.training_command,
            prediction_command=self.prediction_command,
            placeholders=_placeholders(self.training_command, self.prediction_command),
            class_rows=_class_rows(test),
            figures={
                name: base64.b64encode((self.figures_dir / name).read_bytes()).decode()
                for name in FIGURE_FILES
            },
            detail_rows={heading: _detail_rows(values) for heading, values in self.details.items()},
        )


def _format_interval(evaluation: Evaluation) -> str:
    low, high = evaluation.accuracy_ci95
    return f"{low:.1%} to {high:.1%}"


def _metric_rows(evaluations: SplitEvaluations) -> list[list[str]]:
    return [
        [
            name,
            f"{evaluation.accuracy:.2%}",
            _format_interval(evaluation),
            f"{evaluation.loss:.3f}",
            f"{evaluation.expected_calibration_error:.3f}",
            f"{len(evaluation.labels):,}",
        ]
        for name, evaluation in evaluations._asdict().items()
    ]


def _class_rows(evaluation: Evaluation) -> list[list[str]]:
    rows = []
    for scores in evaluation.per_class:
        percentages = (f"{x:.1%}" for x in (scores.precision, scores.recall, scores.f1))
        count = scores.most_confused_count
        confused_with = f"{scores.most_confused_with} ({count})" if count else "–"
        rows.append([scores.name, *percentages, str(scores.support), confused_with])
    return rows


def _placeholders(*commands: str) -> list[str]:
    """Return the words in capitals, each once, such as DATA_DIR."""
    return list(dict.fromkeys(re.findall(r"\b[A-Z][A-Z_]+\b", " ".join(commands))))


def _detail_rows(values: Mapping[str, object]) -> list[list[object]]:
    return [[name, _format_value(value)] for name, value in values.items()]


def _format_value(value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else value
