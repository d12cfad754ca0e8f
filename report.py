"""What a run leaves behind, the same for both scripts: W&B, pictures, report.html, metrics.json.

A run's `record` is a dictionary that grows into `metrics.json`. An `Evaluation` for each split
holds the model's probabilities; every figure, table and picture is drawn from these two.
"""

import argparse
import base64
import contextlib
import csv
import html
import json
import math
import netrc
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import common  # before Keras: it chooses the backend
import keras
import matplotlib.style
import numpy as np
import tensorflow as tf
import wandb
from common import CLASS_NAMES, FashionMNIST, UserError
from matplotlib.figure import Figure

PICTURES = ("curves.png", "confusion_matrix.png", "mistakes.png", "reliability.png")
OUTPUT_FILES = (
    *("model.keras", "history.csv", "metrics.json", "predictions.csv", "report.html"),
    *PICTURES,
)

# -------------------------------------------------------------------------------- evaluation

Z95 = 1.959964  # standard normal quantile of 97.5 %


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share that was found among so many (Wilson 1927)."""
    square = Z95 * Z95 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return centre - half, centre + half


@dataclass(frozen=True)
class Evaluation:
    """A model's probabilities, float (N, 10), for images with these labels, int (N,)."""

    probabilities: np.ndarray
    labels: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each image, int (N,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the likeliest class, float (N,)."""
        return self.probabilities.max(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the right one, bool (N,)."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """The share of images whose likeliest class is the right one."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """The mean cross-entropy in nats; probabilities below 1e-7 count as 1e-7, as in Keras."""
        of_label = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(of_label, 1e-7), dtype="float64").mean())

    @property
    def interval95(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy."""
        return wilson_interval(self.accuracy, len(self.labels))

    @cached_property
    def calibration(self) -> list[dict[str, float]]:
        """For each of 15 bins of confidence that holds images: images, confidence, accuracy."""
        bins = np.minimum((self.confidence * 15).astype(int), 14)
        return [
            {
                "images": int(np.sum(bins == i)),
                "confidence": float(self.confidence[bins == i].mean(dtype="float64")),
                "accuracy": float(self.correct[bins == i].mean()),
            }
            for i in np.unique(bins)
        ]

    @property
    def expected_calibration_error(self) -> float:
        """How far confidence and accuracy are apart, on average (Guo et al., ICML 2017)."""
        rows = self.calibration
        gaps = (row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows)
        return sum(gaps) / len(self.labels)

    @cached_property
    def coverage(self) -> list[dict[str, float]]:
        """The accuracy on the surest 1 %, 2 % … 100 % of the images: coverage, accuracy."""
        surest_first = self.correct[np.argsort(-self.confidence, kind="stable")]
        rows = []
        for percent in range(1, 101):
            images = math.ceil(len(self.labels) * percent / 100)
            accuracy = float(surest_first[:images].mean())
            rows.append({"coverage": percent / 100, "accuracy": accuracy})
        return rows

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """How many images of each class (row) were taken for each class (column), int (10, 10)."""
        matrix = np.zeros((10, 10), int)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    @cached_property
    def per_class(self) -> list[dict[str, object]]:
        """For each class: precision, recall, F1, support, and what it is most often taken for.

        A share of nothing counts as 0, as in scikit-learn.
        """
        rows = []
        for i, name in enumerate(CLASS_NAMES):
            hits, taken_for = int(self.confusion_matrix[i, i]), self.confusion_matrix[i].copy()
            support, answers = int(taken_for.sum()), int(self.confusion_matrix[:, i].sum())
            taken_for[i] = 0
            rows.append(
                {
                    "class": name,
                    "precision": hits / max(answers, 1),
                    "recall": hits / max(support, 1),
                    "f1": 2 * hits / max(support + answers, 1),
                    "support": support,
                    "confused_with": CLASS_NAMES[taken_for.argmax()] if taken_for.any() else "",
                    "confused": int(taken_for.max()),
                }
            )
        return rows

    def mistakes(self, most: int) -> np.ndarray:
        """Where the model is wrong, the most confident mistakes first: int (at most `most`,)."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most]

    def top3(self, image: int) -> str:
        """Such as "Shirt 61 %, Coat 30 %, Pullover 8 %"."""
        probabilities = self.probabilities[image]
        likeliest = np.argsort(-probabilities, kind="stable")[:3]
        return ", ".join(f"{CLASS_NAMES[i]} {probabilities[i]:.0%}" for i in likeliest)

    def record(self) -> dict[str, object]:
        """What a run notes about each evaluation."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "interval95": self.interval95,
            "expected_calibration_error": self.expected_calibration_error,
        }


