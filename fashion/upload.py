"""How long a run waits for W&B's server, and what it does without: W&B itself may wait for days."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

from fashion import errors

import wandb

PATIENCE = 12  # seconds without an answer, of a run in all
waited = [0.0]  # so many of them so far
Work = Callable[[wandb.Run], object]


def carry(
    run: wandb.Run, work: Work, so_far: Iterable[Work] = (), close: bool = False
) -> wandb.Run:
    """Does the work with the run; where the server holds it up, with an offline one in its place.

    An online run's own file is not enough: `wandb sync` finds no artifact in it.

    Args:
        run: an open one.
        work: logs something to the run that it is given.
        so_far: what has been logged before, for the one that takes its place.
        close: finish the run if it is online, so that all is uploaded when this returns.

    Returns:
        The run, or the one in its place.
    """
    if run.offline or run.disabled:
        work(run)
        return run

    def all_of_it() -> None:
        work(run)
        if close:
            run.finish()
            wandb.Api()  # raises if the key is refused meanwhile, of which `finish` says nothing

    url = run.settings.base_url
    if in_time(all_of_it, url):
        return run
    print(f"W&B: {url} does not take it all, so this run is kept offline, too.")
    replacement = wandb.init(
        mode="offline",
        reinit="create_new",
        settings=wandb.Settings(silent=True),
        project=run.project,
        group=run.group,
        job_type=run.job_type,
        tags=run.tags,
        config=run.config.as_dict(),
    )
    for each in (*so_far, work):
        each(replacement)
    return replacement


def finish(run: wandb.Run, exit_code: int | None) -> None:
    """Finishes a run; one that is online without waiting for long."""
    if run.offline or run.disabled:
        run.finish(exit_code)
    elif not in_time(lambda: run.finish(exit_code), run.settings.base_url):
        print(f"W&B: {run.settings.base_url} did not take all of this run.")


def in_time(work: Callable[[], object], url: str) -> bool:
    """Whether the work ends well: it may take any time while the server answers, else `PATIENCE`.

    A large model may take minutes on its way to a server that is well.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    since = time.monotonic()
    try:
        thread.join(2)
        while thread.is_alive() and waited[0] < PATIENCE:
            well = answers(url)
            since, before = time.monotonic(), since
            if not well:
                waited[0] += since - before
            thread.join(1)
    finally:  # of Ctrl-C, too
        if thread.is_alive():
            errors.stuck.set()
    if raised and not isinstance(raised[0], wandb.Error):
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
    except (OSError, http.client.HTTPException):
        return False
    return True
