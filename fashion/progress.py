"""Progress of a loop over images."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from fashion.errors import raise_if_terminated

T = TypeVar("T")


def with_progress(items: Sequence[T], title: str, images_per_item: int = 1) -> Iterator[T]:
    """Yield the items; on a terminal, update a line with the rate, else print one per minute.

    A bar of tqdm or Keras would fill a file with control characters. Loops that take less than a
    second print nothing. `title` says what is done, such as "Reading".
    """
    is_terminal, start = sys.stdout.isatty(), time.monotonic()
    next_print_time, has_printed = start + 1, False
    for done, item in enumerate(items, 1):
        raise_if_terminated()
        yield item
        ended_early = done == len(items) and not has_printed
        if (now := time.monotonic()) < next_print_time or ended_early:
            continue
        next_print_time, has_printed = now + (0.5 if is_terminal else 60), True
        rate = done * images_per_item / (now - start)
        minutes = (len(items) - done) * images_per_item / rate / 60
        text = f"{title}: {done / len(items):.0%}, {rate:.0f} images/s, {minutes:.1f} min left"
        print(f"\r{text}  " if is_terminal else text, end="" if is_terminal else "\n", flush=True)
    if is_terminal and has_printed:
        print()
