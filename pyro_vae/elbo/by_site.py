r"""Each site of the guide with a gradient of its own: Schulman et al.'s stochastic computation graphs.

A draw is differentiated, credited, or summed over, site by site. With S the sites that have a score-function gradient,
and sg the stop-gradient, the surrogate of a bound F is

.. math::  F + \sum_{s \in S} sg(\mathrm{signal}_s - b_s) \log q(s | \text{before}),

whose draws of S are constants and whose other draws are differentiated, in log q(s) too. For ``ELBO``, which is a sum
of log-densities, the signal of a site holds only what may depend on it: not what guide or model evaluate before it is
drawn, and, in a plate, what is of its own element. A site that is summed over weighs each term of the sum with the
guide's probabilities of all summed sites that the term depends on.

References:
    Schulman, Heess, Weber, Abbeel, "Gradient estimation using stochastic computation graphs", 2015,
    https://arxiv.org/abs/1506.05254
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import internals
from pyro_vae.checks import instance
from pyro_vae.elbo.draws import Call, Draws
from pyro_vae.elbo.gradients import STL, Bound, Gradient, GradientName, Pathwise, gradient_only
from pyro_vae.elbo.score import OVIS, VIMCO, Score, ScoreFunction
from pyro_vae.traces.structure import Latent
from pyro_vae.traces.tracing import Site, Traces, frame_of, mask_of, outside_plate, score_of


class Enumerate(Gradient):
    """Sums over the guide's discrete latents in place of drawing them: exact, for ``ELBO``.

    Every latent whose distribution can list its support is summed over, in parallel; others are differentiated where
    they are reparameterized, and have the score-function gradient where they are not. In a mapping from sites, it is
    one site that is summed over.

    Programs must keep the values apart, which lie in a dim left of all plates: one that reduces over all dims, as
    ``x.mean()`` does, is an error. It is looked for when the structure of the programs is learned.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.elbo import ELBO
        >>> logit = torch.zeros(1, requires_grad=True)  # of a guide that is as yet the prior
        >>> def model():
        ...     with pyro.plate("data", 1):
        ...         bit = pyro.sample("bit", dist.Bernoulli(torch.full((1,), 0.5)))
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * bit), obs=torch.ones(1))
        >>> def guide():
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("bit", dist.Bernoulli(logits=logit))
        >>> loss = ELBO(gradient="enumerate").differentiable_loss(model, guide)
        >>> round(loss.item(), 4), torch.autograd.grad(-loss, logit)  # -log(0.8 * 0.2) / 2, log(0.8 / 0.2) / 4
        (0.9163, (tensor([0.3466]),))
    """

    def check(self, estimator: Bound) -> None:
        if not estimator.linear:
            closed = getattr(estimator, "analytic_kl", False)
            remedy = "Leave analytic_kl out" if closed else "Use 'vimco' (K >= 2) or 'score' in its place"
            raise ValueError(
                f"{type(estimator).__name__}: expected a sampling gradient; got enumerate, which is for "
                f"ELBO(analytic_kl=False). {remedy}."
            )

    def check_programs(self, call: Call) -> None:
        assert call.structure is not None
        call.check_sums([name for name, latent in call.structure.guide.items() if latent.enumerable])

    def in_chunks(self, estimator: Bound) -> bool:
        return False

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        assert call.structure is not None
        own: dict[str, Gradient] = {
            name: self if latent.enumerable else Pathwise() if latent.reparameterized else Score()
            for name, latent in call.structure.guide.items()
        }
        return BySite(own).loss(estimator, call)


_OF_A_SITE: dict[str, type[Gradient]] = {
    "pathwise": Pathwise,
    "stl": STL,
    "score": Score,
    "vimco": VIMCO,
    "ovis": OVIS,
    "enumerate": Enumerate,
}


class BySite(Gradient):
    """A gradient for each site of the guide; ``gradient={"k": "score", "z": "pathwise"}`` makes one.

    ``pathwise`` and the score-function gradients (``score`` with any baseline, ``vimco``, ``ovis`` for ``IWELBO``) mix
    for every bound; ``stl`` and ``enumerate`` take part for ``ELBO`` alone. Learned baselines need the data plate.

    Args:
        gradients: a gradient, by name or as an object, for every site that the guide draws.

    Raises:
        TypeError: no mapping from names.
        ValueError: a gradient that no single site can have; an object with a baseline that serves two sites; when run,
            a site of the guide without a gradient, with one that would be wrong, or with ``num_samples`` of its own.

    Example:
        >>> from pyro_vae import elbo
        >>> gradient = {"k": elbo.Score(baseline="leave_one_out"), "z": "pathwise"}
        >>> loss = elbo.ELBO(num_particles=8, gradient=gradient)
        >>> {name: type(own).__name__ for name, own in loss.gradient.gradients.items()}
        {'k': 'Score', 'z': 'Pathwise'}
    """

    def __init__(self, gradients: Mapping[str, Gradient | GradientName]) -> None:
        self.gradients: dict[str, Gradient] = {}
        instance("BySite", "gradients", gradients, Mapping, "Give a gradient for every site of the guide.")
        for name, gradient in gradients.items():
            instance("gradient", "every site", name, str, "Give a mapping from names of sites.")
            own = _OF_A_SITE[gradient]() if isinstance(gradient, str) and gradient in _OF_A_SITE else gradient
            if not isinstance(own, Pathwise | STL | ScoreFunction | Enumerate):
                got = f"{own!r}" if isinstance(own, str) else type(own).__name__
                raise ValueError(
                    f"gradient: expected {', '.join(_OF_A_SITE)} or such a Gradient at site {name!r}; got {got}. Use "
                    "one of these; dreg and covariance are for all sites together."
                )
            if isinstance(own, Score) and own.baseline is not None and own in self.gradients.values():
                raise ValueError(
                    f"gradient: expected a baseline of its own at site {name!r}; got one that serves another site. "
                    "Make a Score for each."
                )
            self.gradients[name] = own

    def parts(self) -> list[Gradient]:
        return [self, *self.gradients.values()]

    def modules(self) -> list[nn.Module]:
        return [module for own in self.gradients.values() for module in own.modules()]

    def declare(self) -> None:
        for own in self.gradients.values():
            own.declare()

    def buffers(self) -> list[Tensor]:
        return [buffer for own in self.gradients.values() for buffer in own.buffers()]

    def in_chunks(self, estimator: Bound) -> bool:
        return not estimator.linear  # a sum of terms has a cost at each site

    def check(self, estimator: Bound) -> None:
        for name, own in self.gradients.items():
            own.check(estimator)
            if isinstance(own, STL) and not estimator.linear:
                raise ValueError(
                    f"{type(estimator).__name__}: expected a gradient that mixes, for this bound, at site {name!r}; "
                    "got stl, which does for ELBO(analytic_kl=False). Use 'pathwise'."
                )

    def check_programs(self, call: Call) -> None:
        call.check_sums(list(self._of(Enumerate)))

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        assert call.structure is not None
        name = type(estimator).__name__
        self._check_sites(name, call.structure.guide)
        if call.structure.enumerated and (self._of(Enumerate) or self._of(STL)):
            raise ValueError(
                f"{name}: expected a model without latents of its own, for enumerate and stl by site; got "
                f"{sorted(call.structure.enumerated)}, which the guide does not draw. Draw them in the guide too."
            )
        summed = [name for name, own in self.gradients.items() if isinstance(own, Enumerate)]
        draws = call.draw(detach=self._of(ScoreFunction) or False, enumerate_=summed)
        for run in draws.runs:  # the guide may have changed since its structure was learned
            self._check_sites(name, {site: Latent.of(message) for site, _, message in run.latents()})
        if estimator.linear and not call.structure.enumerated:
            return self._loss_of_terms(estimator, draws)
        return self._loss_of_weights(estimator, draws)

    def _of(self, kind: Any) -> dict[str, Any]:
        """The sites that have a kind of gradient, and their gradients."""
        return {name: own for name, own in self.gradients.items() if isinstance(own, kind)}

    def _check_sites(self, estimator: str, latents: dict[str, Latent]) -> None:
        for names, of in (
            ([name for name in self.gradients if name not in latents], "the mapping that the guide does not draw"),
            ([name for name in latents if name not in self.gradients], "the guide that the mapping leaves out"),
        ):
            if names:
                raise ValueError(
                    f"{estimator}: expected a gradient for each of the guide's sites {list(latents)}; got {names} in "
                    f"{of}. Give each site one of {', '.join(_OF_A_SITE)}."
                )
        for name, own in self.gradients.items():
            latent = latents[name]
            latent.check_draws(name)
            if isinstance(own, Enumerate) and not latent.enumerable:
                wanted, works = "a finite support", "'pathwise'" if latent.reparameterized else "'score'"
            elif isinstance(own, Pathwise | STL) and not latent.reparameterized:
                works = "'score' or, with ELBO, 'enumerate'" if latent.enumerable else "'score'"
                wanted = "a reparameterized distribution"
            else:
                continue
            raise ValueError(
                f"{estimator}: expected {wanted} at site {name!r} for {type(own).__name__.lower()}; got "
                f"{latent.distribution}. Use {works} there."
            )

    def _loss_of_weights(self, estimator: Bound, draws: Draws) -> Tensor:
        """For a bound of log-weights: every site is credited with the whole."""
        densities = draws.densities()
        log_weights = estimator.weigh(densities)
        value = estimator.bound(log_weights).sum()
        surrogate = value.new_zeros(())
        for name, own in self._of(ScoreFunction).items():
            credit, regression = own.credit(estimator, log_weights.detach(), draws.call, draws.counted())
            surrogate = surrogate + (credit * densities.scores[name]).sum() - regression
        return -densities.scale * (value + gradient_only(surrogate))

    def _loss_of_terms(self, estimator: Bound, draws: Draws) -> Tensor:
        """For a sum of log-densities: every site is credited with the terms that may depend on it."""
        scored = self._of(ScoreFunction)
        for run in draws.runs:
            _check_dims(run)
        runs = [_weighed(_terms(estimator, run, scored, self._of(STL)), run) for run in draws.runs]
        values = [term.value.sum() for terms in runs for term in terms] or [torch.zeros(())]  # of a program of no sites
        value = torch.stack(values).sum() / draws.call.num_particles
        surrogate = value.new_zeros(())
        for name, own in scored.items():
            plate = estimator.plate if own.modules() else None
            rows = [_rows(name, terms, run, plate) for terms, run in zip(runs, draws.runs, strict=True)]
            signal, score, counted = (torch.cat(parts) for parts in zip(*rows, strict=True))
            credit, regression = own.credit(estimator, signal, draws.call, counted.sum(0) > 0)
            surrogate = surrogate + (credit * score).sum() - regression
        return -(value + gradient_only(surrogate))


@dataclass(frozen=True)
class _Term:
    """A log-density of the ELBO.

    Attributes:
        name: its site.
        site: likewise.
        latest: position, in the guide, of the last latent that it may depend on; -1 where there is none.
        value: with its sign and weight, of the shape of the site's ``log_prob``.
    """

    name: str
    site: Site
    latest: int
    value: Tensor


def _terms(estimator: Bound, run: Traces, scored: Collection[str], stuck: Collection[str]) -> list[_Term]:
    """All log-densities of a run, without the gradients of log q that have mean 0.

    Args:
        estimator: an ELBO.
        run: of its programs.
        scored: sites whose draws are constants, where the whole gradient of log q has mean 0.
        stuck: sites with sticking-the-landing gradients, whose draws are differentiated and whose parameters are not.
    """
    order = _order(run)
    latest, terms = -1, []
    for name, site in run.of_model():
        latest = max(latest, order.get(name, -1))  # the model may use a draw from here on, and what it depends on
        value = site["log_prob"] if site["is_observed"] else estimator.latent_weight * site["log_prob"]
        terms.append(_Term(name, site, latest, value))
    constant = run.with_guide_at_constants().guide if stuck else run.guide
    for name, _, site in run.latents():
        log_q = site["log_prob"].detach() if name in scored else site["log_prob"]
        if name in stuck:
            log_q = log_q - gradient_only(constant.nodes[name]["log_prob"])
        terms.append(_Term(name, site, order[name], -estimator.latent_weight * log_q))
    return terms


def _check_dims(run: Traces) -> None:
    """Raises for a plate of two dims, of which one would be summed and the other not."""
    dims: dict[str, int] = {}
    for name, site in (*run.of_model(), *((name, site) for name, _, site in run.latents())):
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and dims.setdefault(frame.name, frame.dim) != frame.dim:
                raise ValueError(
                    f"Site {name!r}: expected the plate {frame.name!r} at dim {dims[frame.name]}, as elsewhere; got "
                    f"{frame.dim}. Give it the same dim in model and guide."
                )


def _order(run: Traces) -> dict[str, int]:
    return {name: position for position, (name, _, _) in enumerate(run.latents())}


def _weighed(terms: list[_Term], run: Traces) -> list[_Term]:
    """The terms of which every sum over an enumerated latent is weighed with the guide's probabilities.

    From the last latent to the first: the probability of one brings in those that it depends on.
    """
    summed = [(name, site, internals.enumerate_dim(site)) for name, _, site in run.latents() if _is_summed(site)]
    weighed = []
    for term in terms:
        value = term.value
        for name, site, dim in reversed(summed):
            if value.dim() < -dim or value.shape[dim] == 1:
                continue
            if outside := _plates(site) - _plates(term.site):
                raise ValueError(
                    f"Site {term.name!r}: expected to be inside the plate {min(outside)!r}, as the enumerated site "
                    f"{name!r} is on which it depends; got it outside, where it depends on all elements of the plate "
                    f"together. Use 'score' at site {name!r}."
                )
            probability = site["unscaled_log_prob"].exp()
            value = probability * value.where(probability > 0, 0.0)  # what has probability 0 may have log-density -inf
        weighed.append(replace(term, value=value))
    return weighed


def _is_summed(site: Site) -> bool:
    return internals.enumerate_dim(site) is not None


def _plates(site: Site) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _rows(name: str, terms: list[_Term], run: Traces, plate: str | None) -> list[Tensor]:
    """The signal, log q and mask of a site, (K, M): M is N where a plate is named, else the number of its elements.

    Shapes: N data, K particles, M data or elements.
    """
    site = run.guide.nodes[name]
    shape = list(site["log_prob"].shape)
    if plate is not None:
        frame = frame_of(site, plate)
        if frame is None:
            raise outside_plate(name, plate)
        kept = frame.dim, run.particle_dim
        shape = [size if dim - len(shape) in kept else 1 for dim, size in enumerate(shape)]
    position = _order(run)[name]
    signals = [_sum_to(_without_plates(term, site).detach(), shape) for term in terms if term.latest >= position]
    parts = [torch.stack(signals).sum(0), _sum_to(score_of(site), shape), _sum_to(mask_of(site), shape)]
    if run.particle_dim is not None:
        parts = [part.movedim(run.particle_dim, 0) for part in parts]
    return [part.reshape(run.num_particles, -1) for part in parts]


def _without_plates(term: _Term, site: Site) -> Tensor:
    """A term summed over the plates that a site is not in, which may share a dim with one that it is in."""
    value = term.value
    for frame in term.site["cond_indep_stack"]:
        if frame.vectorized and frame.name not in _plates(site) and value.dim() >= -frame.dim:
            value = value.sum(frame.dim, keepdim=True)
    return value


def _sum_to(value: Tensor, shape: list[int]) -> Tensor:
    """Sums what ``shape`` has not, and repeats what it has and ``value`` has not."""
    while value.dim() > len(shape):
        value = value.sum(0)
    dims = [dim for dim in range(-value.dim(), 0) if shape[dim] == 1 and value.shape[dim] > 1]
    return (value.sum(dims, keepdim=True) if dims else value).expand(shape)
