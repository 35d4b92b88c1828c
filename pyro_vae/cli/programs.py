"""A VAE from options and data: what is not said is chosen by the data, with a sentence that says why."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import Namespace
from torch.distributions import constraints

from pyro_vae import VAE, conditionals, data, defaults, elbo, likelihoods, nets, priors, schedules
from pyro_vae.cli.calls import made
from pyro_vae.cli.parser import FROM_DATA, given_value, is_option


def build(options: Namespace, train: data.Dataset) -> tuple[VAE, list[str]]:
    """The VAE of the options, and sentences on what was chosen for it; the options become those that were chosen.

    Args:
        options: of ``train``.
        train: training data.

    Raises:
        ValueError: parts that cannot work with each other or with the data.
    """
    said = []
    if options.latent_dim is None:
        options.latent_dim = min(20, max(2, train.event_shape.numel() // 4))
        said.append(f"{options.latent_dim} latents")
    options.hidden = _sizes(options.hidden)
    x = replace(train, context=())  # which likelihoods take beside z, and networks do not
    networks = defaults.networks(x, options.latent_dim, options.network, options.hidden)
    if options.network == "auto":
        said.append(networks.because)
    options.network = networks.name
    choice = defaults.likelihood(x)
    if options.likelihood is None:
        said.append(choice.because)
        options.likelihood = Namespace(class_path=f"pyro_vae.likelihoods.{choice.name}", init_args=Namespace())
    likelihood = _likelihood(options.likelihood, networks.decoder, train, choice, options.standardize)
    prior = _prior(options.prior, options.latent_dim, train)
    posterior = _posterior(options, prior)(networks.encoder, options.latent_dim)
    return VAE(prior=prior, likelihood=likelihood, posterior=posterior), said


def _sizes(hidden: list[int] | int | str | None) -> list[int] | None:
    """``200,200`` as a list."""
    if isinstance(hidden, str):
        try:
            return [int(each) for each in hidden.split(",")]
        except ValueError:
            raise ValueError(f"--hidden: expected whole numbers, 200,200; got {hidden!r}. Write them so.") from None
    return [hidden] if isinstance(hidden, int) else hidden


def _likelihood(
    chosen: Namespace, body: nets.Body, train: data.Dataset, choice: defaults.Choice, standardize: bool
) -> likelihoods.Likelihood:
    """The likelihood of a name: its levels, first mean and units are those of the data where no option says others.

    The options become those that it is made with.
    """
    made_by, given = _class(chosen)
    if not is_option(made_by):
        raise ValueError(
            f"--likelihood: expected a likelihood of its own; got {made_by.__name__}, which changes another one. Leave "
            "it out: missing values, and reals on any scale, are seen in the data."
        )
    if made_by is likelihoods.Tabular:
        return likelihoods.Tabular.for_data(train, body)
    takes = inspect.signature(made_by).parameters
    own = made_by.__name__ == choice.name
    said = {n: v for n, v in given.items() if v != takes[n].default or given_value(f"--likelihood.{n}") is not None}
    arguments = {**given, **_levels(train), **(choice.arguments if own else _of_data(train, choice)), **said}
    arguments = {name: value for name, value in arguments.items() if name in takes}
    chosen.init_args = Namespace({name: value for name, value in arguments.items() if name not in FROM_DATA})
    return (
        choice.make(body)
        if own and not said and standardize
        else _fitted(made_by(body=body, **arguments), train, standardize)
    )


def _of_data(train: data.Dataset, choice: defaults.Choice) -> dict[str, Any]:
    """What a likelihood that is not the data's own may take of them all the same."""
    mean = {"data_mean": choice.arguments["data_mean"]} if "data_mean" in choice.arguments else {}
    return {"event_shape": train.event_shape, **mean}


def _levels(train: data.Dataset) -> dict[str, Any]:
    """What the levels of the data decide: 17 levels are k / 16, k = 0, ..., 16."""
    x, spacing = train.images, 1.0 if train.levels is None else 1 / train.levels
    present = x[~x.isnan()]
    if train.levels is None and not bool(((present >= 0) & (present == present.round())).all()):
        return {}
    most = int(present.max()) if train.levels is None else train.levels
    levels = {"total_count": most, "num_categories": most + 1, "num_levels": most + 1, "spacing": spacing}
    return levels if train.levels is None else {**levels, "levels": most + 1}


