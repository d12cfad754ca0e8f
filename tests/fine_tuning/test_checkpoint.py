"""Checkpoints: what is resumed, and which options must match."""

import json
import resource

from fashion.backbones import architectures
from fashion.fine_tuning import batch_norm as batch_norm_module
from fashion.fine_tuning.checkpoint import load_or_create_checkpoint
from fashion.recipes import RECIPES
from fashion.tracking.history import EpochLogger

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.epochs import make_epoch
from helpers.networks import build_small_resnet
from helpers.scripts import SAMPLE, directory_contents, parse_options

import common
import resnet50_fashion

# ------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def backbone():
    network = build_small_resnet(False, None, (64, 64, 3))
    return architectures.Backbone("resnet50", network, network, "float32")


@pytest.fixture
def load_or_create(backbone, sample, tmp_path):
    """Load or create the checkpoint of a run with the given arguments."""

    def load(*argv, backbone=backbone, data=sample):
        argv = ("--fine-tune-blocks", 1, "--output-dir", tmp_path, *argv)
        options = parse_options(resnet50_fashion, *argv)
        return load_or_create_checkpoint(options, data, backbone)

    return load


@pytest.fixture
def model():
    """A model after one step of Adam."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    return model


@pytest.fixture
def logger(open_run):
    """Three epochs of head training, the second of which is the best."""
    return EpochLogger(
        open_run.wandb_run, [make_epoch(1, 0.5), make_epoch(2, 0.75), make_epoch(3, 0.625)]
    )


@pytest.fixture
def unfinished(load_or_create, model, logger):
    """The checkpoint of a run that was interrupted after one epoch of fine-tuning."""
    checkpoint = load_or_create()
    checkpoint.head_epochs, checkpoint.wandb_id = 3, "abcd1234"
    checkpoint.save(model, logger)
    logger.epochs.append(make_epoch(4, 0.625))
    checkpoint.save(model, logger)
    return checkpoint


def names(checkpoint):
    return sorted(path.name for path in checkpoint.directory.iterdir())


def state(checkpoint):
    return json.loads((checkpoint.directory / "state.json").read_text())


def write_state(checkpoint, content):
    (checkpoint.directory / "state.json").write_text(json.dumps(content))


def test_new_checkpoint_is_empty(load_or_create, tmp_path, capsys):
    new = load_or_create()
    assert (new.last_weights, new.best_weights, new.epochs, new.finished) == (None, None, [], False)
    assert not new.directory.exists()
    assert capsys.readouterr().out == ""
    assert load_or_create("--resume") == new
    path = tmp_path / "checkpoint" / "state.json"
    assert f"No checkpoint at {path}; starting from scratch.\n" in capsys.readouterr().out


def test_saved_checkpoint_is_resumed(unfinished, load_or_create, model, logger):
    resumed = load_or_create("--resume")
    assert resumed == unfinished
    assert (resumed.head_epochs, resumed.wandb_id) == (3, "abcd1234")
    assert resumed.epochs == logger.epochs and len(resumed.epochs) == 4
    expected = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
    resumed.load(model, resumed.last_weights)
    loaded = [*model.variables, *model.optimizer.variables]
    for variable, value in zip(loaded, expected, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_only_last_and_best_weights_are_kept(load_or_create, model, logger):
    """The first file contains the weights of the best epoch of head training."""
    checkpoint = load_or_create()
    checkpoint.save(model, logger)
    assert names(checkpoint) == ["epoch-002.weights.h5", "state.json"]
    for epoch, accuracy, kept_epochs in (4, 0.7, [2, 4]), (5, 0.875, [5]), (6, 0.875, [5, 6]):
        logger.epochs.append(make_epoch(epoch, accuracy))
        checkpoint.save(model, logger)
        assert names(checkpoint) == [
            *(f"epoch-00{n}.weights.h5" for n in kept_epochs),
            "state.json",
        ]
        assert checkpoint.last_weights == f"epoch-00{epoch}.weights.h5"
        assert checkpoint.best_weights == f"epoch-00{kept_epochs[0]}.weights.h5"


def test_state_json_has_the_keys_of_earlier_versions(unfinished):
    expected = {"config", "rows", "last", "best", "head_epochs", "wandb_id", "learning_rate"}
    content = state(unfinished)
    assert content.keys() == expected | {"finished"}
    assert [row["epoch"] for row in content["rows"]] == [1, 2, 3, 4]
    assert content["learning_rate"] == 1e-4 and content["finished"] is False


def test_new_run_does_not_overwrite_an_unfinished_one(unfinished, load_or_create):
    before = state(unfinished)
    with pytest.raises(
        common.UsageError,
        match=r"contains an unfinished run \(epoch 4\). Use --resume to continue it,\nor delete",
    ):
        load_or_create()
    assert state(unfinished) == before


ADVICE = "; use the same options, or another --output-dir to start over$"
IGNORED = {
    "data_dir": "elsewhere",
    "cache_dir": "elsewhere",
    "wandb": "offline",
    "project": "mine",
    "require_accuracy": 0.5,
    "weights": "some.h5",
    "gpus": 0,
    "fine_tune_learning_rate": 1e-5,
}
COMPARED = {
    "train_size": 1000,
    "validation_size": 100,
    "test_size": 100,
    "epochs": 3,
    "batch_size": 7,
    "learning_rate": 0.5,
    "seed": 1,
    "backbone": "mobilenetv2",
    "image_size": 64,
    "precision": "float32",
    "features": "conv4",
    "hidden_units": 64,
    "dropout": 0.1,
    "patience": 3,
    "fine_tune_blocks": 2,
    "fine_tune_epochs": 3,
    "fine_tune_batch_size": 7,
    "fine_tune_weight_decay": 0.05,
    "fine_tune_batch_norm": "trained",
    "fine_tune_inputs": "augmented",
}


def test_every_option_is_ignored_or_compared():
    others = {"model", "resume", "output_dir", "predict", "export", "recipe", "mirror"}  # see below
    assert resnet50_fashion.Options().config().keys() == IGNORED.keys() | COMPARED.keys() | others


def test_resume_with_another_option_raises_usage_error(unfinished, load_or_create):
    before = resnet50_fashion.Options().config() | {"fine_tune_blocks": 1}
    for option, value in COMPARED.items():
        with pytest.raises(common.UsageError) as error:
            load_or_create("--resume", f"--{option}={value}")
        name = f"--{option.replace('_', '-')}"
        assert str(error.value) == (
            f"--resume: options differ from the checkpoint in {unfinished.directory}: {name} "
            f"({before[option]}, now {value}); use the same options, or another --output-dir to "
            "start over"
        )


def test_resume_with_another_recipe_or_mirror_raises_usage_error(unfinished, load_or_create):
    with pytest.raises(
        common.UsageError,
        match=r": --mirror \(False, now True\)" + ADVICE,
    ):
        load_or_create("--resume", "--mirror")
    with pytest.raises(
        common.UsageError,
        match=r": --dropout .*, --features \(conv5, now conv4_3x3\), --image-size \(None, now",
    ):
        load_or_create("--resume", "--recipe", "fast")


def test_resume_compares_the_options_of_a_recipe_not_its_name(load_or_create, unfinished):
    old = state(unfinished)
    old["config"] |= RECIPES["fast"]
    write_state(unfinished, old)
    assert load_or_create("--resume", "--recipe", "fast").epochs == unfinished.epochs
    argv = [f"--{name}={value}" for name, value in RECIPES["fast"].items()]
    assert load_or_create("--resume", *argv).epochs == unfinished.epochs


def test_resume_with_other_ignored_options(unfinished, load_or_create):
    resumed = load_or_create(
        "--resume", *(f"--{option}={value}" for option, value in IGNORED.items())
    )
    assert resumed.learning_rate == 1e-5
    resumed.learning_rate = unfinished.learning_rate
    assert resumed == unfinished


def test_options_missing_in_an_old_checkpoint_have_defaults(unfinished, load_or_create):
    """A run of an earlier version can be resumed unless a newer option is used."""
    old = state(unfinished)
    del old["config"]["dropout"], old["config"]["image_size"]
    write_state(unfinished, old)
    assert load_or_create("--resume").epochs == unfinished.epochs
    with pytest.raises(
        common.UsageError,
        match=r": --dropout \(0.3, now 0.1\)" + ADVICE,
    ):
        load_or_create("--resume", "--dropout", 0.1)


def test_resume_with_other_data_weights_or_precision_raises(unfinished, load_or_create, backbone):
    network = build_small_resnet(False, None, (64, 64, 3))
    for other, name in (
        (architectures.Backbone("resnet50", network, network, "float32"), "--weights"),
        (
            architectures.Backbone("resnet50", backbone.model, backbone.model, "bfloat16"),
            "--precision",
        ),
    ):
        with pytest.raises(common.UsageError, match=f": {name}(;| )"):
            load_or_create("--resume", backbone=other)
    data = load_sample()
    data.sha256["train-images-idx3-ubyte"] = 64 * "0"
    with pytest.raises(
        common.UsageError,
        match=r": the data \(--data-dir\)" + ADVICE,
    ):
        load_or_create("--resume", data=data)


def test_batch_size_may_change_only_before_the_first_epoch(load_or_create, model, logger):
    """The first batch may be too large for the memory of a GPU."""
    checkpoint = load_or_create()
    checkpoint.head_epochs, checkpoint.wandb_id = 3, "abcd1234"
    checkpoint.save(model, logger)
    resumed = load_or_create("--resume", "--fine-tune-batch-size", 16)
    assert resumed.epochs == logger.epochs
    assert resumed.config["fine_tune_batch_size"] == 16
    logger.epochs.append(make_epoch(4, 0.625))
    resumed.save(model, logger)
    assert load_or_create("--resume", "--fine-tune-batch-size", 16) == resumed
    with pytest.raises(
        common.UsageError,
        match=r": --fine-tune-batch-size \(16, now 32\)" + ADVICE,
    ):
        load_or_create("--resume")


def test_new_run_replaces_a_finished_one(unfinished, load_or_create):
    unfinished.mark_finished()
    assert load_or_create().last_weights is None
    assert "state.json" not in names(unfinished)  # `--resume` must not continue the old run


def test_finished_run_can_be_resumed_only_unchanged(unfinished, load_or_create):
    unfinished.mark_finished()
    assert load_or_create("--resume").finished
    with pytest.raises(
        common.UsageError,
        match=r"--fine-tune-learning-rate 0.0001; use this value, or another --output-dir$",
    ):
        load_or_create("--resume", "--fine-tune-learning-rate", 1e-5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "it lacks best, config, finished, head_epochs, last, learning_rate, rows"),
        ("[]", "it lacks "),
        ("{", ""),
        ("7", ""),
        ("\x00", ""),
    ],
)
def test_damaged_state_json_raises(content, reason, unfinished, load_or_create):
    (unfinished.directory / "state.json").write_text(content)
    for argv in ("--resume",), ():
        with pytest.raises(
            common.UserError,
            match=rf"state.json cannot be read: {reason}.*; delete its directory to start over$",
        ):
            load_or_create(*argv)


def test_state_json_with_other_keys_raises(unfinished, load_or_create):
    intact = state(unfinished)
    incomplete, extended = json.loads(json.dumps(intact)), intact | {"novelty": 1}
    del incomplete["rows"][0]["loss"]
    for content, name in (incomplete, "loss"), (extended, "novelty"):
        write_state(unfinished, content)
        with pytest.raises(common.UserError, match=f"state.json cannot be read: .*{name}"):
            load_or_create("--resume")


def test_damaged_weights_raise_with_their_path(unfinished, model):
    path = unfinished.directory / unfinished.last_weights
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        common.UserError, match=rf"^{path} is damaged \(.*\); delete its directory to start over$"
    ):
        unfinished.load(model, unfinished.last_weights)
    path.unlink()
    with pytest.raises(common.UserError, match=f"^{path} is damaged"):
        unfinished.load(model, unfinished.last_weights)


def test_unwritable_checkpoint_raises(load_or_create, model, logger):
    checkpoint = load_or_create()
    checkpoint.directory.touch()
    with pytest.raises(common.UserError, match=r"^could not write the checkpoint: "):
        checkpoint.save(model, logger)


@pytest.fixture
def file_limit():
    """Set the maximum file size of this process for one test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_save_on_full_disk_raises_and_keeps_the_last_checkpoint(
    unfinished, model, logger, file_limit
):
    """h5py could crash the process."""
    before = directory_contents(unfinished.directory)
    file_limit(10_000)
    with pytest.raises(common.UserError, match=r"^could not write the checkpoint: .*too large; "):
        unfinished.save(model, logger)
    assert directory_contents(unfinished.directory) == before


