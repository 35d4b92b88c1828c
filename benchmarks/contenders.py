"""What trains the same VAE in a benchmark of steps: pyro_vae, PyTorch by hand, stock Pyro and NumPyro.

Bernoulli pixels, tanh networks, one layer for mean and log-scale together, Adam at 1e-3. Each contender starts from the
same weights, is given a block of indices (steps, batch), and gathers and binarizes its batches from all images, uint8
(N, 784), itself. Losses are read at the end of a block, except by those whose step returns a number, as Pyro's does.
"""
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae import SVI, VAE, conditionals, data, elbo, likelihoods, nets, priors
from pyro_vae.compilation import Precision

PIXELS = 784
FUSED_ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)

Block = Callable[[Tensor], list[float]]
"""Takes a step for each row of indices (steps, batch); the losses, before each step."""


def numbers(losses: Sequence[Tensor | float]) -> list[float]:
    """Losses as numbers, of which a GPU is asked once; our first steps return numbers themselves."""
    on = next((loss.device for loss in losses if isinstance(loss, Tensor)), None)
    return torch.stack([torch.as_tensor(loss, device=on) for loss in losses]).tolist()


class Task:
    """What is trained on what.

    Args:
        hidden: widths of the hidden layers, of the decoder in this order too.
        latent: dimensions of z.
        particles: K; 1 for the ELBO, more for the importance-weighted bound.
        batch_size: data in a step.
        dataset: gray pixels, to be binarized in every batch; its device is that of all tensors.
    """

    def __init__(self, hidden: list[int], latent: int, particles: int, batch_size: int, dataset: data.Dataset) -> None:
        self.hidden, self.latent = hidden, latent
        self.particles, self.batch_size, self.dataset = particles, batch_size, dataset
        self.device = dataset.device
        self.weights = [(layer.weight.detach(), layer.bias.detach()) for layer in linears(Networks(self))]

    def blocks(self, steps: int) -> Iterator[Tensor]:
        """Indices (steps, batch), of one permutation of the data after the other."""
        size = steps * self.batch_size
        while True:
            for indices in torch.randperm(len(self.dataset)).to(self.device).split(size):
                if len(indices) == size:
                    yield indices.view(steps, self.batch_size)

    def start(self, *networks: nn.Module) -> None:
        """Gives encoder and decoder the weights that every contender starts from, on the device."""
        for network in networks:
            network.to(self.device)
        layers = [layer for network in networks for layer in linears(network)]
        for layer, (weight, bias) in zip(layers, self.weights, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})

    def gather(self, index: Tensor) -> Tensor:
        """A binarized batch."""
        return self.dataset.gather(index, self.dataset.images)[0]


def linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers = [[nn.Tanh(), nn.Linear(fan_in, fan_out)] for fan_in, fan_out in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers))[1:]


