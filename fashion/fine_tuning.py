def cut_before(
    backbone: keras.Model, blocks: list[str], names: Iterable[str], unfreeze: int
) -> str:
    """Which of `blocks_of` is the first of so many blocks before the end of what features need.

    Raises:
        common.UsageError: there are not so many.
    """
    stages = stages_of(backbone, blocks)
    end = max(blocks.index(stages[name.split("_")[0]]) for name in names)
    if unfreeze > end:
        raise common.UsageError(
            f"--fine-tune-blocks {unfreeze}: only {end} blocks are before the features' end"
        )
    return blocks[end - unfreeze]


def split_network(
    backbone: keras.Model,
    frozen: keras.Model,
    blocks: list[str],
    cut: str,
    names: Iterable[str],
    head: keras.Sequential,
    precision: str,
) -> tuple[keras.Model, keras.Model]:
    """Cuts the whole network in two, before the blocks that will be fine-tuned.

    Args:
        backbone: one of `BACKBONES`.
        frozen: what `freeze` made of it.
        blocks: what `blocks_of` says of it.
        cut: the first block to fine-tune.
        names: the features that the head sees.
        head: the standardiser and the classifier, whose weights the upper part shares.
        precision: of the upper part.

    Returns:
        The lower part: uint8 (N, 28, 28) → {"activations": float16 at the cut, and features from
        below it: float16 (N, channels)}. The upper part: these → probabilities (N, 10). Its kernels
        are trainable; its BatchNormalizations are not, which keeps them in inference mode.
    """
    used = {name.split("_")[0] for name in names}
    stages = {k: block for k, block in stages_of(backbone, blocks).items() if k in used}
    above = {k: b for k, b in stages.items() if blocks.index(b) > blocks.index(cut)}

    values = {"activations": activations_at(frozen, cut)}
    for stage in stages.keys() - above.keys():
        for kind, pooled in pool(activations_at(frozen, stages[stage])).items():
            if f"{stage}_{kind}" in names:
                values[f"{stage}_{kind}"] = pooled
    values = {name: to_float16(value) for name, value in values.items()}
    lower = keras.Model(frozen.input, values, name=f"activations-{blocks.index(cut):02}")

    inputs = {k: keras.Input(v.shape[1:], dtype="float16", name=k) for k, v in values.items()}
    original = keras.Model(
        activations_at(backbone, cut), [activations_at(backbone, b) for b in above.values()]
    )
    unfrozen = clone(original, inputs["activations"], DTYPES[precision])
    for layer in original.layers:
        if layer.weights:
            copy = unfrozen.get_layer(layer.name)
            copy.set_weights(layer.get_weights())
            copy.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    features = {name: keras.ops.cast(value, "float32") for name, value in inputs.items()}
    for stage, activations in zip(above, unfrozen.outputs, strict=True):
        features |= {f"{stage}_{kind}": pooled for kind, pooled in pool(activations).items()}
    outputs = keras.ops.concatenate([features[name] for name in names], axis=1)
    # The head's layers one by one: as a model, the classifier would first make its input float16,
    # and so its gradients, many of which are too small for that.
    standardiser, classifier = head.layers
    for layer in standardiser, *classifier.layers:
        outputs = layer(outputs)
    return lower, keras.Model(inputs, outputs)


