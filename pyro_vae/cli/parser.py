"""The parser of the command line: options from signatures, and errors that are one line with the nearest name.

Options, their types, defaults and help come from the signatures and docstrings of the package by jsonargparse; this
module changes how they are shown.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from torch.optim import Optimizer

from pyro_vae.checks import printable
from pyro_vae.conditionals import Conditional
from pyro_vae.elbo import Estimator
from pyro_vae.likelihoods import Likelihood
from pyro_vae.priors import Prior

FROM_DATA = frozenset({
    "body", "event_shape", "latent_dim", "pseudo_inputs", "data_mean", "table", "standardize", "num_categories",
    "num_levels", "likelihood", "parts", "params",
})  # fmt: skip
"""Arguments of parts that the data and the rest of the program decide, so that they are no options."""

_ROLE = re.compile(r":\w+:`~?(?:[^`<]*<)?([^`>]*?)>?`")
_CHOICES = re.compile(r"Literal\[(.*?)\]")
_EXPECTED = re.compile(r"Expected an? (.+)")


_CLASSES = re.compile(r" \(type: .*?known subclasses: ([\w., ]+)\)")
_TYPES = [  # what jsonargparse says of types and of defaults that are none
    (re.compile(r"\(required, type: .*\)$"), "(required)"),
    (re.compile(r"\.? ?\(type: .*?(?:, )?default: null\)$"), ""),
    (re.compile(r"\.? ?\(type: (?:[^()]|\([^()]*\))*, default: (.*)\)$"), r" (default: \1)"),
    (re.compile(r"\.? ?\(type: .*\)$"), ""),
]
GIVEN: ContextVar[Sequence[str]] = ContextVar("given", default=())
"""The arguments of the command line, by which errors of inner parsers, which know less, name options in full."""
PARTS: dict[str, type] = {
    "likelihood": Likelihood, "prior": Prior, "posterior": Conditional, "loss": Estimator, "optimizer": Optimizer,
}  # fmt: skip
"""Options whose values are classes, and what these derive from."""


class HelpFormatter(DefaultHelpFormatter):
    """Help without the markup of docstrings."""

    def _expand_help(self, action: Any) -> str:
        names = f": {', '.join(classes(PARTS[action.dest]))}" if action.dest in PARTS else ""
        said = _CLASSES.sub(names, plain(super()._expand_help(action)))
        for pattern, kept in _TYPES:
            said = pattern.sub(kept, said)
        return said.strip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return super()._fill_text(plain(text), width, indent)


class Parser(ArgumentParser):
    """Options of one command.

    Args:
        kwargs: of ``jsonargparse.ArgumentParser``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})

    def add_part(self, key: str, default: str | None, help: str, **init_args: Any) -> None:
        """An option whose value is a class, and whose arguments are options too: ``--prior VampPrior --prior.clamp``.

        Args:
            key: its name, in :data:`PARTS`.
            default: the class when none is given.
            help: what it is.
            init_args: of the default class.
        """
        given = None if default is None else {"class_path": default, **({"init_args": init_args} if init_args else {})}
        self.add_subclass_arguments(  # makes a group
            PARTS[key], key, skip=set(FROM_DATA), instantiate=False, required=False, default=given, help=help,
            metavar="CLASS",
        )  # fmt: skip
        self.titled(key)

    def titled(self, title: str) -> None:
        """Gives the last group of options its title, in place of a docstring's line."""
        self._action_groups[-1].title = title

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line to standard error, and exits with status 2."""
        self.exit(2, f"pyro-vae: error: {self.told(message)}\n")
        raise AssertionError("unreachable")

    def told(self, message: str) -> str:
        """A message of jsonargparse in one line, with the nearest valid name."""
        if found := re.search(r"nrecognized arguments: (\S+)", message):
            return self._unknown(found[1].partition("=")[0])
        if found := re.search(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'", message):
            inner = re.search(r"Subcommand '([\w-]+)' does not", message)
            commands: Any = self._subcommands_action
            parser: Parser = commands._name_parser_map[inner[1]] if inner else self
            return parser._unknown(as_given(found[1] or found[2]))
        if found := re.search(r"argument (\w+): invalid choice: '([^']+)' \(choose from (.*?)\)", message):
            subject = found[1].replace("subcommand", "command").upper()
            return nearest(subject, found[2], re.findall(r"[\w-]+", found[3]))
        if "to be one of {" in message and "was not provided" in message:
            return "expected a command; got none. See pyro-vae --help"
        if found := re.search(r"arguments are required: (.*)|Key \"?'?([\w.]+)'?\"? is required", message):
            name = (found[1] or found[2]).rpartition(".")[2]
            of_part = (f"--{key}.{name}" for key in PARTS if name in options(self._class_of(key)))
            return f"expected {next(of_part, as_given(name))}; got none. See --help"
        return _wrong_value(message)

    def _unknown(self, option: str) -> str:
        """The message of an option that there is not."""
        head, _, _ = option.lstrip("-").rpartition(".")
        if head in PARTS:
            part = self._class_of(head)
            names = [f"--{head}.{each}" for each in options(part)]
            if not names:
                return f"expected no options of {part.__name__}, which has none; got {option}"
            return nearest(f"options of {part.__name__}", option, names)
        names = [string for action in self._actions for string in action.option_strings if string.startswith("--")]
        close = difflib.get_close_matches(option, [each for each in names if each != "--help"], n=1)
        remedy = f"Did you mean {close[0]}?" if close else "See --help"
        return f"unknown option {option}. {remedy}"

    def _class_of(self, key: str) -> type:
        """The class that was chosen for a part, as far as the command line says."""
        name = given_value(f"--{key}") or {"prior": "StandardNormal", "loss": "ELBO", "optimizer": "Adam"}.get(key, "")
        known = {each.__name__: each for each in subclasses(PARTS[key])}
        return known.get(name.rpartition(".")[2], PARTS[key])


def _wrong_value(message: str) -> str:
    key = found[1] if (found := re.search(r"Parser key \"([^\"]+)\"", message)) else ""
    option = as_given(key.rpartition(".")[2] if key not in PARTS else key)
    said = re.search(r"(?:Given value|Got value|import path string): (.+)", message)
    value = given_value(option) or (said[1].strip() if said else "?")
    if "File does not exist" in message or ("either not accessible" in message and key == "config"):
        return f"{option}: expected a YAML file; got {value!r}, which does not exist"
    if key in PARTS and ("import path" in message or "Not a valid subclass" in message):
        return nearest(option, value, classes(PARTS[key]))
    literals = [word.strip(" '\"") for part in _CHOICES.findall(message) for word in part.split(",")]
    if literals:
        return nearest(option, value, dict.fromkeys(literals))
    types = _EXPECTED.findall(message.partition("Given value")[0].replace(". Got value", "\n"))
    expected = " or ".join(dict.fromkeys(kind for kind in map(_kind, types) if kind))
    if key and expected:
        return f"{option}: expected {expected}; got {value!r}"
    return printable(" ".join(message.split()), 400)


def as_given(key: str) -> str:
    """An option as the user wrote it: the full ``--prior.clamp`` of the key ``clamp``."""
    for argument in GIVEN.get():
        option = argument.partition("=")[0]
        if option.startswith("--") and (option == f"--{key}" or option.endswith(f".{key}")):
            return option
    return "FOLDER" if key in ("folder", "folders") else f"--{key}"


def given_value(option: str) -> str | None:
    """What follows an option on the command line."""
    given = GIVEN.get()
    for i, argument in enumerate(given):
        if argument == option and i + 1 < len(given):
            return given[i + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def nearest(subject: str, value: object, choices: Iterable[str]) -> str:
    """The message for a value that is none of the choices."""
    choices = list(choices)
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), list(lower), n=1, cutoff=0.5)
    remedy = f". Did you mean {lower[close[0]]}?" if close else ""
    return f"{subject}: expected one of {', '.join(choices)}; got {value!r}{remedy}"


def subclasses(base: type) -> list[type]:
    """The classes that derive from one and that its package names, itself left out, in the order of their names."""
    found: set[type] = set()
    ahead = [base]
    while ahead:
        derived: list[type] = ahead.pop().__subclasses__()
        found.update(derived)
        ahead += derived
    package = importlib.import_module(".".join(base.__module__.split(".")[:2]))
    return sorted((each for each in found if getattr(package, each.__name__, None) is each), key=_name)


def classes(base: type) -> list[str]:
    """The names of the subclasses that can be chosen."""
    return [each.__name__ for each in subclasses(base) if is_option(each)]


def is_option(part: type) -> bool:
    """Whether a class is made from options and data alone, and not from another likelihood."""
    return not {"likelihood", "parts"} & set(inspect.signature(part).parameters)


def options(part: Callable[..., Any]) -> list[str]:
    """The arguments of a part that are options."""
    from jsonargparse._parameter_resolvers import get_signature_parameters  # of **kwargs too

    return [p.name for p in get_signature_parameters(part, None) if p.name not in FROM_DATA]


def plain(text: str) -> str:
    """A docstring's words without its markup."""
    return _ROLE.sub(lambda m: m[1].rpartition(".")[2], text).replace("``", "").replace("\\*", "*")


def _kind(said: str) -> str:
    """A type in words."""
    said = re.sub(r"<class '([\w.]+)'>", lambda m: m[1].rpartition(".")[2], said).strip(" .")
    words = {
        "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null",
        "list": "a list such as [200, 200]",
    }  # fmt: skip
    return words.get(said, "" if "path" in said else said)


def _name(part: type) -> str:
    return part.__name__
