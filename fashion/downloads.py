"""What Keras downloads: where it is kept, and whether it can be reached."""

import http.client
import os
import threading
import urllib.parse
import urllib.request
from pathlib import Path


def keras_home() -> Path:
    """Keras' folder for downloads."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")))


def check_reachable(url: str, seconds: int = 8) -> None:
    """Raises an `OSError` or `HTTPException` unless a URL answers within so many seconds.

    A plain connection attempt is no such check: where a firewall drops packets it waits for its
    timeout once per address of the host, which adds up to minutes.
    """
    errors: list[Exception] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except (OSError, http.client.HTTPException) as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer from {urllib.parse.urlsplit(url).hostname} in {seconds} s")
    if errors:
        raise errors[0]
