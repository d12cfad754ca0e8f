# Images in one step of the extraction and in one file of its cache: what a killed run loses at
# most. It is no option since the last bits of the features depend on it. 125 divides 55,000,
# 5,000 and 10,000, and more is hardly faster.
CHUNK = 125


def chunk_path(cache: Path, split: common.Split, start: int) -> Path:
    """The cache's file for the images from `start` on of a (whole) split."""
    return cache / split.digest[:16] / f"{start:06}.npz"


def has_features(path: Path, names: Iterable[str]) -> bool:
    """Whether a file of the cache is there, whole, and has these features."""
    try:
        with zipfile.ZipFile(path) as file:
            return {f"{name}.npy" for name in names} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def extract_features(
    extractor: keras.Model, splits: Iterable[common.Split], cache: Path, run: wandb.Run, name: str
) -> float | None:
    """Computes what the cache lacks, file by file.

    Each file appears whole or not at all, by a rename, and with the same bytes whoever computes
    it on this machine: a killed run, or two at once, do no harm, and a later run goes on.

    Args:
        extractor: uint8 (N, 28, 28) → {name: float16 (N, …)}, what a file holds.
        splits: whose images in use are needed.
        cache: the folder.
        run: gets the progress.
        name: of what is extracted, for the user and for W&B.

    Returns:
        Images per second, or None if everything was there.

    Raises:
        common.UserError: the cache cannot be written, or its disk has not the room.
    """
    todo = []
    for split in splits:
        for start in range(0, split.size, CHUNK):
            path = chunk_path(cache, split, start)
            if not has_features(path, extractor.output):
                todo.append((path, split.all_images[start : start + CHUNK]))
    if not todo:
        print(f"{name}: all in {cache}")
        return None

    left = sum(len(images) for _, images in todo)
    size = left * sum(2 * math.prod(values.shape[1:]) for values in extractor.output.values())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise common.UserError(f"--cache-dir: {error}") from None
    if size > free:
        raise common.UserError(
            f"{name} of {left:,} images take {size / 1e9:.1f} GB, but {cache} has only "
            f"{free / 1e9:.1f} GB left: use another --cache-dir, or fewer images"
        )
    print(
        f"{name}: extracting {left:,} images, each once; {size / 1e9:.1f} GB, kept in {cache}",
        flush=True,
    )
    metric = name.lower()
    run.define_metric(f"{metric}/*", step_metric=f"{metric}/images")
    extracted, rate, bar = 0, None, None
    start = time.perf_counter()
    devices = common.devices()
    for i in range(0, len(todo), devices):
        group = []
        for path, images in todo[i : i + devices]:
            if has_features(path, extractor.output):  # made meanwhile by another process
                left -= len(images)
            else:
                group.append((path, images))
        if not group:
            continue
        outputs = common.predict_each(extractor, [images for _, images in group])
        for (path, images), features in zip(group, outputs, strict=True):
            write_features(path, features)
            extracted += len(images)
        seconds = time.perf_counter() - start
        rate = extracted / seconds
        progress = {"images": extracted, "images_per_second": rate, "seconds": seconds}
        run.log({f"{metric}/{key}": value for key, value in progress.items()})
        if not bar:
            print(f"About {left / rate / 60:.1f} minutes at {rate:.0f} images/s.")
            interval = 0.5 if sys.stdout.isatty() else 60
            bar = keras.utils.Progbar(
                left, interval=interval, stateful_metrics=["images/s"], unit_name="image"
            )
        bar.target = left
        bar.update(extracted, [("images/s", rate)])
    return rate


def write_features(path: Path, features: dict[str, np.ndarray]) -> None:
    """Writes a file of the cache, unless one with as much has appeared meanwhile.

    Raises:
        common.UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incomplete-") as folder:
            np.savez(part := Path(folder) / path.name, **features)
            if not has_features(path, features):
                part.replace(path)
    except OSError as error:
        raise common.UserError(f"--cache-dir: {error}") from None


def read_chunk(split: common.Split, cache: Path, start: int) -> dict[str, np.ndarray]:
    """What a file of the cache holds, of the split's images in use alone.

    Raises:
        common.UserError: it is damaged.
    """
    path = chunk_path(cache, split, start)
    images = len(split.all_images[start : start + CHUNK])
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file}
        if any(len(array) != images for array in arrays.values()):
            raise ValueError("it is not of so many images")
    except Exception as error:  # of a zip file's many ways to be damaged
        raise common.UserError(f"{path} is damaged ({error}): delete it, run again") from None
    return {name: array[: split.size - start] for name, array in arrays.items()}


def read_features(split: common.Split, cache: Path, names: Iterable[str]) -> np.ndarray:
    """The named features of a split's images in use, side by side: float16 (N, channels).

    Raises:
        common.UserError: a file of the cache is damaged.
    """
    chunks = []
    for start in range(0, split.size, CHUNK):
        chunk = read_chunk(split, cache, start)
        chunks.append(np.concatenate([chunk[name] for name in names], axis=1))
    return np.concatenate(chunks)
