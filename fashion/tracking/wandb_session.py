"""Weights & Biases: online or not, what goes in, what comes out."""

import contextlib
import netrc
import os
import re
import shlex
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fashion import errors
from fashion.datasets.dataset import FashionMNIST
from fashion.errors import UserError
from fashion.tracking import upload

import wandb

ROOT = Path(__file__).parents[1]


def folder() -> Path:
    """Where W&B keeps the files of runs."""
    return Path(os.environ.get("WANDB_DIR", ""), "wandb").absolute()


def start(wanted: str, **settings: Any) -> wandb.Run:
    """Opens a W&B run; never prompts, never fails for want of a key or a network.

    Args:
        wanted: "auto", "online", "offline" or "disabled".
        settings: what else `wandb.init` is told.

    Raises:
        UserError: W&B's settings are unusable, or the command's words.
    """
    # A run's files wait for their upload beside it, and not in a folder of the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder()))
    try:
        configured = wandb.setup().settings
    except ValueError as error:
        raise UserError(f"W&B's settings: {' '.join(str(error).split())}") from None
    # The settings' mode is "online" unless WANDB_MODE or `wandb offline` says otherwise.
    mode: Any = configured.mode if wanted == "auto" else wanted
    if mode != "disabled":
        try:
            "".join(sys.argv).encode()  # which W&B notes
        except UnicodeEncodeError as error:
            raise UserError(f"W&B cannot note a name in the command ({error}): rename it") from None
    if mode == "online" and not _has_wandb_key(configured.base_url):
        mode = "offline"
        if wanted == "online":
            print("W&B: no key, so this run stays offline; `wandb login` configures one.")
    # W&B 0.21 cannot open an offline run, either, once it has met a server that does not answer.
    if mode == "online" and not any(upload.answers(configured.base_url) for _ in range(3)):
        print(f"W&B: not online, so this run stays offline (no answer from {configured.base_url})")
        mode = "offline"
    if mode != "online":
        return wandb.init(mode=mode, settings=wandb.Settings(silent=True), **settings)
    try:
        # wandb adds some 10 s to this time limit.
        return wandb.init(mode=mode, settings=wandb.Settings(init_timeout=8), **settings)
    except wandb.Error as error:
        print(f"W&B: not online, so this run stays offline ({str(error).splitlines()[0]})")
        errors.stuck.set()  # wandb tries on, without an end
        wandb.teardown()  # or it would find the id of a run that is resumed taken
        return wandb.init(mode="offline", settings=wandb.Settings(silent=True), **settings)


def _has_wandb_key(base_url: str) -> bool:
    """Whether wandb would find credentials: in the environment or the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(base_url).hostname or ""
    for path in os.environ.get("NETRC"), "~/.netrc", "~/_netrc":
        with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
    return False


def log_inputs(script: str, data: FashionMNIST, run: wandb.Run) -> None:
    """Logs the code that runs, and the data set as digests and source without its images.

    Raises:
        UserError: a file cannot be written.
    """
    if run.disabled:
        return
    try:
        # A copy of its own, since log_code walks all of the folder it is given.
        with tempfile.TemporaryDirectory() as folder:
            for pattern in f"{script}.py", "common.py", "fashion/*.py", "requirements.txt":
                for path in ROOT.glob(pattern):
                    copy = Path(folder) / path.relative_to(ROOT)
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copy(path, copy)
            run.log_code(folder, f"source-{script}", include_fn=lambda path: True)
            # Not by `new_file`, which W&B 0.21 leaves where no upload finds it after this process.
            sums = Path(folder) / "SHA256SUMS"
            sums.write_text("".join(f"{hash}  {name}\n" for name, hash in data.sha256.items()))
            artifact = wandb.Artifact(data.slug, type="dataset", metadata=data.record())
            artifact.add_file(str(sums))
        run.log_artifact(artifact)
    except OSError as error:
        raise UserError(f"W&B: {error}") from None


def log_files(run: wandb.Run, pictures: Iterable[Path], page: Path) -> None:
    """Logs the pictures and the page."""
    images = {f"report/{path.stem}": wandb.Image(str(path)) for path in pictures}
    run.log(images | {"report/page": wandb.Html(str(page), inject=False)})


def log_model(
    run: wandb.Run, path: Path, name: str, metadata: dict[str, object]
) -> wandb.Artifact | None:
    """Logs the model as an artifact, which it returns.

    A sweep's trials log no model: hundreds of them would be uploaded for the one that is best,
    and that one's options make it again.
    """
    if run.sweep_id:
        return None
    artifact = wandb.Artifact(name, type="model", metadata=metadata)
    artifact.add_file(str(path), skip_cache=True)
    return run.log_artifact(artifact)


def viewer(version: str) -> str | None:
    """The command of that version of W&B that shows an offline run in a terminal, if it has one."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if numbers >= (0, 28):
        return "wandb leet"
    return "wandb beta leet" if numbers >= (0, 22, 2) else None


def ways_to_look(run: wandb.Run) -> list[str]:
    """How to look at a run that is offline, if W&B can, and how to upload it: a line each."""
    if run.disabled or not run.offline:
        return []
    path = Path(run.dir).parent
    with contextlib.suppress(ValueError):  # it is on another of Windows' drives
        path = Path(os.path.relpath(path))
    # Windows' command line knows no single quotes, and its paths have no double ones.
    folder = f'"{path}"' if os.name == "nt" else shlex.quote(str(path))
    ways = {"Look at the run:": viewer(wandb.__version__), "Sync it later:": "wandb sync"}
    lines = [f"{title:<17} {command} {folder}" for title, command in ways.items() if command]
    return [f"W&B, offline. {lines[0]}", *(f"{'':14}{line}" for line in lines[1:])]
