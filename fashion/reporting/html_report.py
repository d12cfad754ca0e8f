"""report.html: a self-contained page with the results of a run, from a Jinja2 template."""

import base64
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
        details: Heading → name → value, for the last tables.
    """

    model_name: str
    data_name: str
    evaluations: SplitEvaluations
    best_epoch: int
    comparison: Comparison
    figures_dir: Path
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


def _detail_rows(values: Mapping[str, object]) -> list[list[object]]:
    return [
        [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value]
        for name, value in values.items()
    ]
