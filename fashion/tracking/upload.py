"""How long a run waits for W&B's server, and what it does without: W&B itself may wait for days."""

import http.client
import secrets
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

from fashion import errors

import wandb

PATIENCE = 12  # seconds without an answer, of a run in all
waited = [0.0]  # so many of them so far
Work = Callable[[wandb.Run], wandb.Artifact | None]  # logs something, perhaps an artifact


def carry(
    run: wandb.Run, work: Work, so_far: Iterable[Work] = (), size: int | None = None
) -> wandb.Run:
    """Does the work with the run; where the server holds it up, with an offline one in its place.

    An online run's own file is not enough: `wandb sync` finds no artifact in it.

    Args:
        run: an open one.
        work: logs something to the run that it is given.
        so_far: what has been logged before, for the one that takes its place.
        size: finish the run if it is online, so that all is uploaded when this returns: so many
            bytes, for which there is time at 2 Mbit/s, and pictures of tables.

    Returns:
        The run, or the one in its place.
    """
    if run.offline or run.disabled:
        work(run)
        return run

    def all_of_it() -> None:
        artifact = work(run)
        if size is not None:
            if artifact:
                artifact.wait()  # raises if it is refused, of which `finish` says nothing
            run.finish()
            wandb.Api()  # raises if the key is refused meanwhile

    url = run.settings.base_url
    # A minute for a thousand small pictures.
    if in_time(all_of_it, url, limit=20 if size is None else 60 + size / 250_000):
        return run
    print(f"W&B: {url} does not take it all, so this run is kept offline, too.")
    try:
        replacement = wandb.init(
            mode="offline",
            reinit="create_new",
            settings=wandb.Settings(silent=True),
            id=secrets.token_hex(4),
            project=run.project,
            group=run.group,
            job_type=run.job_type,
            tags=run.tags,
            config=run.config.as_dict(),
        )
    except Exception as error:  # W&B takes a sweep's trial for the one that is open
        print(f"W&B: no, it cannot be ({' '.join(str(error).split())}).")
        return run
    for each in (*so_far, work):
        each(replacement)
    return replacement


def finish(run: wandb.Run, exit_code: int | None) -> None:
    """Finishes a run; one that is online without waiting for long."""
    if run.offline or run.disabled:
        run.finish(exit_code)
    elif not in_time(lambda: run.finish(exit_code), run.settings.base_url, limit=10):
        print(f"W&B: {run.settings.base_url} did not take all of this run.")


def in_time(work: Callable[[], object], url: str, limit: float) -> bool:
    """Whether the work ends well, within `limit` seconds, and `PATIENCE` of them without an answer.

    Where files go to another server, that one's answers are not known.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    since = start = time.monotonic()
    try:
        thread.join(2)
        while thread.is_alive() and waited[0] < PATIENCE and since - start < limit:
            well = answers(url)
            since, before = time.monotonic(), since
            if not well:
                waited[0] += since - before
            thread.join(1)
    finally:  # of Ctrl-C, too
        if thread.is_alive():
            errors.stuck.set()
    # `Artifact.wait` raises a ValueError.
    if raised and not isinstance(raised[0], wandb.Error | ValueError):
        raise raised[0]
    return not raised and not thread.is_alive()


def answers(url: str) -> bool:
    """Whether a server is there and well enough to answer the least of questions."""
    question = urllib.request.Request(
        f"{url}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(question, timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # W&B may trust it
    except (OSError, http.client.HTTPException):
        return False
    return True
