"""Fine-tuning: what it trains, from which batches, and how it ends."""

import json
import shutil

from fashion.backbones import architectures
from fashion.tracking.history import EpochLog
from fashion.tracking.run import Run

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    SAMPLE,
    Result,
    build_small_resnet,
    load,
    make_files_small,
    make_resnet_small,
    parse,
    train,
)

import common
import resnet50_fashion

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 2, "--fine-tune-batch-size", 20),
)


@pytest.fixture
def run_real(run_main, shared_cache, small_files):
    """Runs the fine-tuning of a network of `keras.applications`."""
    words = (*FAST, "--cache-dir", shared_cache)
    return lambda *more: run_main(resnet50_fashion, *words, *more)


@pytest.fixture
def run(run_real, small_resnet):
    """Runs the fine-tuning of a small ResNet50, each time anew; `--resume` is for tests of it."""
    return run_real


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of the small ResNet50, in it `output` and `cache`."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        make_resnet_small(patch)
        make_files_small(patch)
        folders = ("--output-dir", folder / "output", "--cache-dir", folder / "cache")
        train(resnet50_fashion, *FAST, *folders)
    return folder


# ------------------------------------------------------------------------------- whole runs


def kernels(layers):
    """Weights by path, without the head's."""
    weights = [weight for layer in layers for weight in layer.weights]
    return {w.path: w.numpy() for w in weights if w.path.startswith("conv")}


def check_that_only_unfrozen_kernels_move(run, inputs):
    # A head that has hardly learnt: the best epoch is one of the fine-tuning.
    weak = ("--epochs", 1, "--learning-rate", 1e-7, "--fine-tune-learning-rate", 1e-4)
    weak = (*weak, "--fine-tune-epochs", 4, "--fine-tune-batch-size", 5)
    result = run("--fine-tune-blocks", 2, "--fine-tune-inputs", inputs, *weak)
    assert result.metrics["best_epoch"] > 1
    model = result.model
    backbone = resnet50_fashion.load_backbone(parse(resnet50_fashion, *FAST))
    before = kernels(backbone.network.layers)
    frozen = kernels(backbone.folded.layers)
    (upper,) = (kernels(layer.layers) for layer in model.layers if isinstance(layer, keras.Model))
    lower = kernels(layer for layer in model.layers if not isinstance(layer, keras.Model))
    statistics = [path for path in upper if "moving_" in path]
    assert len(statistics) == 2 * 6 and any("_bn/gamma" in path for path in upper)
    for path, value in upper.items():
        same = np.array_equal(value, before[path])
        assert same == ("_bn/" in path), path
    assert {path.split("_")[0] for path in lower} == {"conv1", "conv2", "conv3", "conv4", "conv5"}
    assert {"/".join(p.split("_")[:2]) for p in upper} == {"conv5/block2", "conv5/block3"}
    for path, value in lower.items():
        np.testing.assert_array_equal(value, frozen[path])


def test_only_the_unfrozen_kernels_move(run):
    check_that_only_unfrozen_kernels_move(run, "cached")


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["cached", "augmented"])
def test_only_the_unfrozen_kernels_of_the_resnet50_move(inputs, run_real):
    check_that_only_unfrozen_kernels_move(run_real, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES.keys() - {"resnet50"}))
def test_each_other_backbone_extracts_trains_fine_tunes_saves_and_loads(name, run_real):
    result = run_real("--backbone", name, "--features", "conv4", "--image-size", 96)
    test = load(train_size=60, validation_size=20, test_size=20).test
    probabilities = result.model.predict(test.images, verbose=0)
    assert probabilities.shape == (20, 10)
    accuracy = np.mean(probabilities.argmax(1) == test.labels)
    assert result.metrics["test"]["accuracy"] == pytest.approx(accuracy, abs=0.051)
    assert len(result.history) == 4


