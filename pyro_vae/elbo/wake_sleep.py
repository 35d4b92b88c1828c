r"""Reweighted wake-sleep: model and guide each have an objective of their own.

Wake-theta raises IWELBO in the model's parameters. The guide lowers the divergence from posterior to guide, KL(p || q),
the other way round than the ELBO: wake-phi at the data, with self-normalized weights, sleep-phi at data that the model
dreams up. No draw is differentiated, so any guide serves, discrete ones included, and no gradient grows noisy with K.

References:
    Bornschein, Bengio, "Reweighted wake-sleep", 2015, https://arxiv.org/abs/1406.2751
    Le, Kosiorek, Siddharth, Teh, Wood, "Revisiting reweighted wake-sleep", 2019, https://arxiv.org/abs/1805.10469
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.checks import number
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import gradient_only
from pyro_vae.elbo.importance import IWELBO


class ReweightedWakeSleep(IWELBO):
    """Wake-theta and a mixture of wake-phi and sleep-phi; its value is IWELBO's.

    Weights are per datum, also in a minibatch.

    Args:
        num_particles: K, at least 2: with one, wake-phi weighs every draw alike and learns nothing.
        insomnia: share of wake-phi in the guide's objective, in [0, 1]; the rest is sleep-phi.
        plate: see :class:`~pyro_vae.elbo.estimator.Estimator`.
        vectorize: likewise.
        chunk_size: likewise.

    Raises:
        TypeError: not a number.
        ValueError: a number out of range; with sleep, a model whose observed values are not arguments of the guide, or
            a guide that draws what the model does not, as those of ``pyro.infer.autoguide`` do.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> logit = torch.zeros(1, requires_grad=True)  # of a guide that is as yet the prior
        >>> def model():
        ...     with pyro.plate("data", 1):
        ...         bit = pyro.sample("bit", dist.Bernoulli(torch.full((1,), 0.5)))
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * bit), obs=torch.ones(1))
        >>> def guide():
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("bit", dist.Bernoulli(logits=logit))
        >>> loss = ReweightedWakeSleep(10_000).differentiable_loss(model, guide)
        >>> grad = torch.autograd.grad(-loss, logit)[0]
        >>> round(loss.item(), 1), round(grad.item(), 1)  # -log p(x) = log 2, and posterior less guide, 0.8 - 0.5
        (0.7, 0.3)
    """

    min_particles = 2

    def __init__(
        self,
        num_particles: int = 2,
        *,
        insomnia: float = 1.0,
        plate: str = "data",
        vectorize: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        self.insomnia = insomnia
        super().__init__(num_particles, "score", plate=plate, vectorize=vectorize, chunk_size=chunk_size)

    def checked(self, name: str, value: Any) -> Any:
        if name == "insomnia":
            value = number(type(self).__name__, name, value, at_least=0, at_most=1)
        return super().checked(name, value)

    def loss_of(self, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        bound = self.bound(densities.joint - densities.guide.detach()).sum()
        weights = densities.log_weights.detach().softmax(0)
        wake_phi = (weights * densities.guide).sum() if self.insomnia else bound.new_zeros(())
        sleep_phi = self._sleep(call) / densities.scale if self.insomnia < 1 else bound.new_zeros(())
        phi = self.insomnia * wake_phi + (1 - self.insomnia) * sleep_phi
        return -densities.scale * (bound + gradient_only(phi))

    def _sleep(self, call: Call) -> Tensor:
        """Log q(z|x) of the model's own draws of z and x, averaged over the particles; scaled as the data plate is."""
        one = partial(_log_q_of_a_dream, call)
        of_dreams = [one() if call.chunk_size is None else call.replayed(one) for _ in range(self.num_particles)]
        return torch.stack(of_dreams).sum() / self.num_particles


def _log_q_of_a_dream(call: Call) -> Tensor:
    slots: dict[int | str, Any] = dict(enumerate(call.args)) | call.kwargs
    with torch.no_grad():
        dream = poutine.trace(poutine.uncondition(call.model)).get_trace(*call.args, **call.kwargs)
    nodes: dict[str, Any] = dict(dream.nodes)
    dreamt = slots | {
        _place(name, site["infer"]["obs"], slots): site["value"]
        for name, site in nodes.items()
        if site["type"] == "sample" and site["infer"].get("was_observed")
    }
    args = [dreamt[i] for i in range(len(call.args))]
    kwargs = {name: dreamt[name] for name in call.kwargs}
    asleep = poutine.trace(poutine.replay(call.guide, trace=dream)).get_trace(*args, **kwargs)
    drawn = [name for name in asleep.stochastic_nodes if not site_is_subsample(asleep.nodes[name])]
    if undreamt := [name for name in drawn if name not in dream]:
        raise ValueError(
            "ReweightedWakeSleep: expected a guide of latents that the model dreams up; got one that also "
            f"draws {undreamt}. Use insomnia=1."
        )
    return torch.as_tensor(asleep.log_prob_sum())


def _place(name: str, value: Any, slots: dict[int | str, Any]) -> int | str:
    """Position or name of the argument that is a site's observed value."""
    place = next((place for place, argument in slots.items() if argument is value), None)
    if place is None:
        raise ValueError(
            f"ReweightedWakeSleep: expected the observed value of site {name!r} to be an argument of the guide, so "
            "that its dream can take its place; got another. Pass it as it is, or use insomnia=1."
        )
    return place
