"""Every public function, class and method, by name, with arguments that are right: what malformed calls start from.

An entry is a function without arguments that returns the callable and its arguments by the names of its signature;
those of ``*args`` stand under the name of ``*args``, as a tuple.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import members
import numpy as np
import torch
from torch import nn

import pyro_vae
from pyro_vae import (
    SVI,
    VAE,
    checkpoint,
    conditionals,
    data,
    elbo,
    evaluation,
    fit,
    lab,
    likelihoods,
    nets,
    plots,
    priors,
    schedules,
    testing,
)

Call = tuple[Callable[..., Any], dict[str, Any]]

_SHAPE = (1, 2, 2)


def _encoder() -> nets.Body:
    return nets.MLP(_SHAPE, [5])


def _decoder() -> nets.Body:
    return nets.MLP(2, [5])


def _bits() -> torch.Tensor:
    return (torch.arange(28) % 5 < 2).float().reshape(7, *_SHAPE)


def _vae() -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(_decoder(), _SHAPE),
        conditionals.DiagonalNormal(_encoder(), 2),
    )


def _of_columns() -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.MissingAtRandom(likelihoods.Normal(_decoder(), 3)),
        conditionals.DiagonalNormal(nets.MLP(3, [5], masked=True), 2),
    )


def _scores() -> evaluation.Scores:
    return evaluation.score(_vae(), _bits(), num_samples=2, num_particles=3, progress=False)


def _program(name: str) -> Any:
    return members.PROGRAMS[name]()[0]


def _svi() -> SVI:
    vae = _vae()
    return SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3), loss=elbo.ELBO(), compile=False)


def _on_vae(function: Callable[..., Any], **arguments: Any) -> Callable[[], Call]:
    return lambda: (function, {"program": _vae(), "x": _bits(), **arguments})


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


def _rows() -> torch.Tensor:
    return torch.linspace(-1, 1, 60).reshape(20, 3).sin()


def _ones() -> torch.Tensor:
    return torch.ones(7)


def _history() -> pyro_vae.History:
    names = ("loss", "beta", "train_elbo", "train_expected_log_likelihood", "train_kl")
    return pyro_vae.History(epochs=[{"epoch": e, **dict.fromkeys(names, 1.0 / e)} for e in (1.0, 2.0)])


@cache
def _comparison() -> lab.Comparison:
    vae = _vae()
    return lab.compare(vae.model, vae.guide, _bits(), [elbo.ELBO()], draws=100, progress=False)


def _saved() -> Path:
    path = _folder() / "vae.safetensors"
    checkpoint.save(path, _vae())
    return path


def _saved_program() -> Path:
    path = _folder() / "vae"
    pyro_vae.save(path, _vae())
    return path


LIKELIHOODS: dict[str, dict[str, Any]] = {
    "Bernoulli": {"data_mean": torch.full(_SHAPE, 0.5)},
    "ContinuousBernoulli": {"data_mean": torch.full(_SHAPE, 0.5), "max_logit": 10.0},
    "Beta": {"scale": "learned", "min_scale": 0.01},
    "LogitNormal": {"scale": "learned", "min_scale": 0.01},
    "Normal": {"scale": 0.5, "min_scale": 0.01},
    "SigmaNormal": {"min_scale": 0.01},
    "Laplace": {"scale": "per_element", "min_scale": 0.01},
    "Huber": {"delta": 1.0, "scale": "learned", "min_scale": 0.01},
    "StudentT": {"df": 3.0, "scale": "learned", "min_scale": 0.01},
    "Categorical": {"num_categories": 3, "spacing": 1.0},
    "OneHotCategorical": {},
    "Binomial": {"total_count": 16, "spacing": 1.0},
    "Poisson": {"library_size": True},
    "NegativeBinomial": {"library_size": True},
    "ZeroInflatedNegativeBinomial": {"library_size": False},
    "Multinomial": {},
    "DiscretizedLogistic": {"levels": 16, "scale": "learned", "min_scale": 0.01},
    "MixtureOfDiscretizedLogistics": {"num_components": 2, "levels": 16},
}
PRIORS: dict[str, dict[str, Any]] = {
    "StandardNormal": {},
    "Normal": {},
    "MixtureOfNormals": {"num_components": 3},
    "RealNVP": {"num_layers": 2, "hidden": [4]},
    "NeuralSpline": {"num_layers": 2, "hidden": [4], "num_bins": 4},
    "MaskedAutoregressive": {"num_layers": 2, "hidden": [4]},
    "Laplace": {"scale": 1.0},
    "Dirichlet": {"concentration": 0.7},
    "LogisticNormal": {"scale": 1.0},
    "HypersphericalUniform": {},
    "Bernoulli": {},
    "OneHotCategorical": {},
    "RelaxedBernoulli": {"temperature": 0.5},
    "RelaxedOneHotCategorical": {"temperature": 0.5},
}
CONDITIONALS: dict[str, dict[str, Any]] = {
    "DiagonalNormal": {},
    "LowRankNormal": {"rank": 1},
    "FullRankNormal": {},
    "MixtureOfNormals": {"num_components": 2},
    "InverseAutoregressiveFlow": {"num_layers": 2, "hidden": [4], "context_dim": 4},
    "RealNVP": {"num_layers": 2, "hidden": [4], "context_dim": 4},
    "NeuralSpline": {"num_layers": 2, "hidden": [4], "num_bins": 4, "context_dim": 4},
    "Householder": {"num_layers": 2},
    "Planar": {"num_layers": 2},
    "Sylvester": {"num_layers": 2, "num_reflections": 2},
    "VonMisesFisher": {},
    "Dirichlet": {},
    "LogisticNormal": {},
    "Bernoulli": {},
    "OneHotCategorical": {},
    "RelaxedBernoulli": {"temperature": 0.5},
    "RelaxedOneHotCategorical": {"temperature": 0.5},
}
PICTURES: dict[str, dict[str, Any]] = {
    "reconstructed": {"num_images": 3},
    "samples": {"num_images": 3, "mean": True},
    "interpolations": {"num_pairs": 2, "num_steps": 3},
    "manifold": {"num_steps": 3},
    "latents": {"labels": list(range(14)), "method": "pca", "max_data": 14},
    "units": {"threshold": 0.01, "max_data": 14},
}
_SAMPLING = {"num_particles": 2, "gradient": "pathwise", "plate": "data", "vectorize": True}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "ELBO": {**_SAMPLING, "beta": 1.0, "analytic_kl": False, "free_bits": 0.0},
    "IWELBO": _SAMPLING,
    "MIWELBO": {**_SAMPLING, "num_bounds": 2},
    "CIWELBO": {**_SAMPLING, "beta": 0.5},
    "PIWELBO": {"num_particles": 2, "num_bounds": 2},
    "RenyiELBO": {**_SAMPLING, "alpha": 0.5},
    "VRMax": _SAMPLING,
    "JackknifeELBO": _SAMPLING,
    "ThermodynamicELBO": {**_SAMPLING, "partitions": 2, "first": 0.01, "sum": "left"},
    "ReweightedWakeSleep": {"num_particles": 2, "insomnia": 1.0},
}


def _entry(kind: Callable[..., Any], options: dict[str, Any], **fresh: Callable[[], Any]) -> Callable[[], Call]:
    """A call with options, and with arguments that are made anew each time."""
    return lambda: (kind, {**{name: make() for name, make in fresh.items()}, **options})


CALLS: dict[str, Callable[[], Call]] = {
    **{
        f"likelihoods.{name}": _entry(
            getattr(likelihoods, name),
            {"event_shape": 4 if name == "Multinomial" else _SHAPE, **options},
            body=_decoder,
        )
        for name, options in LIKELIHOODS.items()
    },
    "likelihoods.Dequantized": lambda: (
        likelihoods.Dequantized,
        {"likelihood": likelihoods.Normal(_decoder(), _SHAPE), "levels": 256},
    ),
    "likelihoods.Standardized": lambda: (
        likelihoods.Standardized,
        {
            "likelihood": likelihoods.Normal(_decoder(), _SHAPE),
            "standardize": nets.Standardize(torch.ones(_SHAPE), torch.ones(_SHAPE)),
        },
    ),
    "likelihoods.MissingAtRandom": lambda: (
        likelihoods.MissingAtRandom,
        {"likelihood": likelihoods.Normal(_decoder(), _SHAPE)},
    ),
    "likelihoods.Mixed": lambda: (
        likelihoods.Mixed,
        {"body": _decoder(), "parts": [(0, likelihoods.Bernoulli), (slice(1, 3), likelihoods.Normal)]},
    ),
    **{
        f"priors.{name}": _entry(getattr(priors, name), {"latent_dim": 2, **options})
        for name, options in PRIORS.items()
    },
    "priors.VampPrior": lambda: (priors.VampPrior, {"pseudo_inputs": _bits(), "clamp": True}),
    **{
        f"conditionals.{name}": _entry(getattr(conditionals, name), {"latent_dim": 2, **options}, body=_encoder)
        for name, options in CONDITIONALS.items()
    },
    **{f"elbo.{name}": _entry(getattr(elbo, name), options) for name, options in ESTIMATORS.items()},
    "elbo.OVIS": lambda: (elbo.OVIS, {"gamma": 0.0}),
    "elbo.VIMCO": lambda: (elbo.VIMCO, {"mean": "geometric"}),
    "elbo.Score": lambda: (elbo.Score, {"baseline": "running_mean"}),
    "elbo.log_weights": lambda: (
        elbo.log_weights,
        {
            "model": _vae().model,
            "guide": _vae().guide,
            "args": (_bits(),),
            "num_particles": 2,
            "plate": "data",
            "vectorize": True,
            "chunk_size": 1,
        },
    ),
    "explain": lambda: (
        pyro_vae.explain,
        {
            "reconstruction": "huber",
            "reduction": "sum",
            "kl_reduction": "mean",
            "event_shape": _SHAPE,
            "kl_weight": 0.5,
            "reconstruction_weight": 2.0,
            "latent_dim": 2,
            "batch_size": 7,
            "delta": 0.5,
            "num_categories": None,
            "data": _bits(),
        },
    ),
    "Explanation.at": lambda: (
        pyro_vae.explain("mse", reduction="mean", kl_reduction="mean", latent_dim=2, event_shape=_SHAPE).at,
        {"beta": 1.0},
    ),
    "nets.as_size": lambda: (nets.as_size, {"shape": (1, 2)}),
    "nets.MLP": lambda: (
        nets.MLP,
        {
            "input_shape": _SHAPE,
            "hidden": [5],
            "context_shapes": [2],
            "activation": nn.Tanh,
            "transform": None,
            "masked": False,
        },
    ),
    "nets.ConvEncoder": lambda: (
        nets.ConvEncoder,
        {"input_shape": (1, 8, 8), "channels": [4], "context_shapes": [2], "activation": nn.ReLU},
    ),
    "nets.ConvDecoder": lambda: (
        nets.ConvDecoder,
        {"input_shape": 2, "output_shape": (1, 8, 8), "channels": [4], "context_shapes": [2], "activation": nn.ReLU},
    ),
    "VAE": lambda: (
        VAE,
        {
            "prior": priors.StandardNormal(2),
            "likelihood": likelihoods.Bernoulli(_decoder(), _SHAPE),
            "posterior": conditionals.DiagonalNormal(_encoder(), 2),
        },
    ),
    "ConditionalVAE": lambda: (
        pyro_vae.ConditionalVAE,
        {
            "prior": conditionals.DiagonalNormal(nets.MLP(3, [5]), 2),
            "likelihood": likelihoods.Bernoulli(nets.MLP(2, [5], context_shapes=[3]), _SHAPE),
            "posterior": conditionals.DiagonalNormal(nets.MLP(_SHAPE, [5], context_shapes=[3]), 2),
        },
    ),
    "HierarchicalVAE": lambda: (
        pyro_vae.HierarchicalVAE,
        {
            "prior": priors.StandardNormal(3),
            "conditionals": [conditionals.DiagonalNormal(nets.MLP(3, [5]), 2)],
            "likelihood": likelihoods.Bernoulli(_decoder(), _SHAPE),
            "posteriors": [
                conditionals.DiagonalNormal(_encoder(), 2),
                conditionals.DiagonalNormal(nets.MLP(2, [5]), 3),
            ],
            "inference": "bottom-up",
        },
    ),
    "TopDownVAE": lambda: (
        pyro_vae.TopDownVAE,
        {
            "likelihood": likelihoods.Bernoulli(nets.ResidualMaps((4, *_SHAPE[1:])), _SHAPE),
            "groups": [1],
            "latent_channels": 2,
            "blocks": 1,
            "checkpoint": True,
        },
    ),
    "SemiSupervisedVAE": lambda: (
        pyro_vae.SemiSupervisedVAE,
        {
            "prior": priors.StandardNormal(2),
            "likelihood": likelihoods.Bernoulli(nets.MLP(2, [5], context_shapes=[3]), _SHAPE),
            "posterior": conditionals.DiagonalNormal(nets.MLP(_SHAPE, [5], context_shapes=[3]), 2),
            "classifier": conditionals.OneHotCategorical(_encoder(), 3),
            "classification_weight": 1.0,
        },
    ),
    "VAE.encode": lambda: (_vae().encode, {"x": _bits()}),
    "VAE.decode": lambda: (_vae().decode, {"z": torch.zeros(3, 2)}),
    "VAE.sample": lambda: (_vae().sample, {"size": 3, "mean": True}),
    "VAE.reconstruct": lambda: (_vae().reconstruct, {"x": _bits()}),
    "VAE.check_data": lambda: (_vae().check_data, {"x": _bits()}),
    "VAE.model": lambda: (_vae().model.forward, {"x": _bits(), "size": 7}),
    "VAE.guide": lambda: (_vae().guide.forward, {"x": _bits()}),
    "ConditionalVAE.sample": lambda: (_program("ConditionalVAE").sample, {"context": (torch.zeros(3, 3),)}),
    "ConditionalVAE.model": lambda: (
        _program("ConditionalVAE").model.forward,
        {"x": _bits(), "context": (torch.zeros(7, 3),)},
    ),
    "SemiSupervisedVAE.model": lambda: (
        _program("SemiSupervisedVAE").model.forward,
        {"x": _bits(), "labels": torch.tensor([0, -1, 2, -1, -1, 1, -1])},
    ),
    "HierarchicalVAE.sample": lambda: (_program("HierarchicalVAE, top-down").sample, {"size": 3}),
    "HierarchicalVAE.reconstruct": lambda: (_program("HierarchicalVAE, top-down").reconstruct, {"x": _bits()}),
    "TopDownVAE.sample": lambda: (_program("TopDownVAE").sample, {"size": 3}),
    "TopDownVAE.reconstruct": lambda: (_program("TopDownVAE").reconstruct, {"x": _bits()}),
    "SVI": lambda: (
        SVI,
        {
            "model": _vae().model,
            "guide": _vae().guide,
            "optimizer": partial(torch.optim.Adam, lr=1e-3),
            "loss": elbo.ELBO(),
            "max_grad_norm": 1.0,
            "compile": False,
            "prepare": None,
            "precision": "float32",
            "ema_decay": 0.9,
            "isolated": True,
        },
    ),
    "SVI.step": lambda: (_svi().step, {"args": (_bits(),)}),
    "SVI.evaluate_loss": lambda: (_svi().evaluate_loss, {"args": (_bits(),)}),
    "SVI.initialize": lambda: (_svi().initialize, {"args": (_bits(),)}),
    "fit": lambda: (
        fit,
        {
            "program": _vae(),
            "train": _bits(),
            "validation": _bits(),
            "loss": elbo.ELBO(),
            "optimizer": partial(torch.optim.Adam, lr=1e-3),
            "epochs": 1,
            "batch_size": 4,
            "drop_last": False,
            "beta": 1.0,
            "patience": 1,
            "max_grad_norm": 1.0,
            "ema_decay": 0.9,
            "precision": "float32",
            "seed": 0,
            "progress": False,
            "compile": False,
            "folder": _folder() / "run",
            "resume": False,
            "checkpoint_every": "1 epoch",
            "keep_last": 1,
            "keep_best": True,
            "nonfinite": "skip",
            "accumulate": 1,
        },
    ),
    "save": lambda: (
        pyro_vae.save,
        {"folder": _folder() / "vae", "program": _vae(), "figures": {"test_elbo": -1.0}},
    ),
    "load": lambda: (pyro_vae.load, {"folder": _saved_program(), "classes": (), "weights": "last"}),
    "data.as_dataset": lambda: (data.as_dataset, {"x": np.zeros((5, 3), np.float32), "name": "zeros"}),
    "data.available": lambda: (data.available, {"name": "digits", "root": _folder()}),
    "data.load": lambda: (
        data.load,
        {
            "source": np.zeros((9, 3), np.float32),
            "root": _folder(),
            "binarize": "none",
            "validation": 2,
            "seed": 0,
            "device": "cpu",
        },
    ),
    "data.Dataset": lambda: (
        data.Dataset,
        {
            "name": "bits",
            "images": _bits(),
            "labels": torch.zeros(7, dtype=torch.int64),
            "levels": None,
            "binarization": "none",
            "context": (),
        },
    ),
    "Dataset.batches": lambda: (
        data.as_dataset(_bits()).batches,
        {"batch_size": 3, "shuffle": True, "generator": torch.Generator().manual_seed(0)},
    ),
    "Dataset.conditioned_on": lambda: (data.as_dataset(_bits()).conditioned_on, {"context": (torch.zeros(7, 3),)}),
    "evaluation.elbo_terms": _on_vae(evaluation.elbo_terms, num_particles=2, analytic_kl=False, plate="data"),
    "evaluation.active_units": _on_vae(evaluation.active_units, threshold=0.01, num_particles=1, plate="data"),
    "evaluation.ais": _on_vae(
        evaluation.ais,
        start="guide",
        num_particles=2,
        num_temperatures=2,
        num_leapfrog_steps=1,
        memory=10**6,
        plate="data",
        progress=False,
    ),
    "evaluation.amortization_gap": _on_vae(
        evaluation.amortization_gap,
        num_steps=2,
        learning_rate=0.01,
        num_particles=2,
        memory=10**6,
        plate="data",
        progress=False,
    ),
    "evaluation.auc": lambda: (evaluation.auc, {"normal": _scores(), "anomalous": _scores(), "confidence": 0.9}),
    "evaluation.condition": lambda: (
        evaluation.condition,
        {
            "program": _of_columns(),
            "given": {"a": 0.0, 2: 1.0},
            "context": (),
            "num_samples": 2,
            "columns": ["a", "b", "c"],
            "num_particles": 3,
            "memory": 10**6,
            "plate": "data",
            "progress": False,
        },
    ),
    "evaluation.impute": lambda: (
        evaluation.impute,
        {
            "program": _of_columns(),
            "x": torch.tensor([[0.0, float("nan"), 1.0]] * 7),
            "context": (),
            "num_samples": 2,
            "num_particles": 3,
            "memory": 10**6,
            "batch_size": 2,
            "plate": "data",
            "progress": False,
        },
    ),
    "evaluation.log_conditional_likelihood": lambda: (
        evaluation.log_conditional_likelihood,
        {
            "program": _of_columns(),
            "x": torch.tensor([[0.0, float("nan"), 1.0]] * 7),
            "context": (),
            "values": torch.zeros(7, 3) + torch.tensor([0.0, 0.0, 1.0]),
            "num_particles": 3,
            "memory": 10**6,
            "batch_size": 2,
            "plate": "data",
            "progress": False,
        },
    ),
    "evaluation.score": _on_vae(
        evaluation.score,
        num_samples=2,
        num_particles=3,
        memory=10**6,
        batch_size=2,
        plate="data",
        progress=False,
    ),
    "Imputation.interval": lambda: (
        evaluation.impute(
            _of_columns(), torch.full((1, 3), float("nan")), num_samples=20, num_particles=3, progress=False
        ).interval,
        {"level": 0.9},
    ),
    "Scores.excess": lambda: (_scores().excess, {"normal": _scores()}),
    "Scores.threshold": lambda: (_scores().threshold, {"false_alarm_rate": 0.2, "confidence": 0.9}),
    "Threshold.alarms": lambda: (_scores().threshold(0.2).alarms, {"scores": _scores()}),
    "Threshold.rate": lambda: (_scores().threshold(0.2).rate, {"scores": _scores(), "confidence": 0.9}),
    "evaluation.elbo_surgery": _on_vae(evaluation.elbo_surgery, num_particles=1, memory=10**6, plate="data"),
    "evaluation.log_marginal_likelihood": _on_vae(
        evaluation.log_marginal_likelihood,
        num_particles=3,
        proposal=evaluation.proposals.Refined(1, 2, 0.01, full_rank=True),
        memory=10**6,
        batch_size=2,
        plate="data",
        progress=False,
    ),
    "evaluation.posterior_samples": _on_vae(
        evaluation.posterior_samples,
        num_samples=2,
        num_particles=3,
        memory=10**6,
        batch_size=2,
        plate="data",
        progress=False,
    ),
    "evaluation.rate_distortion": _on_vae(
        evaluation.rate_distortion, num_particles=1, analytic_kl=False, memory=10**6, plate="data"
    ),
    "evaluation.rate_distortion_curve": lambda: (
        evaluation.rate_distortion_curve,
        {"programs": {1.0: _vae()}, "x": _bits(), "num_particles": 1, "analytic_kl": False, "plate": "data"},
    ),
    "evaluation.predictive_checks": _on_vae(evaluation.predictive_checks, num_particles=2, plate="data"),
    "evaluation.report": lambda: (
        evaluation.report,
        {
            "program": _vae(),
            "x": _bits().repeat(5, 1, 1, 1),
            "train": _bits().repeat(5, 1, 1, 1),
            "labels": torch.arange(35) % 2,
            "num_particles": 25,
            "max_data": 30,
            "plate": "data",
            "seed": 0,
        },
    ),
    "evaluation.importance_bounds": lambda: (
        evaluation.importance_bounds,
        {
            "program": (vae := _vae()),
            "simulation": evaluation.simulate(vae, _bits()),
            "num_particles": 2,
            "plate": "data",
        },
    ),
    "evaluation.reconstruction_error": _on_vae(evaluation.reconstruction_error, num_particles=1, plate="data"),
    "evaluation.simulate": _on_vae(evaluation.simulate),
    "evaluation.bdmc": lambda: (
        evaluation.bdmc,
        {
            "program": (vae := _vae()),
            "simulation": evaluation.simulate(vae, _bits()),
            "start": "guide",
            "num_particles": 2,
            "num_temperatures": 2,
            "num_leapfrog_steps": 1,
            "plate": "data",
            "progress": False,
        },
    ),
    "evaluation.calibration": lambda: (
        evaluation.calibration,
        {
            "program": (vae := _vae()),
            "simulation": evaluation.simulate(vae, _bits().repeat(15, 1, 1, 1)),
            "memory": 10**6,
            "plate": "data",
        },
    ),
    "evaluation.bits_per_dim": lambda: (
        evaluation.bits_per_dim,
        {"nats": torch.ones(3), "event_shape": (1, 2), "spacing": 1.0},
    ),
    "lab.compare": lambda: (
        lab.compare,
        {
            "model": (vae := _vae()).model,
            "guide": vae.guide,
            "x": _bits(),
            "estimators": {"ELBO": elbo.ELBO()},
            "draws": 100,
            "seed": 0,
        },
    ),
    "lab.race": lambda: (
        lab.race,
        {
            "program": _vae(),
            "train": _bits(),
            "validation": _bits(),
            "estimators": {"ELBO": elbo.ELBO()},
            "optimizer": partial(torch.optim.Adam, lr=1e-3),
            "steps": 1,
            "batch_size": 4,
            "num_points": 1,
            "num_particles": 2,
            "seed": 0,
            "progress": False,
        },
    ),
    "lab.rank": lambda: (
        lab.rank,
        {
            "programs": {"one": _vae(), "other": _vae()},
            "data": _bits(),
            "of": "elbo",
            "num_particles": 2,
            "batch_size": 7,
            "plate": "data",
            "error_rate": 0.01,
            "seed": 0,
            "progress": False,
        },
    ),
    "checkpoint.save": lambda: (
        checkpoint.save,
        {"path": _folder() / "other.safetensors", "module": _vae(), "metadata": {"epoch": 1}},
    ),
    "checkpoint.load": lambda: (checkpoint.load, {"path": _saved(), "module": _vae()}),
    "schedules.linear": lambda: (schedules.linear, {"start": 0.0, "end": 1.0, "epochs": 2}),
    "schedules.cosine": lambda: (schedules.cosine, {"start": 0.0, "end": 1.0, "epochs": 2}),
    "schedules.cyclical": lambda: (schedules.cyclical, {"start": 0.0, "end": 1.0, "period": 2, "rising": 0.5}),
    "plots.images": lambda: (plots.images, {"x": torch.rand(3, 1, 4, 4), "columns": 2}),
    "plots.reconstructions": lambda: (
        plots.reconstructions,
        {"x": torch.rand(3, 1, 4, 4), "reconstructed": torch.rand(3, 1, 4, 4), "columns": 2},
    ),
    **{
        f"plots.{name}": _entry(
            getattr(plots, name),
            {"context": (), "seed": 0, **options},
            program=_vae,
            data=lambda: _bits().repeat(2, 1, 1, 1),
        )
        for name, options in PICTURES.items()
    },
    **{
        f"plots.{name}": _entry(
            getattr(plots, name),
            {"context": (), "max_columns": 3, "max_data": 20, "seed": 0},
            program=_of_columns,
            data=_rows,
        )
        for name in ("marginals", "correlations")
    },
    "plots.curves": lambda: (plots.curves, {"history": _history()}),
    "plots.rate_distortion": lambda: (plots.rate_distortion, {"found": _history()}),
    "plots.weights": lambda: (
        plots.weights,
        {"found": evaluation.LogMarginalLikelihood(_ones(), _ones(), _ones(), _ones() / 2, 30)},
    ),
    "plots.calibration": lambda: (
        plots.calibration,
        {"found": evaluation.calibration(_vae(), evaluation.simulate(_vae(), _bits().repeat(15, 1, 1, 1)))},
    ),
    "plots.predictive": lambda: (
        plots.predictive,
        {"found": evaluation.predictive_checks(_vae(), _bits(), num_particles=3)},
    ),
    "plots.snr": lambda: (plots.snr, {"found": _comparison(), "group": "guide"}),
    "plots.verdicts": lambda: (
        plots.verdicts,
        {"report": evaluation.report(_vae(), _bits().repeat(5, 1, 1, 1), num_particles=25)},
    ),
    "plots.report": lambda: (
        plots.report,
        {
            "folder": _saved_program(),
            "data": _bits(),
            "labels": [0] * 7,
            "out": _folder() / "page.html",
            "verdicts": None,
            "comparison": None,
            "classes": [],
            "max_data": 7,
            "seed": 0,
        },
    ),
    "testing.check_likelihood": lambda: (
        testing.check_likelihood,
        {"likelihood": members.LIKELIHOODS["Bernoulli"](), "density": False, "seed": 0},
    ),
    "testing.check_prior": lambda: (
        testing.check_prior,
        {"prior": priors.StandardNormal(1), "density": False, "seed": 0},
    ),
    "testing.check_conditional": lambda: (
        testing.check_conditional,
        {"conditional": members.CONDITIONALS["DiagonalNormal"](), "density": False, "seed": 0},
    ),
}
