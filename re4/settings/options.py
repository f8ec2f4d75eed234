"""Command-line options of a subcommand, made from the fields of a settings class."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING
from functools import partial
from typing import Annotated, Any

import typer

from re4.settings.fields import Declared, declared, option_name

_Subcommand = Callable[..., None]


def with_options(
    kind: type, panel: str, *, only: Collection[str] | None = None
) -> Callable[[_Subcommand], _Subcommand]:
    """Turn the `**settings` of a subcommand into one option for each setting of a class and of its groups.

    An option that is not given is None: `construct(kind, settings)` then keeps the default, and `gather`
    reads the environment and the file. Several classes take one decorator each; the help shows the panel of
    the lowest decorator first:

        @with_options(Bounds, "Gates")
        @with_options(IndexChoice, "Index")
        def rebuild(bundles: Annotated[Path, typer.Option(help="…")], **settings: Any) -> None:
            bounds, choice = construct(Bounds, settings), construct(IndexChoice, settings)

    Args:
        kind: The settings class, a dataclass whose fields are declared by `setting`.
        panel: Heading over these options in the subcommand's help.
        only: The settings that become options; None for all. The others keep their defaults.
    """

    def decorate(subcommand: _Subcommand) -> _Subcommand:
        own = [
            parameter
            for parameter in inspect.signature(subcommand, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [
            *own,
            *(
                _option(name, item, panel)
                for name, item in declared(kind).items()
                if only is None or name in only
            ),
        ]
        subcommand.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        subcommand.__annotations__ = {each.name: each.annotation for each in parameters}
        return subcommand

    return decorate


def _option(name: str, item: Declared, panel: str) -> inspect.Parameter:
    metadata = item.field.metadata
    is_required = item.field.default is MISSING
    spelling = [metadata["option"]] if metadata["option"] else []
    if metadata["former"]:
        spelling = [metadata["option"] or option_name(name), option_name(metadata["former"])]
    hint, word = item.hint, metadata["word"]
    parsing: dict[str, Any] = {"metavar": metadata["metavar"]}
    if word is not None:
        hint, parsing = str, {"metavar": f"INTEGER|{word}", "parser": partial(_number_or, word)}
    info = typer.Option(*spelling, help=item.help, rich_help_panel=panel, **parsing)
    annotation: Any = Annotated[hint if is_required else hint | None, info]
    default = inspect.Parameter.empty if is_required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _number_or(word: str, text: str) -> int | str:
    """Parse an option that is a whole number or one word."""
    return text if text == word else int(text)
