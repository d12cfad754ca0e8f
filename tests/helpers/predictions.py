"""Made-up predictions for the sample's images."""

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.embeddings import EmbeddingAnalysis, Predictions
from fashion.evaluation.metrics import Evaluation

import numpy as np


def random_evaluation(sample) -> Evaluation:
    """Evaluate random probabilities for the sample's test images."""
    rng = np.random.default_rng(0)
    return Evaluation(rng.dirichlet(np.full(10, 0.3), 400), sample.test.labels, CLASS_NAMES)


def make_analysis(sample, num_errors) -> tuple[EmbeddingAnalysis, dict[str, Predictions]]:
    """Analyze predictions with `num_errors` errors on the test images."""
    rng = np.random.default_rng(0)
    predictions = {}
    for name in "train", "test":
        split = sample.splits[name]
        labels = split.labels.copy()
        if name == "test":
            labels[:num_errors] = (labels[:num_errors] + 1) % 10
        probabilities = (np.eye(10)[labels] * 0.5 + rng.dirichlet(np.ones(10), split.size)) / 1.5
        embeddings = rng.normal(size=(split.size, 6)) + 3 * np.eye(10)[labels][:, :6]
        predictions[name] = Predictions(probabilities, embeddings.astype("float16"))
    evaluation = Evaluation(predictions["test"].probabilities, sample.test.labels, CLASS_NAMES)
    return EmbeddingAnalysis.from_predictions(predictions, evaluation), predictions
