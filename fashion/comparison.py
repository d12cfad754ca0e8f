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
