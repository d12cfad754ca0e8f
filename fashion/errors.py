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

# Set when a library thread may block forever, or when a library has failed: the shutdown of the
# interpreter would hang, or fail, as well.
skip_interpreter_shutdown = threading.Event()


class UserError(Exception):
    """An error that the user can fix: the message says what happened and what to do."""

    exit_code = 1


class UsageError(UserError):
    """An invalid option or setting."""

    exit_code = 2


class CacheDirError(UserError):
    """An error of writing to `--cache-dir`."""

    def __init__(self, error: OSError) -> None:
        """Describe `error`."""
        super().__init__(f"--cache-dir: {error}; use a writable directory with free space")


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end; handled like Ctrl-C.

    SIGTERM is sent by job schedulers before they kill a job, SIGHUP when a terminal is closed.
    """

    def __init__(self, signal_number: int) -> None:
        """Record which signal it was."""
        super().__init__()
        self.exit_code = 128 + signal_number


SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def _handle_signal(signal_number: int, _frame: object) -> NoReturn:
    signal.signal(signal_number, signal.SIG_IGN)  # `timeout` sends it twice
    raise Terminated(signal_number)


def exit_process(code: int, immediately: bool = False) -> NoReturn:
    """Exit; skip interpreter shutdown if `immediately` or if a library thread hangs."""
    if not is_main_program():
        sys.exit(code)
    if not immediately and not skip_interpreter_shutdown.is_set():
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


def run_and_exit(main: Callable[[], None]) -> NoReturn:
    """Call `main`, print errors in a line or two, and exit the process.

    Exit codes: 0 for success, 1 or 2 for an error, 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP,
    and 141 (a shell's code for SIGPIPE) if the reader of the output is gone, as after `| head`.
    """
    script_name = Path(sys.argv[0]).name
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals without "…" or "×"
    try:
        with _handling_signals():
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
        terminated = isinstance(error, Terminated)
        with contextlib.suppress(OSError):  # the terminal may be closed
            what = "terminated" if terminated else "interrupted"
            print(f"\n{script_name}: {what}", file=sys.stderr)
        # A TensorFlow thread may be in the middle of an epoch, and interpreter shutdown may crash.
        exit_process(error.exit_code if isinstance(error, Terminated) else 130, immediately=True)


@contextlib.contextmanager
def _handling_signals() -> Iterator[None]:
    """Raise `Terminated` on `SIGNALS` inside the block, unless the process handles or ignores them.

    `nohup`, for example, ignores SIGHUP.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    unhandled = [s for s in SIGNALS if in_main_thread and signal.getsignal(s) == signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, _handle_signal)
    try:
        yield
    finally:
        for number in unhandled:
            # After a signal, further ones are ignored until the process has ended.
            if signal.getsignal(number) != signal.SIG_IGN or not is_main_program():
                signal.signal(number, signal.SIG_DFL)


def _discard_output() -> None:
    """Discard what is still to be written to stdout, so that shutdown does not fail as well."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
