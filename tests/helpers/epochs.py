"""Made-up metrics of epochs."""

from fashion.run import EpochMetrics


def make_epoch(epoch: int, val_accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        accuracy=0.5,
        loss=1.0,
        val_accuracy=val_accuracy,
        val_loss=1.0,
        learning_rate=1e-3,
        seconds=1.0,
    )
