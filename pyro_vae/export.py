r"""A trained program's networks for use without Pyro: ``torch.export`` programs and ONNX files.

An encoder maps x to the parameters of q(z|x), a decoder z to those of p(x|z) and to E[x|z], by name::

    encoder = export.encoder(vae)  # a torch.export.ExportedProgram
    encoder.module()(x)["loc"]  # x of any number of data
    export.onnx(vae, "model")  # model/encoder.onnx and model/decoder.onnx

Both are of the program in evaluation mode, hold copies of its weights, and take any number of data. Nothing that is
drawn at random is exported: the draw z ~ q(z|x) is left to who has its parameters.

Parameters are those of the density as it is: of a likelihood of standardized data ``loc`` and ``scale`` in the units of
x, of counts on a lattice those of the counts. Where no parameters make up the density of x by themselves (columns of
several kinds, dequantized data) there is the mean alone.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Independent

from pyro_vae import checks, distributions
from pyro_vae.models import VAE, ConditionalVAE

_BATCH = 13  # data in the example, as no dim of a network is likely to have
_LOCATION_SCALE = {"loc", "scale", "df"}


def encoder(program: VAE | ConditionalVAE) -> torch.export.ExportedProgram:
    """The encoder as a program of ``torch.export``: from x and the contexts to the parameters of q(z|x).

    Args:
        program: of one latent.

    Returns:
        ``encoder(program).module()(x, *contexts)`` is a dictionary: of :class:`~pyro_vae.conditionals.DiagonalNormal`
        ``loc`` and ``scale``, (N, latent_dim) each. ``torch.export.save`` writes it to a file.

    Raises:
        TypeError: another program, such as one whose encoder draws.
        ValueError: a family without parameters by name, as flows are; a network that ``torch.export`` cannot record,
            and why.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     likelihoods.Bernoulli(nets.MLP(2, [8]), 5),
        ...     conditionals.DiagonalNormal(nets.MLP(5, [8]), 2),
        ... )
        >>> x = torch.ones(3, 5)
        >>> q = encoder(vae).module()(x)
        >>> list(q), bool((q["loc"] - vae.encode(x).mean).abs().max() < 1e-5)
        (['loc', 'scale'], True)
    """
    if not isinstance(program, VAE | ConditionalVAE):
        raise TypeError(
            f"export.encoder: expected a VAE or a ConditionalVAE, whose encoder is a function of x; got "
            f"{type(program).__name__}. Export the parts that you need with torch.export."
        )
    return _exported("export.encoder", program, "encode", list(program.posterior.body.input_shapes))


def decoder(program: Any) -> torch.export.ExportedProgram:
    """The decoder as a program of ``torch.export``: from z and the contexts to the parameters of p(x|z) and its mean.

    Args:
        program: with a ``likelihood``: a VAE, a ConditionalVAE, a HierarchicalVAE, whose z is the lowest, or a
            SemiSupervisedVAE, whose one-hot y follows z.

    Returns:
        ``decoder(program).module()(z, *contexts)`` is a dictionary: of :class:`~pyro_vae.likelihoods.Bernoulli`
        ``logits`` and ``mean``. z is as the guide draws it: proportions are logarithms.

    Raises:
        TypeError: a program without a likelihood.
        ValueError: as :func:`encoder`.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     likelihoods.Bernoulli(nets.MLP(2, [8]), 5),
        ...     conditionals.DiagonalNormal(nets.MLP(5, [8]), 2),
        ... )
        >>> p = decoder(vae).module()(torch.zeros(3, 2))
        >>> list(p), bool((p["mean"] - vae.decode(torch.zeros(3, 2)).mean).abs().max() < 1e-5)
        (['logits', 'mean'], True)
    """
    likelihood = getattr(program, "likelihood", None)
    if likelihood is None or not callable(getattr(program, "decode", None)):
        raise TypeError(
            f"export.decoder: expected a program with a likelihood and decode(z); got {type(program).__name__}. Give a "
            "VAE or a relative of it."
        )
    shapes = [*likelihood.body.input_shapes, *(Size() for _ in likelihood.contexts)]
    return _exported("export.decoder", program, "decode", shapes)


def onnx(program: Any, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Writes ``encoder.onnx`` and ``decoder.onnx`` into a folder, which is made where there is none.

    Inputs are x or z and ``context0``, ..., with a first dim of any size; outputs have the names of the parameters.
    Of a program whose encoder cannot be exported write the decoder: ``torch.onnx.export(export.decoder(vae), ...)``.

    Args:
        program: see :func:`encoder` and :func:`decoder`.
        folder: for the two files, which are replaced.

    Returns:
        The paths of the files, by "encoder" and "decoder".

    Raises:
        ImportError: no onnx or onnxscript: ``pip install 'pyro-vae[onnx]'``.
        TypeError, ValueError: as :func:`encoder` and :func:`decoder`; an operation that ONNX does not have.
    """
    checks.instance("export.onnx", "folder", folder, (str, os.PathLike), "Give the path of a folder.")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export.onnx: expected onnxscript to be installed; got {error}. Use pip install 'pyro-vae[onnx]'."
        ) from error
    parts = {"encoder": (encoder(program), "x"), "decoder": (decoder(program), "z")}
    paths = {name: Path(folder, f"{name}.onnx") for name in parts}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (exported, first) in parts.items():
        contexts = len(exported.graph_signature.user_inputs) - 1
        inputs = [first, *(f"context{i}" for i in range(contexts))]
        outputs = list(exported.module()(*exported.example_inputs[0]))
        options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False}
        try:
            torch.onnx.export(exported, f=paths[name], input_names=inputs, output_names=outputs, **options)
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"export.onnx: expected operations that ONNX has in the {name}; got {_told(error)}. Use export.{name}, "
                "which torch runs."
            ) from error
    return paths


