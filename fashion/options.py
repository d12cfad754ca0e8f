def _number(convert: type, accepts: Callable[[float], bool], expected: str) -> Callable:
    """An `argparse` type that says what it expected."""

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # fails every comparison
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


whole_number = _number(int, lambda value: 0 <= value < 2**31, "a whole number from 0")


positive_int = _number(int, lambda value: 1 <= value < 2**31, "a whole number from 1")


seed_int = _number(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")


positive_float = _number(float, lambda value: 0 < value < math.inf, "a number above 0")


dropout_rate = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


accuracy_share = _number(
    float, lambda value: 0 < value <= 1, "an accuracy between 0 and 1, such as 0.9"
)


def all_or_count(text: str) -> str | int:
    """An `argparse` type: "all" or a whole number from 0."""
    return text if text == "all" else whole_number(text)


def option_parser(description: str, model: str) -> argparse.ArgumentParser:
    """The options that both scripts have; `model` is the script's name.

    A script adds its own and sets the defaults of `--epochs` and the like by `set_defaults`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(model=model)

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir",
        type=Path,
        help="folder with the four IDX files (default: Keras' cache or the Debian package's "
        "folder, else downloaded)",
    )
    for split, whole in ("train", "55,000"), ("validation", "5,000"), ("test", "10,000"):
        data.add_argument(
            f"--{split}-size",
            type=positive_int,
            metavar="N",
            help=f"use N class-balanced {split} images (default: all, {whole})",
        )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=positive_int, help="passes over the training images (default: %(default)s)"
    )
    training.add_argument(
        "--batch-size", type=positive_int, help="images per training step (default: %(default)s)"
    )
    training.add_argument(
        "--learning-rate",
        type=positive_float,
        default=1e-3,
        help="Adam's, at the start (default: %(default)s)",
    )
    training.add_argument(
        "--seed",
        type=seed_int,
        default=0,
        help="of initial weights, shuffling and dropout (default: %(default)s)",
    )

    use = parser.add_argument_group("use of the model")
    use.add_argument(
        "--predict",
        type=Path,
        nargs="+",
        metavar="PICTURE",
        help="do not train: classify these picture files, or those of a folder, by the model in"
        " --output-dir",
    )

    results = parser.add_argument_group("results")
    results.add_argument(
        "--output-dir",
        type=Path,
        default=Path("outputs") / model,
        help="gets the model, its results, pictures and report.html (default: %(default)s)",
    )
    results.add_argument(
        "--require-accuracy",
        type=accuracy_share,
        metavar="X",
        help="exit with 1 if the validation accuracy ends below X (0.9 is 90 %%)"
        " (default: no such check)",
    )
    results.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        default="auto",
        help="Weights & Biases; auto is online where a key is configured, else offline"
        " (default: %(default)s)",
    )
    results.add_argument(
        "--project",
        type=project_name,
        default="fashion-mnist",
        help="W&B project (default: %(default)s)",
    )
    return parser


def project_name(text: str) -> str:
    """An `argparse` type: what W&B takes for a project."""
    if not text or re.search(r"[/\\#?%:]", text):
        raise argparse.ArgumentTypeError(rf"expected a name without / \ # ? % :, got {text!r}")
    return text


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line; `--batch_size` (as a W&B sweep writes it) is `--batch-size`."""
    return parser.parse_args(
        re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in sys.argv[1:]
    )


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = common.option_parser(__doc__, "resnet50_fashion")
    parser.set_defaults(epochs=30, batch_size=512)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--backbone",
        choices=BACKBONES,
        default="resnet50",
        help="the frozen network (default: %(default)s)",
    )
    group.add_argument(
        "--weights",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="the backbone's: downloaded, random, or a Keras weights file of it without its top"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--image-size",
        type=common.positive_int,
        metavar="N",
        help="images are enlarged to N×N for the backbone (default: what it was trained at,"
        " 224 or 299)",
    )
    group.add_argument(
        "--features",
        choices=FEATURES,
        default="conv5",
        help="what the head sees: averages of the last stage, as published, or of the third and"
        " fourth with the fourth's maxima (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="the backbone's; auto is bfloat16 where the processor or GPU has it natively"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--dropout",
        type=common.dropout_rate,
        default=0.3,
        help="rate in the head (default: %(default)s)",
    )
    group.add_argument(
        "--patience",
        type=common.positive_int,
        default=10,
        help="stop after so many epochs without a better validation accuracy"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_dir(),
        help="keeps the features (default: %(default)s)",
    )
    group.add_argument(
        "--gpus",
        type=common.all_or_count,
        default="all",
        metavar="all|N",
        help="use all GPUs or the first N, each with its share of the work (default: %(default)s)",
    )

    group = parser.add_argument_group("fine-tuning, after the head's training")
    group.add_argument(
        "--fine-tune-blocks",
        type=common.whole_number,
        default=0,
        metavar="N",
        help="train the backbone's last N blocks, too (default: %(default)s, all are frozen)",
    )
    group.add_argument(
        "--fine-tune-epochs",
        type=common.positive_int,
        default=5,
        help="passes over the training images (default: %(default)s)",
    )
    group.add_argument(
        "--fine-tune-batch-size",
        type=common.positive_int,
        default=32,
        help="images per training step (default: %(default)s)",
    )
    group.add_argument(
        "--fine-tune-learning-rate",
        type=common.positive_float,
        default=1e-4,
        help="Adam's, at its highest (default: %(default)s)",
    )
    group.add_argument(
        "--fine-tune-inputs",
        choices=("cached", "computed", "augmented"),
        default="cached",
        help="what goes into the first unfrozen block: kept in --cache-dir, computed anew in each"
        " epoch, or that of flipped and shifted images (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last finished epoch of the fine-tuning in --output-dir",
    )
    options = common.parse_options(parser)
    if options.resume and not options.fine_tune_blocks:
        parser.error("--resume: only fine-tuning can be resumed, by the same --fine-tune-blocks")
    return options


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(caches)) / "fashion-mnist-features"