# ------------------------------------------------------------------------ Weights & Biases


@contextlib.contextmanager
def wandb_run(
    options: argparse.Namespace, record: dict[str, dict], run_id: str | None = None
) -> Iterator[wandb.Run]:
    """A W&B run that is open within the `with`, and marked as failed if the block raises.

    With the id of an earlier run it continues that.

    (A `wandb.Run` itself can be used so, but prints a traceback then, even for Ctrl-C.)
    """
    run = _start_run(options, record, run_id)
    try:
        try:
            _log_inputs(run, record)
        except OSError as error:
            raise UserError(f"W&B: {error}") from None
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _start_run(
    options: argparse.Namespace, record: dict[str, dict], run_id: str | None
) -> wandb.Run:
    """Opens the run; never prompts, never fails for want of a key or a network.

    Its config is every option, and what `record` has so far on versions, data and weights.
    """
    config = record["config"] | {name: record[name] for name in ("versions", "data", "weights")}
    # A run's files wait for their upload beside it, and not in a folder of the user's home.
    staging = Path(os.environ.get("WANDB_DIR", ""), "wandb").absolute()
    os.environ.setdefault("WANDB_DATA_DIR", str(staging))
    try:
        settings = wandb.setup().settings
    except ValueError as error:
        raise UserError(f"W&B's settings: {' '.join(str(error).split())}") from None
    # The settings' mode is "online" unless WANDB_MODE or `wandb offline` says otherwise.
    mode = settings.mode if options.wandb == "auto" else options.wandb
    if mode == "online" and not _has_wandb_key(settings.base_url):
        mode = "offline"
        if options.wandb == "online":
            print("W&B: no key, so this run stays offline; `wandb login` configures one.")

    def init(mode: str, **settings: object) -> wandb.Run:
        return wandb.init(
            mode=mode,
            id=run_id,
            resume="allow" if run_id else None,
            project=options.project,
            # Only runs on the same images compare: a group is what has the same training images.
            group=f"{record['data']['train']}-train-images",
            job_type="train",
            tags=["fashion-mnist"],
            config=config,
            settings=wandb.Settings(**settings),
        )

    if mode != "online":
        return init(mode, silent=True)
    try:
        # wandb adds some 10 s to this time limit.
        return init(mode, init_timeout=8)
    except wandb.Error as error:
        print(f"W&B: not online, so this run stays offline ({str(error).splitlines()[0]})")
        return init("offline", silent=True)


