"""The command line that is made of a script's options.

It has the options of all groups side by side; the groups are headings of `--help`. Ready-made
bridges frame, colour and wrap their errors, and so cut long values: here they are `argparse`'s.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Container, Sequence
from typing import Any, Literal, NoReturn

from fashion.errors import UsageError
from fashion.options import AnyOptions, Flag, one_of


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}\nSee {self.prog} --help.")


def parse(defaults: AnyOptions, description: str | None, words: Sequence[str]) -> AnyOptions:
    """The options of a command line, also as a W&B sweep writes it.

    Args:
        defaults: a script's, or a recipe's.
        description: the first lines of `--help`.
        words: those after the script's name.

    Raises:
        UsageError: a word cannot be used.
        SystemExit: after `--help`.
    """
    parser = _Parser(
        prog=f"{defaults.script}.py",
        usage=f"{defaults.script}.py [OPTION ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
    switches = set()
    for title, group in groups.items():
        section = parser.add_argument_group(title.replace("_", " "), type(group).__doc__)
        sentences = _sentences(type(group))
        for name, hint in typing.get_type_hints(type(group), include_extras=True).items():
            default = getattr(group, name)
            if hint is bool:
                switches.add(f"--{name.replace('_', '-')}")
            section.add_argument(
                f"--{name.replace('_', '-')}",
                default=default,
                help=_help(sentences[name], default),
                **_reading(hint),
            )
    parsed = parser.parse_args([_as_argparse(word, switches) for word in words])
    return dataclasses.replace(
        defaults,
        **{
            title: type(group)(
                **{field.name: getattr(parsed, field.name) for field in dataclasses.fields(group)}
            )
            for title, group in groups.items()
        },
    )


def _as_argparse(word: str, switches: Container[str]) -> str:
    """A word as `argparse` takes it: a W&B sweep writes `--batch_size=32` and `--mirror=True`."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    name = name.replace("_", "-")
    if name in switches and value in ("True", "False", "true", "false"):
        return name if value.lower() == "true" else f"--no-{name[2:]}"
    return f"{name}{equals}{value}"


def _reading(hint: Any) -> dict[str, Any]:
    """How `argparse` reads an option of a type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint == Flag:
        return {"action": "store_true"}
    if typing.get_origin(hint) is Literal:
        word = one_of(typing.get_args(hint))
    else:
        word = hint.__metadata__[0]
    return {
        "type": word.parse,
        "metavar": word.metavar,
        "nargs": "+" if word.several else None,
    }


def _help(sentence: str, default: object) -> str:
    if default is not None and default is not False:
        sentence = f"{sentence.split(' (default:')[0]} (default: {default})"
    return sentence.replace("%", "%%")


def _sentences(group: type) -> dict[str, str]:
    """The sentence below each field of a dataclass, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(group)).body
    assert isinstance(definition, ast.ClassDef)
    sentences = {}
    for field, sentence in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(sentence, ast.Expr):
            sentences[ast.unparse(field.target)] = ast.literal_eval(sentence.value)
    return sentences
