"""Exported encoders and decoders give what the program gives, for any number of data, and leave the program alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import members
import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import VAE, ConditionalVAE, conditionals, export, likelihoods, nets, priors

SHAPE = (1, 6, 6)
FLOWS = {"InverseAutoregressiveFlow", "RealNVP", "NeuralSpline", "Householder", "Planar", "Sylvester"}


def small_vae(likelihood: type = likelihoods.Bernoulli, dropout: float = 0.5) -> VAE:
    torch.manual_seed(0)
    body = nets.MLP(SHAPE, [8], activation=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(dropout)))
    return VAE(priors.StandardNormal(2), likelihood(nets.MLP(2, [8]), SHAPE), conditionals.DiagonalNormal(body, 2))


def convolutional() -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(3),
        likelihoods.MixtureOfDiscretizedLogistics(
            nets.ConvDecoder(3, (3, 7, 5), [8, 4]), (3, 7, 5), num_components=2, levels=5
        ),
        conditionals.DiagonalNormal(nets.ConvEncoder((3, 7, 5), [4, 8]), 3),
    ).eval()


def standardized() -> VAE:
    torch.manual_seed(0)
    s = nets.Standardize(torch.tensor([5.0, -3.0, 0.0]), torch.tensor([0.1, 10.0, 1.0]))
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Standardized(likelihoods.Normal(nets.MLP(2, [8]), 3, scale="per_element"), s),
        conditionals.DiagonalNormal(nets.MLP(3, [8], transform=s), 2),
    ).eval()


def counts() -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.Dirichlet(4),
        likelihoods.Multinomial(nets.MLP(4, [8]), 6),
        conditionals.Dirichlet(nets.MLP(6, [8], transform="log1p"), 4),
    ).eval()


def embedded() -> ConditionalVAE:
    torch.manual_seed(0)
    return ConditionalVAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(Embedding(2), 3),
        posterior=conditionals.DiagonalNormal(Embedding(3), 2),
    ).eval()


class Embedding(nets.Body):
    """A context of classes, given as numbers, that is embedded."""

    def __init__(self, size: int) -> None:
        super().__init__([size, ()], 8)
        self.linear, self.embedding = nn.Linear(size, 8), nn.Embedding(4, 8)

    def features(self, *inputs: Tensor) -> Tensor:
        x, label = inputs
        return (self.linear(x) + self.embedding(label.long())).tanh()


def masked() -> VAE:
    torch.manual_seed(0)
    likelihood = likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(2, [8]), 3))
    return VAE(
        priors.StandardNormal(2), likelihood, conditionals.DiagonalNormal(nets.MLP(3, [8], masked=True), 2)
    ).eval()


N = 5
HOLES = torch.tensor([[1.0, torch.nan, 2.0]]).repeat(N, 1)
CASES: dict[str, tuple[Any, tuple[Tensor, ...], tuple[Tensor, ...]]] = {  # program, x and contexts, z and contexts
    "MLP": (small_vae().eval(), (torch.rand(N, *SHAPE),), (torch.randn(N, 2),)),
    "convolutional": (convolutional(), (torch.rand(N, 3, 7, 5),), (torch.randn(N, 3),)),
    "standardized": (standardized(), (5 * torch.randn(N, 3),), (torch.randn(N, 2),)),
    "counts, log1p": (
        counts(),
        (torch.randint(0, 9, (N, 6)).float(),),
        (torch.randn(N, 4).log_softmax(-1), torch.full((N,), 20.0)),
    ),
    "embedded context": (
        embedded(),
        (torch.randn(N, 3), torch.arange(5.0) % 4),
        (torch.randn(N, 2), torch.arange(5.0) % 4),
    ),
    "missing values": (masked(), (HOLES,), (torch.randn(N, 2),)),
}


def truth(density: Any) -> dict[str, Tensor]:
    """Parameters by the attributes of the densities in this file, found by hand."""
    while isinstance(density, torch.distributions.Independent) or type(density).__name__ == "MissingAtRandom":
        density = density.base_dist
    if type(density).__name__ == "Affine":
        inner = truth(density.base_dist)
        return {"loc": density.loc + density.scale * inner["loc"], "scale": density.scale * inner["scale"]}
    names = ("loc", "scale", "logits", "concentration", "coefficients", "total_count")
    return {name: getattr(density, name) for name in names if name in vars(density)}


def expected(program: Any, x: tuple[Tensor, ...], z: tuple[Tensor, ...]) -> Iterator[dict[str, Tensor]]:
    with pyro.validation_enabled(False), torch.no_grad():
        yield truth(program.encode(*x))
        density = program.decode(*z)
        yield truth(density) | {"mean": density.mean}


def close(found: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_export_has_the_parameters_and_the_mean(name: str) -> None:
    program, x, z = CASES[name]
    parts = export.encoder(program).module(), export.decoder(program).module()
    for n in (N, 1, 3):
        cut = [tuple(each[:n] for each in arguments) for arguments in (x, z)]
        for part, arguments, wanted in zip(parts, cut, expected(program, *cut), strict=True):
            close(part(*arguments), wanted)


def run(path: Path, arguments: tuple[Tensor, ...]) -> dict[str, Any]:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    inputs = {node.name: value.numpy() for node, value in zip(session.get_inputs(), arguments, strict=True)}
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_onnx_files_have_the_parameters_and_the_mean(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    program, x, z = CASES[name]
    paths = export.onnx(program, tmp_path / "model")
    assert paths == {part: tmp_path / "model" / f"{part}.onnx" for part in ("encoder", "decoder")}
    for n in (N, 1, 3):
        cut = [tuple(each[:n] for each in arguments) for arguments in (x, z)]
        for path, arguments, wanted in zip(paths.values(), cut, expected(program, *cut), strict=True):
            close(run(path, arguments), wanted)


def with_posterior(make: Any) -> VAE:
    torch.manual_seed(0)
    posterior = make()
    prior = next(p for p in (m() for m in members.PRIORS.values()) if repr(p.support) == repr(posterior.support))
    return VAE(prior, likelihoods.Bernoulli(nets.MLP(tuple(posterior.event_shape), [5]), (1, 2, 2)), posterior)


@pytest.mark.parametrize("name", members.CONDITIONALS)
def test_encoder_of_every_conditional_makes_it_again_or_is_refused(name: str) -> None:
    """The log-density of the parameters that come out is that of the conditional."""
    vae, x = with_posterior(members.CONDITIONALS[name]), torch.rand(4, 1, 2, 2)
    if name in FLOWS:
        with pytest.raises(
            ValueError, match=rf"export.encoder: expected a density with parameters by name; got .* {name}"
        ):
            export.encoder(vae)
        return
    found = export.encoder(vae).module()(x)
    density = vae.encode(x)
    z = density.sample()
    inner: Any = density
    while isinstance(inner, torch.distributions.Independent):
        inner = inner.base_dist
    again = type(inner)(**found, validate_args=False)
    again = again if again.event_shape == density.event_shape else again.to_event(1)
    assert torch.allclose(again.log_prob(z), density.log_prob(z), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_decoder_of_every_likelihood_has_its_mean(name: str) -> None:
    torch.manual_seed(0)
    likelihood = members.LIKELIHOODS[name]()
    shapes = [(N, *shape) for shape in likelihood.body.input_shapes] + [(N,)] * len(likelihood.contexts)
    program = Holder(likelihood)
    arguments = tuple(torch.rand(shape) + 6 * (len(shape) == 1) for shape in shapes)
    found = export.decoder(program).module()(*arguments)
    with torch.no_grad(), pyro.validation_enabled(False):
        torch.testing.assert_close(found["mean"], likelihood(*arguments).mean, rtol=1e-5, atol=1e-5)


class Holder(nn.Module):
    def __init__(self, likelihood: Any) -> None:
        super().__init__()
        self.likelihood = likelihood

    def decode(self, *inputs: Tensor) -> Any:
        return self.likelihood(*inputs)


@pytest.mark.parametrize("name", ["HierarchicalVAE, bottom-up", "SemiSupervisedVAE"])
def test_decoder_of_other_programs_and_no_encoder_that_draws(name: str) -> None:
    program: Any = members.PROGRAMS[name]()[0]
    inputs = (torch.randn(3, 2), *([torch.eye(3)] if name == "SemiSupervisedVAE" else []))
    found = export.decoder(program).module()(*inputs)
    assert torch.allclose(found["mean"], program.decode(*inputs).mean, atol=1e-5)
    with pytest.raises(
        TypeError, match=rf"export.encoder: expected a VAE or a Cond.*; got {type(program).__name__}\. Exp"
    ):
        export.encoder(program)


def test_export_is_of_evaluation_mode_and_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    vae, x = small_vae().train(), torch.rand(3, *SHAPE)
    modes = [module.training for module in vae.modules()]
    before = copy.deepcopy(vae.state_dict())
    found = export.encoder(vae).module()
    assert [module.training for module in vae.modules()] == modes
    assert all(parameter.requires_grad for parameter in vae.parameters())
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert torch.equal(found(x)["loc"], found(x)["loc"])
    wanted = copy.deepcopy(vae).eval().encode(x).mean
    assert torch.allclose(found(x)["loc"], wanted, atol=1e-6)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()  # training goes on, and the export is a copy
    assert torch.allclose(found(x)["loc"], wanted, atol=1e-6)


def test_export_saves_and_loads(tmp_path: Path) -> None:
    vae, z = small_vae(dropout=0.0).eval(), torch.randn(3, 2)
    torch.export.save(export.decoder(vae), tmp_path / "decoder.pt2")
    loaded = torch.export.load(tmp_path / "decoder.pt2").module()
    assert torch.allclose(loaded(z)["mean"], vae.decode(z).mean, atol=1e-6)


def test_export_in_double_precision() -> None:
    vae = small_vae().double().eval()
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    assert torch.equal(export.encoder(vae).module()(x)["loc"], vae.encode(x).mean)


class Branching(nets.Body):
    def __init__(self) -> None:
        super().__init__([3], 3)
        self.linear = nn.Linear(3, 3)

    def features(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


def test_export_refuses_what_cannot_be_exported(monkeypatch: Any, tmp_path: Path) -> None:
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 3),
        conditionals.DiagonalNormal(Branching(), 2),
    )
    with pytest.raises(
        ValueError, match=r"export.encoder: expected a network that torch.export records .*data-dep.*Keep n"
    ):
        export.encoder(vae)
    with pytest.raises(
        TypeError, match=r"export.decoder: expected a program with a likelihood and decode\(z\); got Linear"
    ):
        export.decoder(nn.Linear(2, 2))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"expected onnxscript to be installed; .*pip install 'pyro-vae\[onnx\]'"):
        export.onnx(vae, tmp_path)


@pytest.mark.slow
def test_onnx_names_an_operation_that_onnx_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(Digamma(), 3),
        conditionals.DiagonalNormal(nets.MLP(3, [4]), 2),
    )
    assert np.isfinite(export.decoder(vae).module()(torch.rand(2, 2))["mean"].numpy()).all()
    with pytest.raises(
        ValueError, match=r"export.onnx: expected operations that ONNX has in the decoder; got .*digamma"
    ):
        export.onnx(vae, tmp_path)


class Digamma(nets.Body):
    def __init__(self) -> None:
        super().__init__([2], 2)

    def features(self, *inputs: Tensor) -> Tensor:
        (z,) = inputs
        return torch.digamma(z.exp() + 1)
