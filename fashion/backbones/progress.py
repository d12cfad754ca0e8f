"""How far a long pass is, for the user and for W&B."""

import sys
import time

import keras
import wandb


class Progress:
    """Counts images; the rate leaves out the first step, which includes tracing."""

    def __init__(self, title: str, run: wandb.Run) -> None:
        """`title` is the pass's, for the user and, in lower case, of W&B's charts."""
        self.title, self.run = title, run
        self.rate: float | None = None  # images per second, once warm

    def begin(self, target: int) -> None:
        """So many images are to be done."""
        self.target, self.done = target, 0
        self.start = self.last_line = time.perf_counter()
        self.warm: tuple[int, float] | None = None  # images and time after the first step
        self.bar: keras.utils.Progbar | None = None
        name = self.title.lower()
        self.run.define_metric(f"{name}/*", step_metric=f"{name}/images")

    def advance(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        now = time.perf_counter()
        values = {"images": self.done, "seconds": now - self.start}
        if self.warm:
            done, since = self.warm
            self.rate = (self.done - done) / (now - since)
            values["images_per_second"] = self.rate
            if self.bar or self.done < self.target:
                self._show(now, self.rate)
        else:
            self.warm = self.done, now
        self.run.log({f"{self.title.lower()}/{name}": value for name, value in values.items()})

    def _show(self, now: float, rate: float) -> None:
        minutes = (self.target - self.done) / rate / 60
        if not sys.stdout.isatty():  # a bar would fill the file with a terminal's codes
            if self.last_line == self.start or now - self.last_line > 60:
                self.last_line = now
                print(
                    f"{self.done:,} of {self.target:,} images at {rate:.0f} images/s, about "
                    f"{minutes:.1f} minutes to go",
                    flush=True,
                )
            return
        if not self.bar:
            print(f"About {minutes:.1f} minutes at {rate:.0f} images/s.")
            self.bar = keras.utils.Progbar(
                self.target, interval=0.5, stateful_metrics=["images/s"], unit_name="image"
            )
        self.bar.target = self.target
        self.bar.update(self.done, [("images/s", rate)])
