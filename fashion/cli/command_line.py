"""The command line of a script, built from its option dataclasses.

Third-party dataclass-to-CLI libraries box, color and wrap error messages and so truncate long
values; this module keeps argparse's plain messages.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from fashion import errors, recipes
from fashion.cli import export, predict
from fashion.datasets import image_folder
from fashion.errors import UsageError
from fashion.options import Flag, Options, OptionsT, choice
from fashion.tracking import wandb_settings


def run_script(
    main: Callable[..., None], options_type: type[Options], description: str | None
) -> NoReturn:
    """Parse the command line, train, predict or export, and exit the process.

    Args:
        main: Trains a model; called with the options unless they contain an action.
        options_type: Options of the script.
        description: First lines of `--help`.
    """

    def parse_and_run() -> None:
        options = parse_options(options_type, description, sys.argv[1:])
        _check_working_dir()
        actions = options.actions
        if actions.export:
            export.export_model(actions.export, options)
        if actions.predict:
            predict.predict_images(actions.predict, options)
        if not (actions.export or actions.predict):
            _check_output_dirs(options)
            main(options)

    errors.run_and_exit(parse_and_run)


def _check_working_dir() -> None:
    """Raise a `UsageError` if the working directory has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError(
            "the working directory has been deleted; change to another one (cd)"
        ) from None


def _check_output_dirs(options: Options) -> None:
    """Raise a `UsageError` if a directory that the run writes to lies inside `--data-dir`."""
    output_dirs = {
        "--output-dir": options.results.output_dir,
        "--cache-dir": options.data.cache_dir,
    }
    if not wandb_settings.is_disabled(options.results.wandb):
        output_dirs["WANDB_DIR"] = wandb_settings.wandb_dir()
    image_folder.check_outputs_outside_data_dir(options.data.data_dir, output_dirs)


def parse_options(
    options_type: type[OptionsT], description: str | None, argv: Sequence[str]
) -> OptionsT:
    """Parse a command line; arguments override the recipe's values, which override the defaults.

    Args:
        options_type: Options of the script.
        description: First lines of `--help`.
        argv: Arguments after the script's name.

    Raises:
        UsageError: If an argument is invalid.
        SystemExit: After `--help`.
    """
    options = parse_args(recipes.apply_recipe(options_type(), argv), description, argv)
    recipes.warn_if_untested_backbone(options)
    return options


# ----------------------------------------------------------------------- dataclasses → argparse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}\nSee {self.prog} --help.")


def parse_args(defaults: OptionsT, description: str | None, argv: Sequence[str]) -> OptionsT:
    """Parse a command line, also in the spelling of a W&B sweep.

    Args:
        defaults: Values of options that `argv` does not contain.
        description: First lines of `--help`.
        argv: Arguments after the script's name.

    Raises:
        UsageError: If an argument is invalid.
        SystemExit: After `--help`.
    """
    parser = _Parser(
        prog=f"{defaults.script_name}.py",
        usage=f"{defaults.script_name}.py [OPTION ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
    bool_flags: dict[str, bool] = {}
    for title, group in groups.items():
        section = parser.add_argument_group(title.replace("_", " "), type(group).__doc__)
        _add_arguments(section, group, bool_flags)
    parsed = parser.parse_args([new for arg in argv for new in _normalize_arg(arg, bool_flags)])
    return dataclasses.replace(
        defaults,
        **{
            title: type(group)(
                **{field.name: getattr(parsed, field.name) for field in dataclasses.fields(group)}
            )
            for title, group in groups.items()
        },
    )


def _add_arguments(section: Any, group: object, bool_flags: dict[str, bool]) -> None:
    """Add the options of a group to a section of the parser, and boolean ones to `bool_flags`.

    The value in `bool_flags` tells whether there is a `--no-…` counterpart.
    """
    docs = _field_docs(type(group))
    for name, hint in typing.get_type_hints(type(group), include_extras=True).items():
        flag, default = f"--{name.replace('_', '-')}", getattr(group, name)
        if hint is bool or hint == Flag:
            bool_flags[flag] = hint is bool
        section.add_argument(
            flag,
            default=default,
            help=_format_help(docs.get(name, ""), default),
            **_argparse_kwargs(hint),
        )


def _normalize_arg(arg: str, bool_flags: dict[str, bool]) -> list[str]:
    """Convert an argument of a W&B sweep to the spelling of argparse.

    A sweep passes `--batch_size=32`, `--mirror=True` and, for null, `--train_size=None`, which
    stands for the default.
    """
    name, equals, value = arg.partition("=")
    if not name.startswith("--"):
        return [arg]
    name = name.replace("_", "-")
    if equals and value in ("None", "null"):
        return []
    if name in bool_flags and value.lower() in ("true", "false", "1", "0"):
        if value.lower() in ("true", "1"):
            return [name]
        return [f"--no-{name[2:]}"] if bool_flags[name] else []
    return [f"{name}{equals}{value}"]


def _argparse_kwargs(hint: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a type hint."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint == Flag:
        return {"action": "store_true"}
    if typing.get_origin(hint) is Literal:
        arg_type = choice(typing.get_args(hint))
    else:
        arg_type = hint.__metadata__[0]
    kwargs = {"type": arg_type.parse, "metavar": arg_type.metavar}
    # With "extend", the option may be repeated.
    return kwargs | ({"nargs": "+", "action": "extend"} if arg_type.multiple else {})


def _format_help(doc: str, default: object) -> str:
    """Return an option's help with its default appended."""
    text = " ".join(doc.split())
    if default is not None and default is not False:
        text = f"{text.split(' (default:')[0]} (default: {default})"
    return text.replace("%", "%%")


def _field_docs(group: type) -> dict[str, str]:
    """Parse the docstring that follows each dataclass field (not available at runtime)."""
    # Profilers and other runners are `__main__` themselves; the script is their first argument.
    for path in getattr(sys.modules[group.__module__], "__file__", None), sys.argv[0]:
        for node in _class_definitions(str(path)):
            if node.name == group.__name__:
                return {
                    ast.unparse(field.target): ast.literal_eval(doc.value)
                    for field, doc in itertools.pairwise(node.body)
                    if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
                }
    return {}


@functools.cache
def _class_definitions(path: str) -> list[ast.ClassDef]:
    """Return the class definitions of a source file; [] if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, SyntaxError):
        module = ast.parse(Path(path).read_text(encoding="utf-8"))
        return [node for node in module.body if isinstance(node, ast.ClassDef)]
    return []