def fine_tuning_batches(
    model: keras.Model,
    split: common.Split,
    cache: Path | None,
    batch_size: int,
    seed: list[int] | None = None,
) -> tf.data.Dataset:
    """Batches of a split for a model that takes its images or, from the cache, its activations.

    With a seed they are shuffled: the files' order, and then images among those of eight files.
    Each epoch has a seed of its own, so that one after an interruption is as without.
    """
    one_hot = keras.utils.to_categorical(split.labels, len(common.CLASS_NAMES))
    starts, rng = np.arange(0, split.size, CHUNK), np.random.default_rng(seed)

    def chunks() -> Iterator[tuple]:
        for start in starts:
            rows = slice(start, min(start + CHUNK, split.size))
            inputs = split.images[rows]
            if cache:
                chunk = read_chunk(split, cache, start)
                inputs = {name: chunk[name] for name in model.input}
            yield inputs, one_hot[rows]

    inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), model.input)
    signature = inputs, tf.TensorSpec((None, one_hot.shape[1]))
    batches = tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()
    if seed is not None:
        rng.shuffle(starts)
        order = {"seed": int(rng.integers(2**31)), "reshuffle_each_iteration": False}
        batches = batches.shuffle(8 * CHUNK, **order)
    steps = math.ceil(split.size / batch_size)
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return (
        batches.batch(batch_size)
        .apply(tf.data.experimental.assert_cardinality(steps))
        .prefetch(2)
        .with_options(settings)
    )


@contextlib.contextmanager
def errors_of_reading() -> Iterator[None]:
    """Raises a `UserError` of `read_chunk` as such, which TensorFlow has made one of its own."""
    try:
        yield
    except tf.errors.OpError as error:
        if message := re.search("UserError: (.*)", str(error)):
            raise common.UserError(message[1]) from None
        raise


def augment(model: keras.Model) -> keras.Model:
    """The same model, trained on images that are flipped and shifted by up to two pixels."""
    images = keras.Input((28, 28), dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal", dtype="float32")
    shift = keras.layers.RandomTranslation(
        *(2 / 28, 2 / 28), fill_mode="constant", interpolation="nearest", dtype="float32"
    )
    augmented = shift(flip(keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1)))
    return keras.Model(images, model(keras.ops.cast(keras.ops.squeeze(augmented, -1), "uint8")))


def fine_tune(
    model: keras.Model,
    data: common.FashionMNIST,
    cache: Path | None,
    options: argparse.Namespace,
    log: report.EpochLog,
    state: dict,
) -> None:
    """Trains end to end by Adam, the learning rate rising for a tenth of the steps, then falling.

    After each epoch everything needed to go on from there is in the output folder's `checkpoint`.
    It ends with the weights of the best epoch, which may be the head's.

    Args:
        model: takes images or, with a cache, activations; its weights are the head's best epoch's.
        data: the images.
        cache: of activations, or None.
        options: the command line's.
        log: has the epochs so far, the head's included.
        state: of the run; the checkpoint's, or the start of it.

    Raises:
        common.UserError: the loss is no longer a number, or a checkpoint cannot be written.
    """
    folder = options.output_dir / "checkpoint"
    size = options.fine_tune_batch_size
    steps = math.ceil(data.train.size / size) * options.fine_tune_epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps - steps // 10,
        warmup_target=options.fine_tune_learning_rate,
        warmup_steps=steps // 10,
    )
    if options.fine_tune_inputs == "augmented":
        model = augment(model)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    if state["last"]:
        load_epoch(model, folder / state["best"])  # whether it is whole shows before the work
        load_epoch(model, folder / state["last"])
        print(f"Resuming after epoch {log.rows[-1]['epoch']}.")
    else:
        save_checkpoint(folder, model, state, log)
    first = state["head_epochs"]
    log.advice = "go on with --resume and a lower --fine-tune-learning-rate"
    validation = fine_tuning_batches(model, data.validation, cache, size)
    seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for epoch in range(len(log.rows), first + options.fine_tune_epochs):
        if epoch - max(first, log.best["epoch"]) >= options.patience:
            break
        for i, variable in enumerate(seeds):  # of dropout and augmentation
            variable.assign(np.array([options.seed + i, epoch << 20], variable.dtype))
        batches = fine_tuning_batches(model, data.train, cache, size, [options.seed, epoch])
        with errors_of_reading():
            model.fit(
                batches,
                shuffle=False,  # they are
                initial_epoch=epoch,
                epochs=epoch + 1,
                validation_data=validation,
                callbacks=[keras.callbacks.TerminateOnNaN(), log],
                verbose=2,
            )
        save_checkpoint(folder, model, state, log)
    load_epoch(model, folder / state["best"])
