"""The command line: ``pyro-vae train``, ``resume``, ``evaluate``, ``sample`` and so on, see ``pyro-vae --help``.

Options come from the signatures and docstrings of the package, by jsonargparse.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pyro_vae.checks import printable
from pyro_vae.version import __version__

_ERRORS = (OSError, TypeError, ValueError, ImportError, MemoryError, FloatingPointError, NotImplementedError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the status to exit with, 2 where it was called wrongly or could not be done."""
    given = [_with_underscores(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    from pyro_vae.cli.parser import GIVEN

    GIVEN.set(given)
    parser, commands = _parser()
    options = parser.parse_args(given)
    command = options.subcommand
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show
            commands[command](options[command])
    except BrokenPipeError:  # of a pager that was closed
        return 1
    except _ERRORS as error:
        print(f"pyro-vae {command}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> tuple[Any, dict[str, Callable[[Any], None]]]:
    """The parser of all commands, and what each runs."""
    from pyro_vae.cli import draws, listing, results, train
    from pyro_vae.cli.parser import Parser

    parser = Parser(prog="pyro-vae", description="Variational autoencoders as probabilistic programs.")
    parser.add_argument("--version", action="version", version=f"pyro_vae {__version__}")
    subcommands = parser.add_subcommands(metavar="COMMAND")
    functions: dict[str, Callable[..., None]] = {
        "resume": train.resume,
        "evaluate": results.evaluate,
        "report": results.report,
        "sample": draws.sample,
        "reconstruct": draws.reconstruct,
        "encode": draws.encode,
        "compare": results.compare,
        "info": listing.info,
        "list": listing.list_parts,
    }
    parsers = {"train": train.parser()}
    commands: dict[str, Callable[[Any], None]] = {"train": train.train}
    for name, function in functions.items():
        places = {"compare": "FOLDER [FOLDER ...]", "list": "[KIND]"}.get(name, "FOLDER")
        usage = f"pyro-vae {name} {places} [--OPTION VALUE ...]"
        parsers[name] = Parser(usage=usage, description=_first_line(function))
        if function is results.compare:  # the one of several folders, which a signature cannot say
            parsers[name].add_argument("folders", type=str, nargs="+", help="of runs; one with --estimators")
            calls = "of the ELBO, written as calls: ELBO 'IWELBO(16)' 'IWELBO(16, gradient=\"dreg\")'"
            parsers[name].add_argument("--estimators", type=str, nargs="+", default=None, help=calls)
        if function is listing.list_parts:
            kinds = ["all", *listing.KINDS]
            parsers[name].add_argument("kind", choices=kinds, nargs="?", default="all", help="all, or one of these")
        parsers[name].add_function_arguments(
            function, as_group=False, as_positional=True, skip={"folders", "estimators", "kind"}
        )
        commands[name] = _calling(function)
    for name, each in parsers.items():
        subcommands.add_subcommand(name, each, help=each.description)
    return parser, commands


def _calling(function: Callable[..., None]) -> Callable[[Any], None]:
    return lambda options: function(**vars(options))


def _first_line(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def _with_underscores(argument: str) -> str:
    """``--batch-size=3`` as ``--batch_size=3``, which is how Python has it."""
    option, equals, value = argument.partition("=")
    return option.replace("-", "_").replace("__", "--", 1) + equals + value if option.startswith("--") else argument


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in a line, without the place in the code that it comes from."""
    words = _one_line(message).replace("go on with resume=True", "go on with pyro-vae resume")
    print(f"warning: {words}", file=sys.stderr)


def _one_line(error: BaseException | str) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__, 1000)
