"""A verb's command-line options, made from the fields of a settings class."""

import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from re4.settings.fields import declared


def with_options(kind: type, panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a verb's `**settings` into one option for each setting of a class.

    An option that is not given is None: the value is then another source's, or the default.

    Args:
        kind: The settings class.
        panel: Heading over these options in the verb's help.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(verb, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        settings = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[item.hint | None, typer.Option(help=item.help, rich_help_panel=panel)],
            )
            for name, item in declared(kind).items()
        ]
        verb.__signature__ = inspect.Signature([*own, *settings])  # type: ignore[attr-defined]
        verb.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *settings]}
        return verb

    return decorate