def _has_wandb_key(base_url: str) -> bool:
    """Whether wandb would find credentials: in the environment or the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(base_url).hostname
    for path in os.environ.get("NETRC"), "~/.netrc", "~/_netrc":
        with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
    return False


def _log_inputs(run: wandb.Run, record: dict[str, dict]) -> None:
    """Logs the code that runs, and the data set as digests and source without its images."""
    if run.disabled:
        return
    with tempfile.TemporaryDirectory() as folder:  # log_code walks all of the folder it is given
        script, shared = f"{record['model']}.py", ("common.py", "predict.py", "report.py")
        for name in script, *shared, "requirements.txt":
            with contextlib.suppress(FileNotFoundError):  # a user's own script may lie elsewhere
                shutil.copy(Path(__file__).with_name(name), folder)
        name = f"source-{record['model']}"
        run.log_code(folder, name, include_fn=lambda path: True)
    data = wandb.Artifact("fashion-mnist", type="dataset", metadata=record["data"])
    with data.new_file("SHA256SUMS") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in record["data"]["sha256"].items())
    run.log_artifact(data)


class EpochLog(keras.callbacks.Callback):
    """Notes each epoch's metrics, learning rate and seconds, and sends them to W&B.

    `wandb.integration.keras.WandbMetricsLogger` is not used: with `steps_per_execution` it counts
    executions for steps, and so logs a wrong learning rate from a schedule.
    """

    advice = "try a lower --learning-rate"  # when the loss is no longer a number

    def __init__(self, run: wandb.Run, rows: Iterable[dict[str, float]] = ()) -> None:
        """`run` is the open W&B run; `rows` has, and will have, a dictionary for each epoch."""
        super().__init__()
        self.run = run
        self.rows = list(rows)
        run.define_metric("epoch/epoch")
        run.define_metric("epoch/*", step_metric="epoch/epoch")
        run.define_metric("best/val_accuracy", step_metric="epoch/epoch")
        run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max,last")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes when, and at which learning rate, the epoch begins."""
        self.start = time.perf_counter()
        self.learning_rate = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keeps and logs the epoch's row.

        Raises:
            UserError: the loss is no longer a number.
        """
        row = {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}}
        row |= {"learning_rate": self.learning_rate, "seconds": time.perf_counter() - self.start}
        # The last step of an epoch shows in the validation loss alone.
        for loss in row["loss"], row["val_loss"]:
            if not math.isfinite(loss):
                raise UserError(f"the loss in epoch {epoch + 1} is {loss}: {self.advice}")
        self.rows.append(row)
        # Sweeps can maximise what is logged, not the maximum of what is logged.
        best = {"best/val_accuracy": self.best["val_accuracy"]}
        self.run.log({f"epoch/{name}": value for name, value in row.items()} | best)
        self.run.summary["best/epoch"] = self.best["epoch"]

    @property
    def best(self) -> dict[str, float]:
        """The row of the (first) epoch with the best validation accuracy."""
        return max(self.rows, key=lambda row: row["val_accuracy"])


def log_evaluations(
    run: wandb.Run,
    evaluations: dict[str, Evaluation],
    data: FashionMNIST,
    history: list[dict[str, float]],
) -> None:
    """Logs the charts and tables that show how good the model is and where it is wrong."""
    if run.disabled:
        return
    test = evaluations["test"]

    def table(rows: np.ndarray) -> wandb.Table:
        columns = ["image", "true", "predicted", "confidence", "correct", "top three", "position"]
        table = wandb.Table(columns)
        for i in rows:
            enlarged = data.test.images[i].repeat(4, axis=0).repeat(4, axis=1)
            classes = CLASS_NAMES[test.labels[i]], CLASS_NAMES[test.predicted[i]]
            row = [float(test.confidence[i]), bool(test.correct[i]), test.top3(i)]
            table.add_data(wandb.Image(enlarged), *classes, *row, int(data.test.positions[i]))
        return table

    def lines(rows: dict[str, list[dict]], x: str, y: str, title: str) -> object:
        xs, ys = ([[row[name] for row in line] for line in rows.values()] for name in (x, y))
        return wandb.plot.line_series(xs, ys, keys=list(rows), title=title, xname=x)

    def curves(metric: str) -> object:
        epochs = {
            split: [{"epoch": row["epoch"], metric: row[prefix + metric]} for row in history]
            for split, prefix in (("train", ""), ("validation", "val_"))
        }
        return lines(epochs, "epoch", metric, f"{metric.capitalize()} by epoch")

    held_out = {name: evaluations[name] for name in ("validation", "test")}
    perfect = [{"confidence": i, "accuracy": i} for i in (0, 1)]
    by_class = [np.flatnonzero(test.labels == i)[:10] for i in range(10)]
    run.log(
        {
            "report/accuracy": curves("accuracy"),
            "report/loss": curves("loss"),
            "test/confusion_matrix": wandb.plot.confusion_matrix(
                y_true=test.labels.tolist(),
                preds=test.predicted.tolist(),
                class_names=list(CLASS_NAMES),
                title="Test images by class",
            ),
            "test/per_class": wandb.Table(
                list(test.per_class[0]), [list(row.values()) for row in test.per_class]
            ),
            "test/mistakes": table(test.mistakes(100)),
            "test/examples": table(np.concatenate(by_class)),
            "test/reliability": lines(
                {name: part.calibration for name, part in held_out.items()} | {"ideal": perfect},
                *("confidence", "accuracy", "Accuracy at each confidence"),
            ),
            "test/coverage": lines(
                {name: part.coverage for name, part in held_out.items()},
                *("coverage", "accuracy", "Accuracy on the surest share of the images"),
            ),
        }
    )


# ---------------------------------------------------------------------------------- pictures

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
}


def draw_curves(history: list[dict[str, float]], best_epoch: int) -> Figure:
    """Loss and accuracy, train beside validation; learning rate; seconds."""
    figure = Figure(figsize=(12, 8))
    epochs = [row["epoch"] for row in history]
    titles = {
        "accuracy": "Accuracy",
        "loss": "Loss",
        "learning_rate": "Learning rate at the epoch's start",
        "seconds": "Seconds",
    }
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        marker = "o" if len(epochs) <= 50 else ""
        axes.plot(epochs, [row[metric] for row in history], color=BLUE, marker=marker)
        if f"val_{metric}" in history[0]:
            axes.lines[0].set_label("train, during the epoch")
            validation = [row[f"val_{metric}"] for row in history]
            axes.plot(epochs, validation, color=ORANGE, marker=marker, label="validation")
            axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch, {best_epoch}")
            axes.legend()
        else:
            axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_confusion_matrix(test: Evaluation) -> Figure:
    """Each class's images by predicted class, in percent of the row."""
    figure = Figure(figsize=(12, 10))
    axes = figure.subplots()
    percent = 100 * test.confusion_matrix / np.maximum(test.confusion_matrix.sum(1), 1)[:, None]
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (true, predicted), value in np.ndenumerate(percent):
        text = f"{value:.1f}" if test.confusion_matrix[true, predicted] else "·"
        colour = "white" if value > 50 else "black"
        axes.text(predicted, true, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(10), CLASS_NAMES, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(10), CLASS_NAMES)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"Of {len(test.labels):,} test images, percent of each class (row)")
    axes.grid(False)
    return figure


