"""report.html: a self-contained page with the results of a run, without private paths."""

import base64
import dataclasses
import os
import re
import shlex
from pathlib import Path

from fashion import machine
from fashion.options import SharedOptions, config, flag
from fashion.results.comparison import Comparison
from fashion.results.evaluation import Evaluation, format_interval
from fashion.results.figures import FIGURES
from fashion.run import Run

import jinja2


def render_report(
    run: Run, evaluations: dict[str, Evaluation], comparison: Comparison, figures_dir: Path
) -> str:
    """Return the page as HTML with embedded figures."""
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, undefined=jinja2.StrictUndefined)
    metadata, options, test = run.metadata, run.options, evaluations["test"]
    data, weights = metadata["data"], metadata["weights"]
    details = {
        "Options": public_config(options),
        "Data": data | {"source": public_source(data["source"], options)},
        "Weights": weights | {"source": Path(weights["source"]).name},
        "Parameters": metadata["parameters"],
        "Temperature scaling": metadata["calibration"],
        "Time, in seconds": metadata["seconds"],
        "Memory": metadata["memory"],
        "Versions and hardware": metadata["versions"],
    }
    prediction_command = f"python {options.script_name}.py --predict photo.jpg"
    if options.output_dir != type(options)().output_dir:
        prediction_command += " --output-dir OUTPUT_DIR"
    commands = {
        "Train the model again": training_command(options),
        "Classify images with it": prediction_command,
    }
    placeholders = re.findall(r"\b[A-Z][A-Z_]+\b", " ".join(commands.values()))
    paths = [path for path in map(figures_dir.joinpath, FIGURES) if path.exists()]
    return template.render(
        title=f"{options.script_name} on {run.data.name}",
        accuracy=f"{test.accuracy:.1%}",
        num_images=f"{len(test.labels):,}",
        interval=format_interval(test.accuracy_ci95),
        best_epoch=metadata["best_epoch"],
        metric_rows=[_metric_row(name, evaluation) for name, evaluation in evaluations.items()],
        class_rows=[_class_row(scores) for scores in test.per_class],
        comparison=comparison,
        commands=commands,
        placeholders=list(dict.fromkeys(placeholders)),
        figures={path.name: base64.b64encode(path.read_bytes()).decode() for path in paths},
        details={
            heading: [(name, _format_value(value)) for name, value in values.items()]
            for heading, values in details.items()
        },
    )


def _metric_row(name: str, evaluation: Evaluation) -> list[str]:
    return [
        name,
        f"{evaluation.accuracy:.2%}",
        format_interval(evaluation.accuracy_ci95),
        f"{evaluation.loss:.3f}",
        f"{evaluation.expected_calibration_error:.3f}",
        f"{len(evaluation.labels):,}",
    ]


def _class_row(scores: dict[str, object]) -> list[object]:
    percentages = [f"{scores[name]:.1%}" for name in ("precision", "recall", "f1")]
    confused_with, count = scores["most_confused_with"], scores["most_confused_count"]
    confusion = f"{confused_with} ({count})" if count else "none"
    return [scores["class"], *percentages, scores["support"], confusion]


def _format_value(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return ", ".join(value) or "none" if isinstance(value, list) else value


def training_command(options: SharedOptions) -> str:
    """Return the command that trains the model again, from the beginning if it was resumed.

    It contains the recipe, and the options that differ from the recipe's values, without those that
    do not affect the result; private paths are replaced as in `public_config`.
    """
    values = public_config(options)
    defaults = config(type(options)()) | options.recipes.get(str(values.get("recipe")), {})
    argv = []
    # The recipe first, the others in the order of the fields.
    for field in sorted(dataclasses.fields(options), key=lambda field: field.name != "recipe"):
        name, value = field.name, values[field.name]
        # An option is None only by default.
        if not field.metadata["affects_results"] or value in (None, defaults[name]):
            continue
        if isinstance(value, bool):
            argv.append(flag(name if value else f"no_{name}"))
        else:
            argv += [flag(name), str(value)]
    return shlex.join(["python", f"{options.script_name}.py", *argv])


def public_config(options: SharedOptions) -> dict[str, object]:
    """Return all options by name, with private paths replaced by names such as DATA_DIR."""
    values = config(options)
    for name, value in vars(options).items():
        if isinstance(value, Path) and value != type(options)().output_dir:
            values[name] = name.upper()
    if values.get("weights") not in (None, "imagenet", "random"):
        values["weights"] = "WEIGHTS"
    return values


def public_source(source: str, options: SharedOptions) -> str:
    """Replace `--data-dir`, the home or the Keras directory in the source of the data by a name."""
    home, keras_home = os.path.expanduser("~"), machine.keras_home()
    for name, path in ("DATA_DIR", options.data_dir), ("~", home), ("KERAS_HOME", keras_home):
        source = re.sub(rf"^{re.escape(str(path))}(?=[ /\\])", name, source)
    return source
