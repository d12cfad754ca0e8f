"""Errors with a message for the user, and the exit codes of a script."""

import contextlib
import gc
import io
import os
import runpy
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

# Set when a library thread may block forever; interpreter shutdown would then hang as well.
library_thread_hangs = threading.Event()


class UserError(Exception):
    """An error that the user can fix: the message says what happened and what to do."""

    exit_code = 1


class UsageError(UserError):
    """An invalid option or setting."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a job scheduler sends before it kills a job; handled like Ctrl-C."""


def _handle_sigterm(*_args: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
    raise Terminated


def exit_process(code: int, immediately: bool = False) -> NoReturn:
    """Exit; skip interpreter shutdown if `immediately` or if a library thread hangs."""
    if not is_main_program():
        sys.exit(code)
    if not immediately and not library_thread_hangs.is_set():
        gc.freeze()  # else shutdown spends a second on TensorFlow's and Keras' objects
        sys.exit(code)
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError):  # the reader may be gone
            stream.flush()
    os._exit(code)


def is_main_program() -> bool:
    """Return whether this process was started to run the calling script.

    It was not if another program runs the script: a debugger, a profiler, IPython,
    `runpy.run_path`. Such a process must not be ended without its own cleanup.
    """
    # A script's module is the only frame outside of this package and of `python -m`.
    ours = f"{Path(__file__).parent}{os.sep}", runpy.__file__, "<frozen runpy>"
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(ours)]
    return [frame.name for frame in frames] == ["<module>"]


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call `main`, print errors in a line or two, and exit the process.

    Exit codes: 0 for success, 1 or 2 for an error, 130 for Ctrl-C, 143 for SIGTERM, and 141 (a
    shell's code for SIGPIPE) if the reader of the output is gone, as after `| head`.
    """
    script_name = Path(sys.argv[0]).name
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals without "…" or "×"
    try:
        with _handling_sigterm():
            try:
                main()
            finally:
                sys.stdout.flush()
        exit_process(0)
    except UserError as error:
        print(f"{script_name}: error: {error}", file=sys.stderr)
        exit_process(error.exit_code)
    except BrokenPipeError:
        _discard_output()
        exit_process(141)
    except OSError as error:  # such as that of a full disk to which the output is redirected
        _discard_output()
        print(f"{script_name}: error: {error}", file=sys.stderr)
        exit_process(1)
    except KeyboardInterrupt as error:
        warnings.simplefilter("ignore")  # asyncio's, about coroutines that wandb did not await
        is_terminated = isinstance(error, Terminated)
        print(
            f"\n{script_name}: {'terminated' if is_terminated else 'interrupted'}", file=sys.stderr
        )
        # A TensorFlow thread may be in the middle of an epoch, and interpreter shutdown may crash.
        exit_process(143 if is_terminated else 130, immediately=True)


@contextlib.contextmanager
def _handling_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside the block, unless the process handles it already."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _handle_sigterm)
    try:
        yield
    finally:
        # After a SIGTERM, further ones are ignored until the process has ended.
        if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN or not is_main_program():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _discard_output() -> None:
    """Discard what is still to be written to stdout, so that shutdown does not fail as well."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
