@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block took, in seconds, as `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


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


PICTURES = ("curves.png", "confusion_matrix.png", "mistakes.png", "reliability.png")


OUTPUT_FILES = (
    *("model.keras", "history.csv", "metrics.json", "predictions.csv", "report.html"),
    *PICTURES,
)
