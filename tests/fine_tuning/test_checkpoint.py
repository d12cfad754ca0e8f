"""What `--resume` goes on with, and what it refuses."""

import json
import resource

from fashion.backbones import architectures
from fashion.cli.recipes import RECIPES
from fashion.fine_tuning.checkpoint import open_checkpoint
from fashion.tracking.history import EpochLog
from fashion.tracking.run import Run

import keras
import numpy as np
import pytest
from conftest import SAMPLE, build_small_resnet, contents, load, parse
from test_epochs import epoch

import common
import resnet50_fashion

# --------------------------------------------------------------- a checkpoint and its rules


@pytest.fixture(scope="module")
def backbone():
    network = build_small_resnet(False, None, (64, 64, 3))
    return architectures.Backbone("resnet50", network, network, "float32")


@pytest.fixture
def open_with(backbone, sample, tmp_path):
    """Opens the checkpoint in a folder as a run with these options would."""

    def open_it(*words, backbone=backbone, data=sample):
        words = ("--fine-tune-blocks", 1, "--output-dir", tmp_path, *words)
        options = parse(resnet50_fashion, *words)
        tuning = options.fine_tuning
        return open_checkpoint(
            Run(options), data, backbone, tuning.fine_tune_learning_rate, tuning.resume
        )

    return open_it


@pytest.fixture
def model():
    """A model that has taken a step of Adam."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    return model


@pytest.fixture
def log(open_run):
    """Of three epochs of a head, the second the best."""
    return EpochLog(open_run.wandb_run, [epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.625)])


@pytest.fixture
def unfinished(open_with, model, log):
    """The checkpoint of a run that was ended after its first epoch of fine-tuning."""
    checkpoint = open_with()
    checkpoint.head_epochs, checkpoint.wandb_id = 3, "abcd1234"
    checkpoint.save(model, log)
    log.epochs.append(epoch(4, 0.625))
    checkpoint.save(model, log)
    return checkpoint


def names(checkpoint):
    return sorted(path.name for path in checkpoint.folder.iterdir())


def state(checkpoint):
    return json.loads((checkpoint.folder / "state.json").read_text())


def write_state(checkpoint, content):
    (checkpoint.folder / "state.json").write_text(json.dumps(content))


def test_new_checkpoint_is_before_the_first_epoch(open_with, tmp_path, capsys):
    new = open_with()
    assert (new.last, new.best, new.epochs, new.finished) == (None, None, [], False)
    assert not new.folder.exists()
    assert capsys.readouterr().out == ""
    assert open_with("--resume") == new
    path = tmp_path / "checkpoint" / "state.json"
    assert f"There is no {path} to resume from" in capsys.readouterr().out


def test_what_was_saved_is_resumed(unfinished, open_with, model, log):
    resumed = open_with("--resume")
    assert resumed == unfinished
    assert (resumed.head_epochs, resumed.wandb_id) == (3, "abcd1234")
    assert resumed.epochs == log.epochs and len(resumed.epochs) == 4
    expected = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
    resumed.load(model, resumed.last)
    loaded = [*model.variables, *model.optimizer.variables]
    for variable, value in zip(loaded, expected, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_last_and_best_are_kept_and_no_other(open_with, model, log):
    """The first to be saved is the best of the head's epochs, whose weights the model has."""
    checkpoint = open_with()
    checkpoint.save(model, log)
    assert names(checkpoint) == ["epoch-002.weights.h5", "state.json"]
    for number, accuracy, kept in (4, 0.7, [2, 4]), (5, 0.875, [5]), (6, 0.875, [5, 6]):
        log.epochs.append(epoch(number, accuracy))
        checkpoint.save(model, log)
        assert names(checkpoint) == [*(f"epoch-00{n}.weights.h5" for n in kept), "state.json"]
        assert checkpoint.last == f"epoch-00{number}.weights.h5"
        assert checkpoint.best == f"epoch-00{kept[0]}.weights.h5"


def test_state_is_what_earlier_versions_wrote(unfinished):
    expected = {"config", "rows", "last", "best", "head_epochs", "wandb_id", "learning_rate"}
    content = state(unfinished)
    assert content.keys() == expected | {"finished"}
    assert [row["epoch"] for row in content["rows"]] == [1, 2, 3, 4]
    assert content["learning_rate"] == 1e-4 and content["finished"] is False


def test_unfinished_run_is_not_lost_by_a_new_one(unfinished, open_with):
    before = state(unfinished)
    with pytest.raises(
        common.UsageError, match=r"has an unfinished run's epoch 4: --resume continues it\nTo start"
    ):
        open_with()
    assert state(unfinished) == before