@pytest.mark.parametrize("inputs", ["cached", pytest.param("computed", marks=pytest.mark.slow)])
def test_answers_are_the_saved_models_and_what_its_last_layer_sees(inputs, run, monkeypatch):
    saved = {}

    def save(of, model, answers):
        saved.update(answers)
        save_it(of, model, answers)

    save_it = Run.save
    monkeypatch.setattr(Run, "save", save)
    model = run("--fine-tune-inputs", inputs).model
    (upper,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    kernel, bias = upper.layers[-1].get_weights()
    data = load(train_size=60, validation_size=20, test_size=20)
    for name, split in data.splits.items():
        probabilities, embeddings = saved[name]
        expected = model.predict(split.images, verbose=0)
        np.testing.assert_allclose(probabilities, expected, atol=1e-3)
        again = keras.ops.softmax(embeddings.astype("float32") @ kernel + bias)
        np.testing.assert_allclose(again, expected, atol=5e-3)


def test_cached_activations_train_as_computed_ones_and_augmented_ones_do_not(run, finished):
    cached = Result(finished / "output")
    computed, augmented = (run("--fine-tune-inputs", name) for name in ("computed", "augmented"))
    names = [result.metrics["config"]["fine_tune_inputs"] for result in (cached, computed)]
    assert names == ["cached", "computed"]
    for one, other in zip(cached.history, computed.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert cached.history[-1]["loss"] != cached.history[2]["loss"]
    losses = [[row["loss"] for row in result.history] for result in (computed, augmented)]
    assert losses[0][:2] == losses[1][:2]  # the head's
    assert losses[0][2] != pytest.approx(losses[1][2], rel=0.01)
    assert not any("random" in layer.name for layer in augmented.model.layers)


@pytest.mark.slow
def test_float16_trains_as_float32_does(run):
    """In head and fine-tuning, whose small gradients would be 0 unless the loss were scaled."""
    words = ("--dropout", 0, "--fine-tune-inputs", "computed", "--precision")
    expected, result = (run(*words, precision) for precision in ("float32", "float16"))
    dtypes = {x.compute_dtype for x in result.model.layers if x.name.startswith("conv1")}
    assert dtypes == {"float16"}
    assert isinstance(result.model.optimizer, keras.optimizers.LossScaleOptimizer)
    for one, other in zip(expected.history, result.history, strict=True):
        for name in "loss", "val_loss", "learning_rate", "val_accuracy":
            assert one[name] == pytest.approx(other[name], rel=0.03)
    assert result.history[-1]["loss"] < result.history[2]["loss"] < result.history[0]["loss"]


def test_too_little_memory_loses_nothing_and_smaller_batches_go_on(run, tmp_path, monkeypatch):
    """As where the first step has too large a batch, of which the head knew nothing."""
    begin = EpochLog.on_epoch_begin

    def need_too_much(log, epoch, logs=None):
        begin(log, epoch, logs)
        if epoch == 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_epoch_begin", need_too_much)
        with pytest.raises(common.UserError, match=r"^out of memory during fine-tuning: .*") as end:
            run()
    assert str(end.value).endswith("try it with a lower --fine-tune-batch-size, and --resume")
    resumed = run("--fine-tune-batch-size", 10, "--resume")
    anew = run("--fine-tune-batch-size", 10, "--output-dir", tmp_path / "anew")
    assert resumed.without_time() == anew.without_time()


def test_fine_tuning_options_reach_what_they_name(run, finished):
    results = [
        Result(finished / "output"),
        run("--fine-tune-learning-rate", 3e-4),
        run("--fine-tune-batch-size", 3, "--fine-tune-epochs", 3),
    ]
    histories = [[row["loss"] for row in result.history] for result in results]
    assert all(losses[:2] == histories[0][:2] for losses in histories)
    assert [len(losses) for losses in histories] == [4, 4, 5]
    assert len({losses[3] for losses in histories}) == 3
    # It falls from its highest as half a cosine: of 6 steps, 3 have been done at the second epoch.
    rates = [[row["learning_rate"] for row in result.history[2:]] for result in results]
    assert rates[0] == pytest.approx([1e-4, 1e-4 / 2], rel=1e-3)
    assert rates[1] == pytest.approx([3e-4, 3e-4 / 2], rel=1e-3)
    # It rises for a tenth of the steps, 6 of 60; 20 and 40 have been done at the later epochs.
    falling = [1e-4 * (1 + np.cos(np.pi * (step - 6) / 54)) / 2 for step in (20, 40)]
    assert rates[2] == pytest.approx([0, *falling], rel=1e-3)


def test_it_ends_when_it_gets_no_better_and_the_best_epoch_may_be_the_heads(run):
    # So high a rate spoils the network, but not to the point where the loss is no number.
    words = ("--fine-tune-learning-rate", 10, "--fine-tune-epochs", 9, "--patience", 2)
    result = run(*words, "--epochs", 20, "--seed", 1)
    accuracies = [row["val_accuracy"] for row in result.history]
    head_epochs = result.metrics["fine_tuning"]["head_epochs"]
    best = result.metrics["best_epoch"]
    assert best == 1 + np.argmax(accuracies) <= head_epochs
    assert len(accuracies) == head_epochs + 2
    assert result.metrics["validation"]["accuracy"] == max(accuracies)


# It shows within the epoch, or after its only step.
@pytest.mark.parametrize("batch", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_epoch(batch, run, tmp_path):
    with pytest.raises(
        common.UserError, match=r"the loss in epoch [34] is (nan|inf): .*--resume and a"
    ):
        run("--fine-tune-batch-size", batch, "--fine-tune-learning-rate", 1e38)
    folder = tmp_path / "outputs" / "resnet50_fashion" / "checkpoint"
    state = json.loads((folder / "state.json").read_text())
    assert (folder / state["last"]).exists() and (folder / state["best"]).exists()
    result = run("--fine-tune-batch-size", batch, "--resume")
    assert np.isfinite(result.history[-1]["loss"]) and len(result.history) == 4


def test_damaged_checkpoint_is_named_and_damaged_activations_are_computed_anew(
    run, finished, tmp_path, capfd
):
    expected = Result(finished / "output").without_time()
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    words = ("--output-dir", tmp_path / "output", "--cache-dir", tmp_path / "cache")
    checkpoint = tmp_path / "output" / "checkpoint"
    weights = checkpoint / "epoch-004.weights.h5"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(common.UserError, match=rf"{weights.name} is damaged .*: delete its folder"):
        run(*words, "--resume")
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(common.UserError, match=r"state.json cannot be read: it has no .*; delete"):
        run(*words, "--resume")
    (checkpoint / "state.json").unlink()
    damaged = []
    for name in "train", "test":
        folder = load().splits[name].digest[:16]
        damaged += tmp_path.glob(f"cache/*/activations-*/{folder}/000000.npz")
    assert len(damaged) == 2
    for path in damaged:
        content = bytearray(path.read_bytes())
        for i in range(len(content) // 3, len(content) * 2 // 3, 100):
            content[i] ^= 1
        path.write_bytes(content)
    capfd.readouterr()
    assert run(*words).without_time() == expected
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.split(" is damaged ")[0] for line in lines) == sorted(map(str, damaged))


def test_more_blocks_than_there_are_is_a_usage_error(command_line, small_resnet):
    words = ("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64)
    done = command_line(resnet50_fashion, *words, "--fine-tune-blocks", 7)
    assert done.code == 2
    expected = "--fine-tune-blocks 7: only 6 blocks are before the features' end"
    assert done.err == f"resnet50_fashion.py: error: {expected}\n"


def test_small_resnet_is_a_resnet50_but_for_its_size():
    """What the tests above stand on: its layers are some of those of the real one."""
    small = build_small_resnet(include_top=False, weights=None, input_shape=(64, 64, 3))
    real = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    ours, theirs = (
        {(layer.name, type(layer)) for layer in network.layers[1:]} for network in (small, real)
    )
    assert ours < theirs