def _fitted(likelihood: likelihoods.Likelihood, train: data.Dataset, standardize: bool) -> likelihoods.Likelihood:
    """The likelihood of the data's units, and of the values that are not missing."""
    if likelihood.support is constraints.real and standardize:
        scale = defaults.standardize(train) if train.table is None else nets.Standardize.of(train.tensor())
        likelihood = likelihood if scale is None else likelihoods.Standardized(likelihood, scale)
    missing = train.levels is None and bool(train.images.isnan().any())
    return likelihoods.MissingAtRandom(likelihood) if missing else likelihood


def _prior(chosen: Namespace, latent_dim: int, train: data.Dataset) -> priors.Prior:
    made_by, given = _class(chosen)
    if made_by is priors.VampPrior:
        count = given["num_components"] or min(500, len(train))
        if count > len(train):
            raise ValueError(
                f"--prior.num_components: expected at most the {len(train):,} training data; got {count}. Give less."
            )
        chosen.init_args.num_components = count
        start = train.take(count).tensor()
        gray = bool(((start >= 0) & (start <= 1)).all())
        return priors.VampPrior(start, clamp=gray and given["clamp"])
    return made_by(latent_dim=latent_dim, **given)


def _posterior(options: Namespace, prior: priors.Prior) -> Callable[..., conditionals.Conditional]:
    """That of the options, or the one that suits the prior."""
    if options.posterior is None:
        name = defaults.posterior(prior).__name__
        options.posterior = Namespace(class_path=f"pyro_vae.conditionals.{name}", init_args=Namespace())
    made_by, given = _class(options.posterior)

    def make(body: nets.Body, latent_dim: int) -> conditionals.Conditional:
        return made_by(body=body, latent_dim=latent_dim, **given)

    return make


def bits(options: Namespace) -> None:
    """Decides whether gray pixels become bits, where that is left to the likelihood."""
    if options.binarize == "auto":
        bernoulli = options.likelihood is not None and _class(options.likelihood)[0] is likelihoods.Bernoulli
        options.binarize = "dynamic" if bernoulli else "none"


def with_contexts(options: Namespace, splits: data.Splits) -> data.Splits:
    """The data with what the likelihood takes beside z."""
    return data.Splits(*(with_context(options, part) for part in splits))


def with_context(options: Namespace, dataset: data.Dataset) -> data.Dataset:
    """The data with the total count of each, where the likelihood is of shares of it."""
    given = {} if options.likelihood is None else _class(options.likelihood)[1]
    if not given.get("library_size"):
        return dataset
    return dataset.conditioned_on(dataset.tensor().flatten(1).sum(1))


def described(program: Any) -> str:
    """A VAE, or another program, in a line."""
    roles = [role for role in ("prior", "likelihood", "posterior") if hasattr(program, role)]
    parts = "".join(f"{type(getattr(program, role)).__name__} {role}, " for role in roles)
    return f"{type(program).__name__}: {parts}{sum(p.numel() for p in program.parameters()):,} parameters"


def loss_of(options: Namespace) -> elbo.Estimator:
    """The ELBO estimator of the options."""
    made_by, given = _class(options.loss)
    if isinstance(gradient := given.get("gradient"), Namespace):
        kind, arguments = _class(gradient)
        given["gradient"] = kind(**arguments)
    return made_by(**given)


def beta_of(text: float | str | None) -> float | schedules.Schedule | None:
    """A number, or the schedule of a call such as ``linear(0, 1, epochs=10)``."""
    if not isinstance(text, str):
        return text
    known = {name: getattr(schedules, name) for name in ("linear", "cosine", "cyclical")}
    return made("--beta", text, known)


def made_by_optimizer(chosen: Namespace) -> Callable[[Any], torch.optim.Optimizer]:
    """Parameters -> optimizer."""
    made_by, given = _class(chosen)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return made_by(parameters, **given)

    return make


def _class(chosen: Namespace | None) -> tuple[Any, dict[str, Any]]:
    """A class and its arguments, of what jsonargparse makes of a class's options."""
    if chosen is None:
        raise ValueError("train: expected a class for prior, loss and optimizer; got null. Leave the option out.")
    module, _, name = chosen.class_path.rpartition(".")
    arguments = dict(vars(chosen.get("init_args", None) or Namespace()))
    return getattr(importlib.import_module(module), name), arguments