FREE = {
    "data_dir": "elsewhere",
    "cache_dir": "elsewhere",
    "wandb": "offline",
    "project": "mine",
    "require_accuracy": 0.5,
    "weights": "some.h5",
    "gpus": 0,
    "fine_tune_learning_rate": 1e-5,
}
ANOTHER = {
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
    "dropout": 0.1,
    "patience": 3,
    "fine_tune_blocks": 2,
    "fine_tune_epochs": 3,
    "fine_tune_batch_size": 7,
    "fine_tune_inputs": "augmented",
}


def test_each_option_is_free_or_not():
    neither = {"model", "resume", "output_dir", "predict", "recipe", "mirror"}  # see below
    assert resnet50_fashion.Options().config().keys() == FREE.keys() | ANOTHER.keys() | neither


def test_run_with_another_option_is_not_resumed(unfinished, open_with):
    before = resnet50_fashion.Options().config() | {"fine_tune_blocks": 1}
    for option, value in ANOTHER.items():
        with pytest.raises(common.UsageError) as error:
            open_with("--resume", f"--{option}={value}")
        expected = f"had another {option} ({before[option]}, not {value})"
        assert str(error.value) == f"--resume: the run in {unfinished.folder} {expected}"


def test_run_with_another_recipe_or_mirrored_copies_is_not_resumed(unfinished, open_with):
    with pytest.raises(common.UsageError, match=r"had another mirror \(False, not True\)$"):
        open_with("--resume", "--mirror")
    with pytest.raises(
        common.UsageError,
        match=r"had another dropout .*, features \(conv5, not conv4_3x3\), image_size \(None, not",
    ):
        open_with("--resume", "--recipe", "fast")


def test_name_of_a_recipe_decides_nothing(open_with, unfinished):
    """Its options do, and may be given one by one as well."""
    old = state(unfinished)
    old["config"] |= RECIPES["fast"]
    write_state(unfinished, old)
    assert open_with("--resume", "--recipe", "fast").epochs == unfinished.epochs
    words = [f"--{name}={value}" for name, value in RECIPES["fast"].items()]
    assert open_with("--resume", *words).epochs == unfinished.epochs


def test_options_that_decide_nothing_may_be_others(unfinished, open_with):
    resumed = open_with("--resume", *(f"--{option}={value}" for option, value in FREE.items()))
    assert resumed.learning_rate == 1e-5
    resumed.learning_rate = unfinished.learning_rate
    assert resumed == unfinished


def test_option_that_an_old_checkpoint_does_not_name_counts_as_its_default(unfinished, open_with):
    """So a run of an earlier version, without that option, can be resumed, if it is not used."""
    old = state(unfinished)
    del old["config"]["dropout"], old["config"]["image_size"]
    write_state(unfinished, old)
    assert open_with("--resume").epochs == unfinished.epochs
    with pytest.raises(common.UsageError, match=r"had another dropout \(0.3, not 0.1\)$"):
        open_with("--resume", "--dropout", 0.1)


def test_run_on_other_data_weights_or_precision_is_not_resumed(unfinished, open_with, backbone):
    network = build_small_resnet(False, None, (64, 64, 3))
    for other, name in (
        (architectures.Backbone("resnet50", network, network, "float32"), "weights_sha256"),
        (
            architectures.Backbone("resnet50", backbone.network, backbone.network, "bfloat16"),
            "computed_in",
        ),
    ):
        with pytest.raises(common.UsageError, match=f"had another {name} "):
            open_with("--resume", backbone=other)
    data = load()
    data.sha256["train-images-idx3-ubyte"] = 64 * "0"
    with pytest.raises(common.UsageError, match=r"had another data_sha256$"):
        open_with("--resume", data=data)


def test_batches_may_become_smaller_before_the_first_epoch_alone(open_with, model, log):
    """Their size is what may not fit into a GPU's memory, and until then decides nothing."""
    checkpoint = open_with()
    checkpoint.head_epochs, checkpoint.wandb_id = 3, "abcd1234"
    checkpoint.save(model, log)
    resumed = open_with("--resume", "--fine-tune-batch-size", 16)
    assert resumed.epochs == log.epochs
    assert resumed.config["fine_tune_batch_size"] == 16
    log.epochs.append(epoch(4, 0.625))
    resumed.save(model, log)
    assert open_with("--resume", "--fine-tune-batch-size", 16) == resumed
    with pytest.raises(common.UsageError, match=r"another fine_tune_batch_size \(16, not 32\)$"):
        open_with("--resume")


