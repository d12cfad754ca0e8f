"""Progress of feature extraction, printed and logged to W&B."""

import sys
import time

import keras
import wandb

SECONDS_BETWEEN_LINES = 60  # where stdout is not a terminal


class Progress:
    """Count images and their rate; the rate leaves out the first step, which includes tracing.

    Attributes:
        title: Name of the features, for the user.
        key: Prefix of the metrics in W&B.
        rate: Images per second, or None before the second step.
    """

    def __init__(self, title: str, wandb_run: wandb.Run, key: str = "") -> None:
        """Create a progress reporter that logs to `wandb_run`.

        By default, the key is the title in lower case.
        """
        self.title, self.wandb_run, self.key = title, wandb_run, key or title.lower()
        self.rate: float | None = None

    def reset(self, total: int) -> None:
        """Start counting `total` images."""
        self.total, self.done = total, 0
        self.start = self.last_line = time.perf_counter()
        self.after_warmup: tuple[int, float] | None = None  # images and time after the first step
        self.bar: keras.utils.Progbar | None = None
        self.wandb_run.define_metric(f"{self.key}/*", step_metric=f"{self.key}/images")

    def update(self, n: int) -> None:
        """Count `n` more images as done."""
        self.done += n
        now = time.perf_counter()
        metrics = {"images": self.done, "seconds": now - self.start}
        if self.after_warmup:
            warmup_images, warmup_end = self.after_warmup
            self.rate = (self.done - warmup_images) / (now - warmup_end)
            metrics["images_per_second"] = self.rate
            if self.bar or self.done < self.total:
                self._print_progress(now, self.rate)
        else:
            self.after_warmup = self.done, now
        self.wandb_run.log({f"{self.key}/{name}": value for name, value in metrics.items()})

    def _print_progress(self, now: float, rate: float) -> None:
        minutes = (self.total - self.done) / rate / 60
        if not sys.stdout.isatty():  # a bar would fill a file with control characters
            if self.last_line == self.start or now - self.last_line > SECONDS_BETWEEN_LINES:
                self.last_line = now
                print(
                    f"{self.done:,} of {self.total:,} images at {rate:.0f} images/s, about "
                    f"{minutes:.1f} minutes left",
                    flush=True,
                )
            return
        if not self.bar:
            print(f"About {minutes:.1f} minutes at {rate:.0f} images/s.")
            self.bar = keras.utils.Progbar(
                self.total, interval=0.5, stateful_metrics=["images/s"], unit_name="image"
            )
        self.bar.target = self.total
        self.bar.update(self.done, [("images/s", rate)])