class Networks(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.encoder = mlp(PIXELS, *task.hidden, 2 * task.latent)
        self.decoder = mlp(task.latent, *task.hidden, PIXELS)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return loc, log_scale.exp()


def our_vae(task: Task) -> VAE:
    vae = VAE(
        prior=priors.StandardNormal(task.latent),
        likelihood=likelihoods.Bernoulli(nets.MLP(task.latent, task.hidden), (PIXELS,)),
        posterior=conditionals.DiagonalNormal(nets.MLP((PIXELS,), task.hidden), task.latent),
    )
    task.start(vae.guide, vae.model)
    return vae


def our_loss(task: Task) -> pyro.infer.ELBO:
    return elbo.ELBO() if task.particles == 1 else elbo.IWELBO(task.particles)


def ours(task: Task, *, compile: bool, precision: Precision = "float32") -> Block:
    vae, gather, images = our_vae(task), task.dataset.gather, task.dataset.images
    svi = SVI(vae.model, vae.guide, FUSED_ADAM, our_loss(task), compile=compile, prepare=gather, precision=precision)
    return lambda indices: numbers([svi.advance(index, images) for index in indices])


class HandWritten(Networks):
    """The loop one writes without a library: cross-entropy, and the log-densities of the draws of z."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        task.start(self)
        self.particles = task.particles
        self.optimizer = FUSED_ADAM(self.parameters())

    def forward(self, index: Tensor, images: Tensor) -> Tensor:
        gray = images[index].float() / 255
        x = (torch.rand_like(gray) < gray).float()
        loc, scale = self.encode(x)
        shape = loc.shape if self.particles == 1 else (self.particles, *loc.shape)
        noise = torch.randn(shape, device=loc.device)
        z = loc + scale * noise
        logits = self.decoder(z)
        log_weights = (0.5 * (noise.square() - z.square()) + scale.log()).sum(-1)
        log_weights -= binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        if self.particles == 1:
            return -log_weights.sum()
        return -(log_weights.logsumexp(0) - math.log(self.particles)).sum()

    def step(self, index: Tensor, images: Tensor) -> Tensor:
        loss: Tensor = self(index, images)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def hand_written(task: Task, *, compile: bool, **options: object) -> Block:
    """By hand; a compiled graph gathers and binarizes too, which took no longer than doing so before it."""
    module = HandWritten(task)
    if compile:
        module.compile(dynamic=False, options=options)
    images = task.dataset.images
    return lambda indices: numbers([module.step(index, images) for index in indices])


def with_cuda_graph(task: Task) -> Block:
    """By hand, compiled, and captured with the optimizer as PyTorch's notes on CUDA graphs have it."""
    module, images = HandWritten(task), task.dataset.images
    module.compile(dynamic=False)
    for group in module.optimizer.param_groups:
        group["capturable"] = True
    place = torch.zeros(task.batch_size, dtype=torch.int64, device=task.device)
    before = [tensor.detach().clone() for tensor in module.parameters()]
    side, present = torch.cuda.Stream(task.device), torch.cuda.current_stream(task.device)
    side.wait_stream(present)
    with torch.cuda.stream(side):
        for _ in range(3):
            module.step(place, images)
    present.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        loss = module.step(place, images)
    with torch.no_grad():  # as before the warm-up
        for tensor, value in zip(module.parameters(), before, strict=True):
            tensor.copy_(value)
            for average in module.optimizer.state[tensor].values():
                average.zero_()

    def step(index: Tensor) -> Tensor:
        place.copy_(index)
        graph.replay()
        return loss.clone()

    return lambda indices: numbers([step(index) for index in indices])


class PyroStyle(Networks):
    """Model and guide as in the class of Pyro's own example, examples/vae/vae.py."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        task.start(self)
        self.latent = task.latent

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], self.latent), x.new_ones(x.shape[0], self.latent)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encode(x)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def pyro_loss(particles: int) -> pyro.infer.ELBO:
    if particles == 1:
        return pyro.infer.Trace_ELBO()
    return pyro.infer.RenyiELBO(alpha=0, num_particles=particles, max_plate_nesting=1, vectorize_particles=True)


def stock(task: Task, *, fused: bool, validate: bool) -> Block:
    program = PyroStyle(task)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3} | ({"fused": True} if fused else {}))
    svi = pyro.infer.SVI(program.model, program.guide, optimizer, pyro_loss(task.particles))
    store: Any = {"params": {}, "constraints": {}}

    def block(indices: Tensor) -> list[float]:
        with pyro.validation_enabled(validate), pyro.get_param_store().scope(store):
            return [svi.step(task.gather(index)) for index in indices]

    return block


def pyro_style_with_our_svi(task: Task) -> Block:
    program = PyroStyle(task)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3})  # what pyro.optim.Adam makes
    svi = SVI(program.model, program.guide, optimizer, loss=pyro_loss(task.particles), compile=True)
    return lambda indices: [svi.step(task.gather(index)) for index in indices]


def with_numpyro(task: Task, *, loop: bool) -> Block:
    """NumPyro's jitted update for each step, or one jitted loop over the steps of a block."""
    os.environ["NPROC"] = str(torch.get_num_threads())  # sizes XLA's pool; its own flags for that have no effect
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as numpyro_dist

    def network(layers: list[tuple[Tensor, Tensor]]) -> Any:
        start = [(jnp.asarray(weight.T.numpy()), jnp.asarray(bias.numpy())) for weight, bias in layers]

        def apply(layers: Any, x: Any) -> Any:
            for weight, bias in layers[:-1]:
                x = jnp.tanh(x @ weight + bias)
            weight, bias = layers[-1]
            return x @ weight + bias

        return lambda key, shape: (None, start), apply

    half = len(task.weights) // 2
    encoder, decoder = network(task.weights[:half]), network(task.weights[half:])

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (task.latent,))
        with numpyro.plate("data", len(x)):
            prior = numpyro_dist.Normal(jnp.zeros((len(x), task.latent)), 1.0).to_event(1)
            logits = decode(numpyro.sample("z", prior))
            numpyro.sample("x", numpyro_dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        loc, log_scale = jnp.split(numpyro.module("encoder", encoder, (PIXELS,))(x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", numpyro_dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    one, several = numpyro.infer.Trace_ELBO(), numpyro.infer.RenyiELBO(alpha=0, num_particles=task.particles)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-3), one if task.particles == 1 else several)

    def update(state: Any, index: Any, images: Any) -> Any:
        key, binarize = jax.random.split(state.rng_key)
        gray = images[index].astype(jnp.float32) / 255
        x = (jax.random.uniform(binarize, gray.shape) < gray).astype(jnp.float32)
        return svi.update(state._replace(rng_key=key), x)

    def updates(state: Any, indices: Any, images: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            state, loss = update(carry[0], indices[i], images)
            return state, carry[1].at[i].set(loss)

        return jax.lax.fori_loop(0, len(indices), body, (state, jnp.zeros(len(indices))))

    state = svi.init(jax.random.key(0), jnp.zeros((1, PIXELS)))
    images = jnp.asarray(task.dataset.images.cpu().numpy())
    step, steps = jax.jit(update, donate_argnums=0), jax.jit(updates, donate_argnums=0)

    def block(indices: Tensor) -> list[float]:
        nonlocal state
        rows = indices.cpu().numpy().astype("int32")
        if loop:
            state, losses = steps(state, rows, images)
        else:
            losses = []
            for row in rows:  # dispatched without waiting for one another
                state, loss = step(state, row, images)
                losses.append(loss)
        jax.block_until_ready(state)
        return [float(loss) for loss in losses]

    return block


def has_numpyro(device: torch.device) -> bool:
    """Whether NumPyro can be imported, and computes on this kind of device."""
    if any(importlib.util.find_spec(name) is None for name in ("jax", "numpyro")):
        return False
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # it would take most of a GPU's memory
    import jax

    return jax.default_backend() == {"cuda": "gpu"}.get(device.type, device.type)
