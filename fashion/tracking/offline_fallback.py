"""Unresponsive W&B servers: deadlines, and an offline copy of the run.

Without deadlines, W&B may wait for its server for days.
"""

import contextlib
import http.client
import secrets
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator

from fashion import errors

import wandb

MAX_UNRESPONSIVE_SECONDS = 12  # that one process waits in total for an unresponsive server
unresponsive_seconds = [0.0]  # waited so far
LogFunction = Callable[[wandb.Run], wandb.Artifact | None]  # logs to a run; may return an artifact


@contextlib.contextmanager
def tolerate_crash() -> Iterator[None]:
    """Continue without W&B if its process has ended, as by the kernel's out-of-memory killer."""
    try:
        yield
    except ConnectionError as error:
        if not errors.skip_interpreter_shutdown.is_set():
            print(f"W&B: its process has ended ({error}); this run continues without it.")
        errors.skip_interpreter_shutdown.set()  # W&B's exit hook would fail as well


def log_with_offline_fallback(
    run: wandb.Run,
    log_fn: LogFunction,
    replay: Iterable[LogFunction] = (),
    size: int | None = None,
) -> wandb.Run:
    """Log to the run; if the server does not respond, log to a new offline run instead.

    The file of the online run is not enough for an upload later: `wandb sync` finds no artifact in
    it.

    Args:
        run: Open W&B run.
        log_fn: Called with a run to log to.
        replay: Earlier log functions, called for the offline run first.
        size: If given, finish an online run, so that everything is uploaded on return. The deadline
            allows for the upload of `size` bytes at 2 Mbit/s, and of the images of tables.

    Returns:
        `run`, or the offline run that replaces it.
    """
    if run.offline or run.disabled:
        with tolerate_crash():
            log_fn(run)
        return run

    def log_and_finish() -> None:
        artifact = log_fn(run)
        if size is not None:
            if artifact:
                artifact.wait()  # raises if the server refuses it, which `finish` ignores
            run.finish()
            wandb.Api()  # raises if the server refuses the key

    url = run.settings.base_url
    # 60 s suffice for a thousand small images.
    if run_with_deadline(log_and_finish, url, limit=20 if size is None else 60 + size / 250_000):
        return run
    print(f"W&B: {url} is not accepting uploads; saving an offline copy of this run.")
    try:
        offline_run = _init_offline_copy(run)
    except Exception as error:  # in a sweep, W&B allows only one run per process
        reason = " ".join(str(error).split())
        print(f"W&B: no offline copy ({reason}); the results in the output directory are complete.")
        return run
    for function in (*replay, log_fn):
        function(offline_run)
    return offline_run


def _init_offline_copy(run: wandb.Run) -> wandb.Run:
    """Start an offline run with the settings and the config of a run."""
    return wandb.init(
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


def finish(run: wandb.Run, exit_code: int | None) -> None:
    """Finish a run; wait at most 10 s for the server if it is online."""
    if run.offline or run.disabled:
        with tolerate_crash():
            run.finish(exit_code)
    elif not run_with_deadline(lambda: run.finish(exit_code), run.settings.base_url, limit=10):
        print(
            f"W&B: {run.settings.base_url} did not accept all data of this run; "
            "the results in the output directory are complete."
        )


def run_with_deadline(function: Callable[[], object], url: str, limit: float) -> bool:
    """Run a function in a thread; give up if the W&B server does not respond.

    Only W&B's own server is checked, not another server that files are uploaded to.

    Args:
        function: Function to run.
        url: W&B server to check while the function runs.
        limit: Maximum number of seconds. Seconds without a response of the server also count
            toward `MAX_UNRESPONSIVE_SECONDS` of the process.

    Returns:
        Whether the function finished in time and W&B raised no error.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    last_check = start = time.monotonic()
    try:
        thread.join(2)
        while (
            thread.is_alive()
            and unresponsive_seconds[0] < MAX_UNRESPONSIVE_SECONDS
            and last_check - start < limit
        ):
            is_healthy = server_responds(url)
            last_check, previous_check = time.monotonic(), last_check
            if not is_healthy:
                unresponsive_seconds[0] += last_check - previous_check
            thread.join(1)
    finally:  # also after Ctrl-C
        if thread.is_alive():
            errors.skip_interpreter_shutdown.set()
    # `Artifact.wait` raises a ValueError.
    if raised and not isinstance(raised[0], wandb.Error | ValueError | ConnectionError):
        raise raised[0]
    return not raised and not thread.is_alive()


def server_responds(url: str) -> bool:
    """Return whether a W&B server responds to a minimal query within 2 s."""
    request = urllib.request.Request(
        f"{url}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
    )
    settings = wandb.setup().settings
    configured = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = urllib.request.getproxies() | {k: v for k, v in configured.items() if v}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        opener.open(request, timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        if "unknown url type" in str(error.reason):  # a SOCKS proxy, which W&B may support
            return True
        return isinstance(error.reason, ssl.SSLError)  # it responds, and W&B may trust it
    except (OSError, http.client.HTTPException):
        return False
    return True
