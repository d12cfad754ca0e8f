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
