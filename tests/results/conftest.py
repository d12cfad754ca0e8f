"""Made-up predictions for the sample, and a run that saved them."""

from fashion.results import evaluation, output
from fashion.results.evaluation import Evaluation, Neighbors, Predictions
from fashion.run import Run

import keras
import pytest
from helpers.results import make_predictions, open_run


@pytest.fixture(scope="session")
def predictions(sample) -> dict[str, Predictions]:
    return make_predictions(sample, num_errors=90)


@pytest.fixture(scope="session")
def evaluations(predictions, sample) -> dict[str, Evaluation]:
    return evaluation.evaluate(predictions, sample, temperature=1)


@pytest.fixture(scope="session")
def neighbors(predictions, evaluations) -> Neighbors:
    mistakes = evaluations["test"].most_confident_errors(12)
    return evaluation.nearest_neighbors(
        predictions["test"].embeddings[mistakes], predictions["train"].embeddings, 4
    )


@pytest.fixture(scope="session")
def model() -> keras.Model:
    images = keras.Input((28, 28), dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    frozen = keras.layers.Dense(3, trainable=False)(keras.layers.Flatten()(scaled))
    return keras.Model(images, keras.layers.Dense(10, activation="softmax")(frozen))


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory, sample, predictions, evaluations, model) -> Run:
    """A finished run, with an offline W&B run next to its output directory."""
    root = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(root))
        with open_run(sample, root / "output", "--wandb", "offline", "--project", "mine") as run:
            run.lap("evaluation")
            output.save_results(run, model, predictions, evaluations, temperature=1)
    return run