def test_mark_finished_on_full_disk_raises(unfinished, file_limit):
    before = directory_contents(unfinished.directory)
    file_limit(100)
    with pytest.raises(common.UserError, match=r"^could not write the checkpoint: .*too large; "):
        unfinished.mark_finished()
    assert directory_contents(unfinished.directory) == before


# ----------------------------------------------------------------------------- complete runs

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 4, "--fine-tune-batch-size", 20),
)


@pytest.fixture
def run(run_main, shared_cache_dir, small_resnet, small_chunks):
    argv = (*FAST, "--cache-dir", shared_cache_dir)
    return lambda *more_argv: run_main(resnet50_fashion, *argv, *more_argv)


@pytest.mark.parametrize(
    ("inputs", "batch_norm", "precision"),
    [
        ("cached", "frozen", "float16"),
        pytest.param("cached", "frozen", "float32", marks=pytest.mark.slow),
        pytest.param("augmented", "trained", "float32", marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_resumes_to_equal_metrics(
    inputs, batch_norm, precision, run, tmp_path, monkeypatch, capsys
):
    """Shuffling, dropout, augmentation, Adam's moments, statistics, loss scale are restored."""
    argv = ("--fine-tune-inputs", inputs, "--precision", precision)
    argv = (*argv, "--fine-tune-batch-norm", batch_norm, "--output-dir")
    expected = run(*argv, "uninterrupted")

    def interrupt(logger, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt
        begin(logger, epoch, logs)

    begin = EpochLogger.on_epoch_begin
    with monkeypatch.context() as patch:
        patch.setattr(EpochLogger, "on_epoch_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(*argv, "interrupted")
    assert not (tmp_path / "interrupted" / "metrics.json").exists()
    # A resumed run loads the statistics.
    monkeypatch.setattr(batch_norm_module, "recalibrate", None)
    capsys.readouterr()
    resumed = run(*argv, "interrupted", "--resume")
    assert "Resuming after epoch 4." in capsys.readouterr().out
    assert resumed.deterministic_metrics() == expected.deterministic_metrics()
    assert resumed.metrics["fine_tuning"] == {"head_epochs": 2}

    if inputs == "augmented":  # resuming a finished run only writes its results again
        again = run(*argv, "interrupted", "--resume")
        assert again.deterministic_metrics() == expected.deterministic_metrics()
        assert again.history == resumed.history
