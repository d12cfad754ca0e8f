"""How a script ends: messages for the user, exit codes, signals."""

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import tensorflow as tf

# What a job scheduler or a closed terminal sends before the process is killed.
SIGNALS = {signal.SIGTERM}
if os.name == "posix":
    SIGNALS |= {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU}
ADVICE = {
    errno.ENOSPC: "free disk space, or use another directory",
    errno.EDQUOT: "free disk space, or use another directory",
    errno.EFBIG: "raise the limit of the file size (`ulimit -f`)",
    errno.EACCES: "check the permissions, or use another directory",
    errno.EPERM: "check the permissions, or use another directory",
    errno.EROFS: "use a directory that you can write to",
}
# What to reduce if memory runs out, by lap of a run.
OPTIONS_TO_REDUCE = {
    "extraction": "--image-size",
    "training": "--batch-size",
    "fine_tuning": "--fine-tune-batch-size, then continue with --resume",
}

current_lap = ""  # set by `Run.lap`
_received_signal = 0


class UserError(Exception):
    """An error that the user can fix: the message says what happened and what to do."""

    exit_code = 1


class UsageError(UserError):
    """An invalid option or setting."""

    exit_code = 2


def describe(error: OSError) -> str:
    """Return an error of the system in one line, with advice that fits its cause."""
    reason = " ".join(str(error).split()) or type(error).__name__
    advice = ADVICE.get(error.errno or 0)
    return f"{reason}; {advice}" if advice else reason


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def print_warning(message: str) -> None:
    """Print a warning on stderr."""
    print(f"WARNING: {message}", file=sys.stderr)


def raise_if_terminated() -> None:
    """Raise a `SystemExit` if a signal has asked the process to end.

    Loops call it, since Python swallows an exception that the signal handler raises while a
    `__del__` method runs.
    """
    if _received_signal:
        raise SystemExit(128 + _received_signal)


@contextlib.contextmanager
def warn_on_failure(subject: str) -> Iterator[None]:
    """Print any error as a warning: the results of a run do not depend on `subject`."""
    try:
        yield
    except Exception as error:
        raise_if_terminated()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print_warning(f"could not make {subject} ({reason})")
        if sys.flags.dev_mode:
            traceback.print_exc()


def _handle_signal(number: int, _frame: FrameType | None) -> None:
    global _received_signal
    _received_signal = number
    warnings.simplefilter("ignore")  # of asyncio, about coroutines that W&B no longer awaits
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # `timeout` sends its signal twice
    raise_if_terminated()


def run_and_exit(main: Callable[[], None]) -> NoReturn:
    """Call `main`, print errors in a line or two, and exit the process.

    Exit codes: 0 for success, 1 or 2 for an error, 130 for Ctrl-C, 128 + n for signal n, and 141 (a
    shell's code for SIGPIPE) if the reader of the output is gone, as after `| head`. Other errors
    are bugs and show their traceback; with `python -X dev`, all errors do.
    """
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals without "…" or "×"
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` ignores SIGHUP
            signal.signal(number, _handle_signal)
    code, message = 0, ""
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BaseException as error:
        code, known_message = exit_status(error)
        if known_message is None:
            raise
        message = known_message
        if message and sys.flags.dev_mode:
            traceback.print_exc()
    for stream, text in (sys.stdout, ""), (sys.stderr, message):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:  # the terminal is closed, or the reader of the output is gone
            # What is still buffered would raise the error again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    gc.freeze()  # otherwise shutdown spends 1 to 2 s on the objects of TensorFlow and Keras
    sys.exit(code)


def exit_status(error: BaseException) -> tuple[int, str | None]:
    """Return exit code and message of an error; the message is None if it is a bug."""
    name = Path(sys.argv[0]).name
    if _received_signal:  # a library may have turned its exception into another one
        return 128 + _received_signal, f"\n{name}: terminated\n"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"\n{name}: interrupted\n"
    if isinstance(error, SystemExit):  # after --help
        code = error.code
        return code if isinstance(code, int) else int(code is not None), ""
    if isinstance(error, BrokenPipeError):
        return 141, ""
    if isinstance(error, UserError):
        return error.exit_code, f"{name}: error: {error}\n"
    if isinstance(error, OSError):
        return 1, f"{name}: error: {describe(error)}\n"
    if _is_out_of_memory(error):
        lap, option = current_lap.replace("_", "-"), OPTIONS_TO_REDUCE.get(current_lap)
        advice = f" during {lap}; try a smaller {option}" if option else ""
        return 1, f"{name}: error: out of memory{advice}\n"
    return 1, None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, tf.errors.InternalError):  # a batch that does not fit on a GPU
        return "Dst tensor is not initialized" in str(error)
    return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError)
