# With a checkpoint of other values of these, a run may still be resumed.
NOT_OF_THE_RUN = {
    *("resume", "output_dir", "data_dir", "cache_dir", "wandb", "project", "require_accuracy"),
    *("weights", "gpus", "fine_tune_learning_rate"),
}


def load_checkpoint(options: argparse.Namespace, record: dict[str, dict]) -> dict:
    """The state of the run that `--resume` continues, or the start of a new run's.

    Args:
        options: the command line's.
        record: has the digests of data and weights, and the precision.

    Raises:
        common.UsageError: the run there had other options, data or weights, or should not be lost.
        common.UserError: the checkpoint cannot be read.
    """
    config = {k: v for k, v in vars(options).items() if k not in NOT_OF_THE_RUN}
    config |= {
        "data_sha256": record["data"]["sha256"],
        "computed_in": record["weights"]["precision"],
    }
    config |= {"weights_sha256": record["weights"]["sha256"]}
    path = options.output_dir / "checkpoint" / "state.json"
    rate = options.fine_tune_learning_rate
    new = {"config": config, "learning_rate": rate, "last": None, "finished": False}
    if not options.fine_tune_blocks:
        return new
    try:
        state = json.loads(path.read_text())
        needed = {"config", "rows", "last", "best", "head_epochs", "learning_rate", "finished"}
        if missing := needed - set(state):
            raise ValueError(f"it has no {', '.join(missing)}")
    except FileNotFoundError:
        if options.resume:
            print(f"There is no {path} to resume from: this run starts at its beginning.")
        return new
    except (OSError, ValueError, TypeError) as error:
        raise common.UserError(f"{path} cannot be read: {error}; delete that folder") from None
    if not options.resume:
        if state["finished"]:
            path.unlink()  # or a later `--resume` of this run might take it for this run's
            return new
        raise common.UsageError(
            f"{path.parent} has an unfinished run's epoch {state['rows'][-1]['epoch']}: --resume "
            "continues it\nTo start anew, delete that folder or use another --output-dir."
        )
    other = sorted(
        k for k in config.keys() | state["config"].keys() if config.get(k) != state["config"].get(k)
    )
    if other:
        raise common.UsageError(
            f"--resume: the run in {path.parent} had another "
            + ", ".join(f"{k} ({state['config'].get(k)}, not {config.get(k)})" for k in other)
        )
    if state["finished"] and state["learning_rate"] != rate:
        raise common.UsageError(
            f"--resume: the run in {path.parent} has finished, with another fine_tune_learning_rate"
        )
    return state | {"learning_rate": rate}


def save_checkpoint(folder: Path, model: keras.Model, state: dict, log: report.EpochLog) -> None:
    """Keeps the last and the best epoch's weights, with the optimizer's, and the run's state.

    The old ones are there until the new ones are: `state.json` names those that count.

    Raises:
        common.UserError: they cannot be written.
    """
    epoch = log.rows[-1]["epoch"] if state["last"] else log.best["epoch"]
    state["last"] = f"epoch-{epoch:03}.weights.h5"
    if epoch == log.best["epoch"]:
        state["best"] = state["last"]
    state["rows"] = log.rows
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
            model.save_weights(part := Path(temporary) / state["last"])
            part.replace(folder / state["last"])
        write_state(folder, state)
        for path in folder.glob("epoch-*.weights.h5"):
            if path.name not in (state["last"], state["best"]):
                path.unlink()
    except OSError as error:
        raise common.UserError(f"no checkpoint could be written: {error}") from None


def load_epoch(model: keras.Model, path: Path) -> None:
    """Loads an epoch's weights, with the optimizer's.

    Raises:
        common.UserError: the file is not there or damaged.
    """
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise common.UserError(f"{path} is damaged ({reason}): delete its folder") from None


def write_state(folder: Path, state: dict) -> None:
    """Replaces `state.json`, at once."""
    part = folder / ".incomplete-state.json"
    part.write_text(json.dumps(state, indent=2) + "\n")
    part.replace(folder / "state.json")