def test_finished_run_gives_way_to_a_new_one(unfinished, open_with):
    unfinished.finish()
    assert open_with().last is None
    assert "state.json" not in names(unfinished)  # or `--resume` might take it for the new run's


def test_finished_run_can_be_resumed_only_as_it_was(unfinished, open_with):
    unfinished.finish()
    assert open_with("--resume").finished
    with pytest.raises(
        common.UsageError, match=r"has finished, with another fine_tune_learning_rate$"
    ):
        open_with("--resume", "--fine-tune-learning-rate", 1e-5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "it has no best, config, finished, head_epochs, last, learning_rate, rows"),
        ("[]", "it has no "),
        ("{", ""),
        ("7", ""),
        ("\x00", ""),
    ],
)
def test_damaged_state_is_an_error(content, reason, unfinished, open_with):
    (unfinished.folder / "state.json").write_text(content)
    for words in ("--resume",), ():
        with pytest.raises(
            common.UserError, match=rf"state.json cannot be read: {reason}.*; delete that folder$"
        ):
            open_with(*words)


def test_state_that_lacks_or_adds_something_is_an_error(unfinished, open_with):
    intact = state(unfinished)
    lacks, adds = json.loads(json.dumps(intact)), intact | {"novelty": 1}
    del lacks["rows"][0]["loss"]
    for odd, name in (lacks, "loss"), (adds, "novelty"):
        write_state(unfinished, odd)
        with pytest.raises(common.UserError, match=f"state.json cannot be read: .*{name}"):
            open_with("--resume")


def test_damaged_weights_are_named(unfinished, model):
    path = unfinished.folder / unfinished.last
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(common.UserError, match=rf"^{path} is damaged \(.*\): delete its folder$"):
        unfinished.load(model, unfinished.last)
    path.unlink()
    with pytest.raises(common.UserError, match=f"^{path} is damaged"):
        unfinished.load(model, unfinished.last)


def test_checkpoint_that_cannot_be_written_is_an_error(open_with, model, log):
    checkpoint = open_with()
    checkpoint.folder.touch()
    with pytest.raises(common.UserError, match=r"^no checkpoint could be written: "):
        checkpoint.save(model, log)


@pytest.fixture
def file_limit():
    """Sets the size that no file of this process may exceed, for one test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_without_room_is_an_error_and_the_last_stays(unfinished, model, log, file_limit):
    """And not h5py's, which may be the end of the process."""
    before = contents(unfinished.folder)
    file_limit(10_000)
    with pytest.raises(common.UserError, match=r"^no checkpoint could be written: .*too large$"):
        unfinished.save(model, log)
    assert contents(unfinished.folder) == before


def test_end_that_cannot_be_noted_is_an_error(unfinished, file_limit):
    before = contents(unfinished.folder)
    file_limit(100)
    with pytest.raises(common.UserError, match=r"^no checkpoint could be written: .*too large$"):
        unfinished.finish()
    assert contents(unfinished.folder) == before


# ------------------------------------------------------------------------------ whole runs

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 4, "--fine-tune-batch-size", 20),
)


@pytest.fixture
def run(run_main, shared_cache, small_resnet, small_files):
    words = (*FAST, "--cache-dir", shared_cache)
    return lambda *more: run_main(resnet50_fashion, *words, *more)


@pytest.mark.parametrize(
    ("inputs", "precision"),
    [
        ("cached", "float16"),
        pytest.param("cached", "float32", marks=pytest.mark.slow),
        pytest.param("augmented", "float32", marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_resumes_to_the_same_figures(
    inputs, precision, run, tmp_path, monkeypatch, capsys
):
    """Shuffling, dropout, augmentation, Adam's moments, the loss's scale go on where they were."""
    words = ("--fine-tune-inputs", inputs, "--precision", precision, "--output-dir")
    expected = run(*words, "whole")

    def interrupt(log, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt
        begin(log, epoch, logs)

    begin = EpochLog.on_epoch_begin
    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_epoch_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(*words, "interrupted")
    assert not (tmp_path / "interrupted" / "metrics.json").exists()
    capsys.readouterr()
    resumed = run(*words, "interrupted", "--resume")
    assert "Resuming after epoch 4." in capsys.readouterr().out
    assert resumed.without_time() == expected.without_time()
    assert resumed.metrics["fine_tuning"] == {"head_epochs": 2}

    if inputs == "augmented":  # of a finished run, only its results are made again
        again = run(*words, "interrupted", "--resume")
        assert again.without_time() == expected.without_time()
        assert again.history == resumed.history
