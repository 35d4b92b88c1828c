"""What trains the same VAE in a benchmark of steps: pyro_vae, PyTorch by hand, stock Pyro and NumPyro.

One of ``programs.py``, one layer for mean and log-scale together, Adam at 1e-3. Each contender starts from the same
weights, is given a block of indices (steps, batch), and gathers and binarizes its batches from all data itself. Losses
are read at the end of a block, except by those whose step returns a number, as Pyro's does.
"""
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import importlib.util
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
from programs import PIXELS, Program, Vamp
from torch import Tensor, nn

from pyro_vae import SVI, VAE, data, elbo
from pyro_vae.compilation import Precision

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
        dataset: gray pixels, to be binarized in every batch, or counts; its device is that of all tensors.
        program: which of the programs.
    """

    def __init__(
        self,
        hidden: list[int],
        latent: int,
        particles: int,
        batch_size: int,
        dataset: data.Dataset,
        program: type[Program] = Program,
    ) -> None:
        self.what = hidden, latent, dataset
        self.particles, self.batch_size, self.dataset, self.program = particles, batch_size, dataset, program
        self.device = dataset.device
        self.weights = [(layer.weight.detach(), layer.bias.detach()) for layer in layers(program(*self.what))]

    def blocks(self, steps: int) -> Iterator[Tensor]:
        """Indices (steps, batch), of one permutation of the data after the other."""
        size = steps * self.batch_size
        while True:
            for indices in torch.randperm(len(self.dataset)).to(self.device).split(size):
                if len(indices) == size:
                    yield indices.view(steps, self.batch_size)

    def by_hand(self) -> Program:
        """The program by hand."""
        program = self.program(*self.what)
        self.start(program)
        return program

    def start(self, *networks: nn.Module) -> None:
        """Gives encoder and decoder the weights that every contender starts from, on the device."""
        for network in networks:
            network.to(self.device)
        every = [layer for network in networks for layer in layers(network)]
        for layer, (weight, bias) in zip(every, self.weights, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})

    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        """A binarized batch, and its context."""
        return self.dataset.gather(index, *self.dataset.held)


def layers(network: nn.Module) -> list[Any]:
    """The linear and convolutional layers, in order."""
    kinds = nn.Linear, nn.Conv2d, nn.ConvTranspose2d
    return [module for module in network.modules() if isinstance(module, kinds)]


def our_vae(task: Task) -> VAE:
    vae = task.program.vae(*task.what)
    task.start(vae.guide, vae.model)
    return vae


def our_loss(task: Task) -> pyro.infer.ELBO:
    return elbo.ELBO() if task.particles == 1 else elbo.IWELBO(task.particles)


def ours(task: Task, *, compile: bool, precision: Precision = "float32") -> Block:
    vae, gather, held = our_vae(task), task.dataset.gather, task.dataset.held
    svi = SVI(vae.model, vae.guide, FUSED_ADAM, our_loss(task), compile=compile, prepare=gather, precision=precision)
    return lambda indices: numbers([svi.advance(index, *held) for index in indices])


class HandWritten(nn.Module):
    """The loop one writes without a library: the log-densities of a batch and of draws of z."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.program = task.by_hand()
        self.particles = task.particles
        self.optimizer = FUSED_ADAM(self.parameters())

    def forward(self, index: Tensor, *held: Tensor) -> Tensor:
        x, *context = self.program.gather(index, *held)
        loc, scale = self.program.encode(x)
        shape = loc.shape if self.particles == 1 else (self.particles, *loc.shape)
        noise = torch.randn(shape, device=loc.device)
        z = loc + scale * noise
        log_weights = (0.5 * noise.square() + scale.log()).sum(-1) + self.program.log_prior(z)
        log_weights += self.program.log_likelihood(z, x, *context)
        if self.particles == 1:
            return -log_weights.sum()
        return -(log_weights.logsumexp(0) - math.log(self.particles)).sum()

    def step(self, index: Tensor, *held: Tensor) -> Tensor:
        loss: Tensor = self(index, *held)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def hand_written(task: Task, *, compile: bool, **options: object) -> Block:
    """By hand; a compiled graph gathers and binarizes too, which took no longer than doing so before it."""
    module = HandWritten(task)
    if compile:
        module.compile(dynamic=False, options=options)
    held = task.dataset.held
    return lambda indices: numbers([module.step(index, *held) for index in indices])


def with_cuda_graph(task: Task) -> Block:
    """By hand, compiled, and captured with the optimizer as PyTorch's notes on CUDA graphs have it."""
    module, held = HandWritten(task), task.dataset.held
    module.compile(dynamic=False)
    for group in module.optimizer.param_groups:
        group["capturable"] = True
    place = torch.zeros(task.batch_size, dtype=torch.int64, device=task.device)
    before = [tensor.detach().clone() for tensor in module.parameters()]
    side, present = torch.cuda.Stream(task.device), torch.cuda.current_stream(task.device)
    side.wait_stream(present)
    with torch.cuda.stream(side):
        for _ in range(3):
            module.step(place, *held)
    present.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        loss = module.step(place, *held)
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


class PyroStyle:
    """Model and guide as in the class of Pyro's own example, examples/vae/vae.py."""

    def __init__(self, task: Task) -> None:
        self.program = task.by_hand()

    def model(self, x: Tensor, *context: Tensor) -> None:
        pyro.module("decoder", self.program.decoder)
        if isinstance(self.program, Vamp):
            pyro.param("pseudo_inputs", self.program.pseudo_inputs)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", self.program.prior(x))
            pyro.sample("obs", self.program.likelihood(z, *context), obs=x)

    def guide(self, x: Tensor, *context: Tensor) -> None:
        pyro.module("encoder", self.program.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.program.encode(x)
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
            return [svi.step(*task.gather(index)) for index in indices]

    return block


def pyro_style_with_our_svi(task: Task) -> Block:
    program = PyroStyle(task)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3})  # what pyro.optim.Adam makes
    svi = SVI(program.model, program.guide, optimizer, loss=pyro_loss(task.particles), compile=True)
    return lambda indices: [svi.step(*task.gather(index)) for index in indices]


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

    _, latent, _ = task.what
    half = len(task.weights) // 2
    encoder, decoder = network(task.weights[:half]), network(task.weights[half:])

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (latent,))
        with numpyro.plate("data", len(x)):
            prior = numpyro_dist.Normal(jnp.zeros((len(x), latent)), 1.0).to_event(1)
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