class _Part(nn.Module):
    """A function of a program, as a module that returns parameters and mean by name."""

    def __init__(self, program: nn.Module, name: str) -> None:
        super().__init__()
        self.program, self.name = program, name

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        density = getattr(self.program, self.name)(*inputs)
        told = {name: value for name, value in _parameters(density).items() if value.numel()}
        mean = _mean(density) if self.name == "decode" else None
        # A copy, since one tensor cannot be two outputs.
        return told if mean is None else {**told, "mean": mean.clone()}


def _exported(subject: str, program: Any, name: str, shapes: list[Size]) -> torch.export.ExportedProgram:
    part = _Part(copy.deepcopy(program), name).eval().requires_grad_(False)
    own = next(part.parameters())
    example = tuple(torch.full((_BATCH, *shape), 0.5, dtype=own.dtype, device=own.device) for shape in shapes)
    with pyro.validation_enabled(False), torch.no_grad():  # checks of values branch on them, which no graph can
        owner = program.posterior if name == "encode" else program.likelihood
        if not part(*example):
            raise ValueError(
                f"{subject}: expected a density with parameters by name; got that of {type(owner).__name__}, of which "
                "there are draws. Use a family such as DiagonalNormal, or torch.export for what you need of it."
            )
        try:
            batch = torch.export.Dim("batch")
            found = torch.export.export(part, example, dynamic_shapes={"inputs": tuple({0: batch} for _ in example)})
        except Exception as error:  # torch's own, of many classes
            raise ValueError(
                f"{subject}: expected a network that torch.export records for any number of data; got one that fails "
                f"({_told(error)}). Keep numbers and branches that depend on data out of it."
            ) from error
    found.graph.eliminate_dead_code()  # what densities compute beside their parameters, such as Cholesky factors
    found.graph_module.recompile()
    return found


def _parameters(density: Any) -> dict[str, Tensor]:
    """Tensors that make up a density, by the names that it has for them; none where these would not be of x itself."""
    if isinstance(density, Independent | distributions.Shaped | distributions.MissingAtRandom | distributions.Lattice):
        return _parameters(density.base_dist)
    if isinstance(density, distributions.Affine):
        return _in_units_of_x(density)
    if isinstance(density, distributions.Censored):  # whose own is the limit, a context
        return _parameters(density.base_dist)
    inner = _parameters(density.base_dist) if isinstance(density, distributions.ZeroInflated) else {}
    own = {name: getattr(density, name) for name in density.arg_constraints if _is_given(density, name)}
    if "logits" in own:  # of one-hot vectors, whose probabilities say the same
        own.pop("probs", None)
    return inner | {name: value for name, value in own.items() if isinstance(value, Tensor)}


def _is_given(density: TorchDistribution, name: str) -> bool:
    """Whether a parameter is one that the density was made with, and not another form of it, made when asked for."""
    return name in vars(density) or type(getattr(type(density), name, None)) is property  # and no lazy one


def _in_units_of_x(density: Any) -> dict[str, Tensor]:
    """Of a location-scale family under a change of units its location and scale in the new ones."""
    told = _parameters(density.base_dist)
    if not {"loc", "scale"} <= told.keys() <= _LOCATION_SCALE:
        return {}
    return told | {"loc": density.loc + density.scale * told["loc"], "scale": density.scale * told["scale"]}


def _mean(density: TorchDistribution) -> Tensor | None:
    """The mean, unless there is none or torch calls it NaN, as of categories."""
    inner = density
    while isinstance(inner, Independent | distributions.MissingAtRandom):
        inner = inner.base_dist
    if isinstance(inner, torch.distributions.Categorical):
        return None
    try:
        return density.mean
    except NotImplementedError:
        return None


def _told(error: Exception) -> str:
    """What an error of torch says, or what has caused it, without its advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return checks.printable(f"{type(error).__name__}: {lines[0].strip().rstrip('.')}")