def draw_mistakes(test: Evaluation, split: common.Split) -> Figure:
    """The most confident mistakes, with their numbers in the data set's file."""
    figure = Figure(figsize=(12, 11))
    wrong = test.mistakes(40)
    figure.suptitle(
        f"The {len(wrong)} most confident of {np.sum(~test.correct):,} mistakes "
        f"on {len(test.labels):,} test images: true → predicted",
        **{"x": 0.01, "ha": "left", "fontsize": 13},
    )
    grid = figure.subplots(5, 8).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, i in zip(grid, wrong, strict=False):
        axes.imshow(split.images[i], cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        true, predicted = CLASS_NAMES[test.labels[i]], CLASS_NAMES[test.predicted[i]]
        title = f"{true} →\n{predicted} {test.confidence[i]:.0%}\nimage {split.positions[i]}"
        axes.set_title(title, loc="center", fontsize=9.5)
    return figure


def draw_reliability(validation: Evaluation, test: Evaluation) -> Figure:
    """Whether the confidence can be trusted, and the accuracy where the model is sure."""
    figure = Figure(figsize=(12, 6.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram = figure.add_subplot(grid[0, 0])
    counts = figure.add_subplot(grid[1, 0], sharex=diagram)
    coverage = figure.add_subplot(grid[:, 1])
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="ideal")
    for name, part, colour, marker in (
        ("validation", validation, ORANGE, "s"),
        ("test", test, BLUE, "o"),
    ):
        x, y = ([row[k] for row in part.calibration] for k in ("confidence", "accuracy"))
        intervals = [wilson_interval(row["accuracy"], row["images"]) for row in part.calibration]
        error = f"{name}, expected calibration error {part.expected_calibration_error:.3f}"
        diagram.plot(x, y, color=colour, marker=marker, label=error)
        diagram.vlines(x, *np.transpose(intervals), color=colour, alpha=0.4)
        x, y = ([row[k] for row in part.coverage] for k in ("coverage", "accuracy"))
        coverage.plot(x, y, color=colour, label=f"{name}, all: {part.accuracy:.1%}")
    diagram.set(title="Reliability: below the line is too sure", ylabel="accuracy", ylim=(0, 1.02))
    diagram.legend(fontsize=11)
    counts.hist(test.confidence, bins=15, range=(0, 1), color=BLUE)
    counts.set(xlabel="confidence", ylabel="test images")
    coverage.set(title="Accuracy on the surest images", xlabel="share of the images, surest first")
    coverage.set(ylabel="accuracy", xlim=(0, 1.02))
    coverage.legend(fontsize=11)
    return figure


# ------------------------------------------------------------------------------- comparison


def compare(
    folder: Path, record: dict[str, dict], test: Evaluation, positions: np.ndarray
) -> tuple[list[list[str]], str]:
    """This run beside the last one of another model on the same data, in an output folder beside.

    Models are the two scripts', and the fine-tuned one.

    `positions` are those of the test images in the data set's file.

    Returns:
        The rows of a table, the first its header, and a sentence on the difference, or "".
    """
    header = ["model", "train images", "validation", "test (95 % interval)", "time"]
    rows, sentence = [_comparison_row(record)], ""
    others = []
    for path in folder.resolve().parent.glob("*/metrics.json"):
        with contextlib.suppress(Exception):  # whatever lies there, it is no reason to fail
            other = json.loads(path.read_text())
            same_data = other["data"]["sha256"] == record["data"]["sha256"]
            if same_data and _title(other) != _title(record):
                others.append((path.stat().st_mtime, path, other, _comparison_row(other)))
    if others:
        _, path, other, row = max(others)
        rows.insert(0, row)
        with contextlib.suppress(Exception):
            theirs = np.loadtxt(path.with_name("predictions.csv"), delimiter=",", skiprows=1)
            if np.array_equal(theirs[:, 0], positions):
                correct = theirs[:, 1] == theirs[:, 2]
                sentence = _difference(_title(record), test.correct, _title(other), correct)
    return [header, *rows], sentence


def _title(metrics: dict[str, dict]) -> str:
    """Which of the models that a comparison tells apart: the script, and whether it fine-tuned."""
    blocks = metrics.get("config", {}).get("fine_tune_blocks")
    return f"{metrics['model']}, fine-tuned" if blocks else str(metrics["model"])


def _comparison_row(metrics: dict[str, dict]) -> list[str]:
    low, high = metrics["test"]["interval95"]
    return [
        _title(metrics),
        f"{metrics['data']['train']:,}",
        f"{metrics['validation']['accuracy']:.1%}",
        f"{metrics['test']['accuracy']:.1%} ({low:.1%} to {high:.1%})",
        f"{metrics['seconds']['total']:.0f} s",
    ]


def _difference(model: str, correct: np.ndarray, other: str, other_correct: np.ndarray) -> str:
    """Says how far two models differ in accuracy on the same images.

    The interval is that of the mean of paired differences, narrower than the models' own intervals
    suggest. It needs some images on which one is right and the other wrong: else there is no word.
    """
    differences = correct.astype(float) - other_correct
    if np.count_nonzero(differences) < 10:
        return ""
    mean = differences.mean()
    half = Z95 * differences.std(ddof=1) / math.sqrt(len(differences))
    return (
        f"On the same {len(correct):,} test images, {model} is {100 * abs(mean):.1f} points "
        f"{'better' if mean >= 0 else 'worse'} than {other} (difference, 95 % interval: "
        f"{100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})."
    )


# ------------------------------------------------------------------------------ output files


def versions() -> dict[str, object]:
    """What a run is computed with: software, the scripts' git commit, processor, GPUs."""
    gpus = tf.config.get_visible_devices("GPU")
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "wandb": wandb.__version__,
        "platform": platform.platform(),
        "processor": common.cpu_info().get("model name")
        or platform.processor()
        or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [tf.config.experimental.get_device_details(g).get("device_name") for g in gpus],
    }


def git_commit() -> str | None:
    """The commit of the scripts' repository, with "-dirty" after it if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    return None


def peak_memory() -> dict[str, float]:
    """The most memory, in GB, that this process has had so far; {} where that is not known."""
    peak = {}
    # On Linux: `ru_maxrss` would be at least what the process that started this one had.
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        peak["peak_gb"] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    if not peak and platform.system() == "Darwin":
        import resource

        peak["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    if tf.config.get_visible_devices("GPU"):
        peak["gpu_peak_gb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    return {name: round(value, 2) for name, value in peak.items()}


def new_record(options: argparse.Namespace) -> dict[str, dict]:
    """The start of `metrics.json`: {"model", "config", "versions", "seconds"}."""
    config = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    seconds = {"imports": round(time.perf_counter() - common.START, 2)}
    return {"model": options.model, "config": config, "versions": versions(), "seconds": seconds}


def prepare_output(folder: Path) -> None:
    """Makes the output folder, before any work is done for it; says what will be replaced.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--output-dir: {error}") from None
    if folders := [name for name in OUTPUT_FILES if (folder / name).is_dir()]:
        raise UserError(f"--output-dir: {folder / folders[0]} is a folder")
    if existing := [name for name in OUTPUT_FILES if (folder / name).exists()]:
        print(f"The end of this run replaces {', '.join(existing)} in {folder}")


def complete_record(
    record: dict[str, dict],
    evaluations: dict[str, Evaluation],
    model: keras.Model,
    best: dict[str, float],
) -> None:
    """Adds the results to the record; `best` is the best epoch's row."""
    record |= {name: evaluation.record() for name, evaluation in evaluations.items()}
    record["test"]["confusion_matrix"] = evaluations["test"].confusion_matrix.tolist()
    record["test"]["per_class"] = evaluations["test"].per_class
    record["best_epoch"] = best["epoch"]
    record["parameters"] = {
        "trainable": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "frozen": sum(math.prod(weight.shape) for weight in model.non_trainable_weights),
    }


def save_results(
    options: argparse.Namespace,
    run: wandb.Run,
    record: dict[str, dict],
    evaluations: dict[str, Evaluation],
    data: FashionMNIST,
    model: keras.Model,
    log: EpochLog,
) -> tuple[list[list[str]], str]:
    """Completes the record; writes `OUTPUT_FILES`, and the same to W&B.

    Each file appears whole or not at all: it is first written beside, then moved into place.

    Returns:
        The comparison with another model's last run, as `compare` gives it.

    Raises:
        UserError: a file cannot be written.
    """
    folder, test = options.output_dir, evaluations["test"]
    complete_record(record, evaluations, model, log.best)
    predictions = [
        {"position": position, "label": label, "predicted": predicted, "confidence": confidence}
        for position, label, predicted, confidence in zip(
            data.test.positions, test.labels, test.predicted, test.confidence, strict=True
        )
    ]
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
            part = Path(temporary)
            model.save(part / "model.keras")
            write_csv(part / "history.csv", log.rows)
            write_csv(part / "predictions.csv", predictions)
            with matplotlib.style.context(["default", STYLE]):  # not the user's own
                draw_curves(log.rows, record["best_epoch"]).savefig(part / "curves.png")
                draw_confusion_matrix(test).savefig(part / "confusion_matrix.png")
                draw_mistakes(test, data.test).savefig(part / "mistakes.png")
                draw_reliability(evaluations["validation"], test).savefig(part / "reliability.png")
            record["memory"] = peak_memory()
            record["seconds"]["total"] = round(time.perf_counter() - common.START, 2)
            comparison = compare(folder, record, test, data.test.positions)
            page = render_html(record, *comparison, pictures=part)
            (part / "report.html").write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
            (part / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
            try:
                # From here and not from `folder`, which another trial of a sweep may write to.
                log_evaluations(run, evaluations, data, log.rows)
                log_output(run, record, part)
            finally:  # whatever became of W&B
                for name in OUTPUT_FILES:
                    (part / name).replace(folder / name)
    except OSError as error:
        raise UserError(f"not all results could be written: {error}") from None
    return comparison


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows, dictionaries with the same keys, below a header."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def without_tables(part: dict[str, object]) -> dict[str, object]:
    """A part of the record without what W&B has as a table (its metadata may have 100 values)."""
    return {k: v for k, v in part.items() if k not in ("confusion_matrix", "per_class")}


def log_output(run: wandb.Run, record: dict[str, dict], folder: Path) -> None:
    """Logs the summary, the pictures and the page, and the model as an artifact.

    A sweep's trials log no model: hundreds of them would be uploaded for the one that is best,
    and that one's options make it again.
    """
    if run.disabled:
        return
    for part in "train", "validation", "test", "parameters", "memory", "seconds":
        values = without_tables(record[part])
        run.summary.update({f"{part}/{name}": value for name, value in values.items()})
    pictures = {f"report/{Path(n).stem}": wandb.Image(str(folder / n)) for n in PICTURES}
    run.log(pictures | {"report/page": wandb.Html(str(folder / "report.html"), inject=False)})
    if not run.sweep_id:
        metadata = record | {"test": without_tables(record["test"])}
        artifact = wandb.Artifact(record["model"], type="model", metadata=metadata)
        artifact.add_file(str(folder / "model.keras"), skip_cache=True)
        run.log_artifact(artifact)


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


def render_html(
    record: dict[str, dict], comparison: list[list[str]], sentence: str, pictures: Path
) -> str:
    """One self-contained page for a colleague; `pictures` is the folder that has `PICTURES`."""

    def table(rows: list[list[object]], header: bool = True) -> str:
        lines = []
        for i, row in enumerate(rows):
            tag = "th" if header and i == 0 else "td"
            cells = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        return "<table>\n" + "\n".join(lines) + "\n</table>"

    def picture(name: str) -> str:
        content = base64.b64encode((pictures / name).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{content}" alt="{name}">'

    def settings(part: str) -> str:
        rows = [
            [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value]
            for name, value in record[part].items()
        ]
        return table(rows, header=False)

    test, count = record["test"], record["data"]["test"]
    low, high = test["interval95"]
    results = [["", "accuracy", "95 % interval", "loss", "calibration error", "images"]]
    for name in "train", "validation", "test":
        part = record[name]
        interval = "{:.1%} to {:.1%}".format(*part["interval95"])
        error = f"{part['expected_calibration_error']:.3f}"
        images = f"{record['data'][name]:,}"
        results.append(
            [name, f"{part['accuracy']:.2%}", interval, f"{part['loss']:.3f}", error, images]
        )
    per_class = [["class", "precision", "recall", "F1", "images", "most often taken for"]]
    for row in test["per_class"]:
        shares = (f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
        other = f"{row['confused_with']} ({row['confused']})" if row["confused"] else "–"
        per_class.append([row["class"], *shares, row["support"], other])
    sections = {
        "Results": table(results),
        "Beside another model's last run": f"{table(comparison)}<p>{html.escape(sentence)}</p>",
        "By class, on the test images": table(per_class),
        "What is confused with what": picture("confusion_matrix.png"),
        "Most confident mistakes: the model's, or the label's": picture("mistakes.png"),
        "How far the confidence can be trusted": picture("reliability.png"),
        "Training": picture("curves.png"),
        "Options": settings("config"),
        "Data": settings("data"),
        "Weights": settings("weights"),
        "Parameters": settings("parameters"),
        "Time, in seconds": settings("seconds"),
        "Memory": settings("memory"),
        "Computed with": settings("versions"),
    }
    return PAGE.format(
        title=f"{record['model']} on Fashion-MNIST",
        headline=f"<b>{test['accuracy']:.1%}</b> of {count:,} test images right (95 % interval "
        f"{low:.1%} to {high:.1%}), with the weights of epoch {record['best_epoch']}.",
        sections="\n".join(f"<h2>{title}</h2>\n{body}" for title, body in sections.items()),
    )


def conclude(
    options: argparse.Namespace,
    run: wandb.Run,
    record: dict[str, dict],
    comparison: tuple[list[list[str]], str],
) -> None:
    """The last lines of a run: the comparison, where things are, and whether it was good enough.

    Raises:
        UserError: the validation accuracy is below `--require-accuracy`.
    """
    rows, sentence = comparison
    print()
    for row in rows:
        print("{:<28} {:>12}  {:>10}  {:<24} {:>8}".format(*row))
    if sentence:
        print(sentence)
    print(f"\nSaved in {options.output_dir}: {', '.join(OUTPUT_FILES)}")
    if run.offline and not run.disabled:
        folder = shlex.quote(os.path.relpath(Path(run.dir).parent))
        print(f"W&B, offline. Look at the run:  wandb leet {folder}")
        print(f"              Sync it later:    wandb sync {folder}")
    reached, required = record["validation"]["accuracy"], options.require_accuracy
    if required and reached < required:
        raise UserError(f"validation accuracy {reached:.4f} is below the required {required}")
