"""Sets of torch, of Hugging Face and AnnData, into as_dataset, fit and every function of evaluation; latents back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, StackDataset, Subset, TensorDataset

from pyro_vae import VAE, HierarchicalVAE, conditionals, data, evaluation, fit, likelihoods, nets, priors

X = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
PAIRS = TensorDataset(X, Y)


class Named(torch.utils.data.Dataset[Any]):
    """Data that are dictionaries."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> Any:
        return {name: column[i] for name, column in self.columns.items()}


def small_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 3),
        conditionals.DiagonalNormal(nets.MLP(3, [4]), 2),
    ).eval()


# Torch


@pytest.mark.parametrize(
    "source",
    [
        PAIRS,
        Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(40)),
        ConcatDataset([Subset(PAIRS, range(10)), Subset(PAIRS, range(10, 40))]),
        StackDataset(image=X, label=Y),  # type: ignore[arg-type]
        Named(x=X, y=Y),
        Named(data=X.numpy(), target=Y.tolist()),
        DataLoader(PAIRS, batch_size=7),
        DataLoader(PAIRS, batch_size=7, shuffle=True, drop_last=True),
        DataLoader(Named(image=X, label=Y), batch_size=7),
    ],
    ids=lambda source: type(source).__name__,
)
def test_as_dataset_of_every_kind_of_set_has_all_data_and_labels(source: Any) -> None:
    dataset = data.as_dataset(source)
    assert torch.equal(dataset.tensor(), X)
    assert dataset.labels is not None
    assert torch.equal(dataset.labels, Y)


def test_as_dataset_of_dictionaries_takes_the_only_entry_and_notes_others() -> None:
    assert torch.equal(data.as_dataset(Named(genes=X)).tensor(), X)
    dataset = data.as_dataset(Named(x=X, y=Y, batch=Y))
    assert dataset.note == "1 further parts of the data are left out"
    assert data.as_dataset(Named(x=X, batch=X)).note == "second parts of the data, which are no classes, are left out"


@pytest.mark.parametrize("names", [("left", "right"), ("x", "image"), ("x", "y", "label")])
def test_as_dataset_refuses_dictionaries_that_are_not_clear(names: tuple[str, ...]) -> None:
    with pytest.raises(
        TypeError, match=r"expected data named image, .*, with labels named label, .*; got .*\. Name them"
    ):
        data.as_dataset(Named(**dict.fromkeys(names, Y)))


class Flipped(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        return X[i].flip(0) if torch.rand(()) < 0.5 else X[i]


def _doubled(items: list[Any]) -> Tensor:
    return 2 * torch.stack([item[0] for item in items])


class Doubling(DataLoader[Any]):
    def __iter__(self) -> Any:
        return (2 * x for x, _ in super().__iter__())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Flipped(), "its data differ from one reading to the next, and are those of the first, at every epoch too"),
        (DataLoader(Flipped()), "its data differ from one reading to the next"),
        (DataLoader(PAIRS, collate_fn=_doubled), "its collate_fn is not applied"),
        (Doubling(PAIRS), "what Doubling does to batches is not applied"),
    ],
)
def test_as_dataset_warns_of_what_a_set_or_loader_does_that_is_not_done(source: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        data.as_dataset(source)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(X)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Stream(), TypeError, "expected a set with a length; got the stream Stream"),
        (DataLoader(Stream()), TypeError, "expected a set with a length; got the stream Stream"),
        (
            DataLoader(PAIRS, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 40, 40)),
            ValueError,
            "got one with WeightedRandomSampler, which may select or repeat",
        ),
    ],
)
def test_evaluation_and_fit_refuse_what_as_dataset_refuses(source: Any, error: type[Exception], message: str) -> None:
    for take in (lambda: evaluation.elbo_terms(small_vae(), source), lambda: fit(small_vae(), source)):
        with pytest.raises(error, match=message):
            take()


def test_fit_on_a_loader_is_fit_on_its_data() -> None:
    found = []
    for train, validation in ((X, X[:9]), (DataLoader(PAIRS, batch_size=3), Subset(PAIRS, range(9)))):
        vae = small_vae()
        history = fit(vae, train, validation, epochs=2, batch_size=8, seed=1, progress=False)
        found.append(history["validation_elbo"])
    assert found[0] == found[1]


QUIET: dict[str, Any] = {"progress": False, "num_particles": 30}
FUNCTIONS: dict[str, Callable[[VAE, Any], Any]] = {
    "active_units": evaluation.active_units,
    "ais": lambda vae, x: evaluation.ais(vae, x, num_temperatures=3, num_particles=2, progress=False),
    "amortization_gap": lambda vae, x: evaluation.amortization_gap(
        vae, x, num_steps=2, num_particles=2, progress=False
    ),
    "elbo_surgery": evaluation.elbo_surgery,
    "elbo_terms": evaluation.elbo_terms,
    "impute": lambda vae, x: evaluation.impute(vae, x, num_samples=2, **QUIET),
    "latent_means": evaluation.latent_means,
    "log_conditional_likelihood": lambda vae, x: evaluation.log_conditional_likelihood(vae, x, values=X, **QUIET),
    "log_marginal_likelihood": lambda vae, x: evaluation.log_marginal_likelihood(vae, x, **QUIET),
    "posterior_samples": lambda vae, x: evaluation.posterior_samples(vae, x, num_samples=2, **QUIET),
    "predictive_checks": lambda vae, x: evaluation.predictive_checks(vae, x, num_particles=20),
    "rate_distortion": evaluation.rate_distortion,
    "rate_distortion_curve": lambda vae, x: evaluation.rate_distortion_curve({1.0: vae}, x),
    "reconstruction_error": evaluation.reconstruction_error,
    "report": lambda vae, x: evaluation.report(vae, x, num_particles=30),
    "score": lambda vae, x: evaluation.score(vae, x, **QUIET),
    "simulate": evaluation.simulate,
}


def shown(value: Any) -> str:
    return repr(vars(value) if hasattr(value, "__dict__") else value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_evaluation_of_a_loader_is_that_of_its_data(name: str) -> None:
    found = []
    for x in (X, DataLoader(PAIRS, batch_size=7), Subset(PAIRS, range(40))):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few particles
            found.append(shown(FUNCTIONS[name](small_vae(), x)))
    assert found[0] == found[1] == found[2]


def test_evaluation_functions_of_data_are_all_in_the_table_above() -> None:
    import inspect

    every = {name: getattr(evaluation, name) for name in evaluation.__all__}
    functions = {n for n, f in every.items() if inspect.isfunction(f) and "x" in inspect.signature(f).parameters}
    assert functions == set(FUNCTIONS) | {"to_inference_data"} & functions


def test_evaluation_gives_gray_images_of_a_set_the_channel_that_a_likelihood_asks_for() -> None:
    x = torch.rand(5, 4, 4).round()
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [4]), (1, 4, 4)),
        conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [4]), 2),
    )
    means = evaluation.latent_means(vae, TensorDataset(x))["z"]  # type: ignore[arg-type]
    assert torch.equal(means, evaluation.latent_means(vae, x.unsqueeze(1))["z"])


# Hugging Face


@pytest.fixture(scope="module")
def hub() -> Any:
    return pytest.importorskip("datasets")


def test_hugging_face_images_are_taken_with_their_labels(hub: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    features = hub.Features(
        {"img": hub.Image(), "kind": hub.ClassLabel(names=["cat", "dog"]), "id": hub.Value("int64")}
    )
    images = [Image.fromarray(each) for each in pixels]
    source = hub.Dataset.from_dict({"img": images, "kind": [0, 1, 1, 0], "id": [7, 8, 9, 10]}, features=features)
    for each in (source, source.with_format("torch"), source.with_format("numpy")):
        dataset = data.as_dataset(each)
        assert np.array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
        assert dataset.levels == 255
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [0, 1, 1, 0]
        assert dataset.note == "columns beside 'img' are left out: id; labels of column 'kind'"
    assert data.as_dataset(source.select_columns(["img"])).labels is None


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_hugging_face_arrays_keep_their_scale(dtype: str, hub: Any) -> None:
    array = (np.arange(12).reshape(3, 2, 2) * 10).astype(dtype)
    features = hub.Features({"x": hub.Array2D((2, 2), dtype)})
    dataset = data.as_dataset(hub.Dataset.from_dict({"x": list(array)}, features=features))
    assert dataset.levels == (255 if dtype == "uint8" else None)
    assert np.array_equal(dataset.images.numpy(), array)
    lists = hub.Dataset.from_dict({"v": [[1.5, 2.0], [3.0, 4.0]], "label": [1, 0]})
    assert data.as_dataset(lists).tensor().tolist() == [[1.5, 2.0], [3.0, 4.0]]
    nested = hub.Dataset.from_dict({"v": [[[1], [2]], [[3], [4]]]})
    assert data.as_dataset(nested).tensor().tolist() == [[[1], [2]], [[3], [4]]]
    with pytest.raises(TypeError, match=r"expected numbers in arrays of one shape in column 'v'; got others"):
        data.as_dataset(hub.Dataset.from_dict({"v": [[1.5, 2.0], [3.0]]}))


def test_hugging_face_columns_are_a_table(hub: Any) -> None:
    columns = {"height": [1.5, None, 1.8], "town": ["A", "B", "A"], "count": [3, 0, 1], "label": [0, 1, 0]}
    source = hub.Dataset.from_dict(columns)
    dataset = data.as_dataset(source, kinds={"town": "category"})
    expected = data.as_dataset(pd.DataFrame(columns).drop(columns="label"), kinds={"town": "category"})
    assert dataset.columns == ("height", "town", "count")
    assert torch.equal(dataset.tensor().nan_to_num(-1), expected.tensor().nan_to_num(-1))
    assert dataset.table == expected.table
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 0]
    chosen = data.as_dataset(source.with_format("torch", columns=["count", "height"]))
    assert chosen.columns == ("count", "height")
    assert chosen.labels is None


def test_hugging_face_transforms_are_run_row_by_row(hub: Any) -> None:
    source = hub.Dataset.from_dict({"v": [[1.0, 2.0], [3.0, 4.0]], "label": [1, 0]})

    def double(batch: Any) -> Any:
        return {"x": [torch.tensor(v) * 2 for v in batch["v"]], "label": batch["label"]}

    dataset = data.as_dataset(source.with_transform(double))
    assert dataset.tensor().tolist() == [[2, 4], [6, 8]]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0]


def test_hugging_face_labels_that_are_held_back_are_left_out(hub: Any) -> None:
    dataset = data.as_dataset(hub.Dataset.from_dict({"v": [[1.0], [3.0]], "label": [-1, -1]}))
    assert dataset.labels is None
    assert dataset.note == "column 'label' is left out, with -1 for every label"
    with pytest.raises(ValueError, match=r"expected a class for every datum in column 'label'; got none for some"):
        data.as_dataset(hub.Dataset.from_dict({"v": [[1.0], [3.0]], "label": [1, None]}))


def test_hugging_face_refuses_what_is_not_one_set_of_data(hub: Any) -> None:
    source = hub.Dataset.from_dict({"a": [[1.0]], "b": [[2.0]]})
    with pytest.raises(
        ValueError, match=r"expected one column of images or arrays; got a, b\. Choose one: set.select_"
    ):
        data.as_dataset(source)
    with pytest.raises(TypeError, match=r"expected one set; got a DatasetDict of train, test\. Pass one of these"):
        data.as_dataset(hub.DatasetDict({"train": source, "test": source}))
    with pytest.raises(TypeError, match="expected a set with a length; got the stream IterableDataset"):
        data.as_dataset(source.to_iterable_dataset())
    with pytest.raises(ValueError, match="expected at least one datum; got none"):
        data.as_dataset(source.select([]))


def test_hugging_face_sets_are_taken_by_fit_and_evaluation(hub: Any) -> None:
    source = hub.Dataset.from_dict({"v": X.tolist()}, features=hub.Features({"v": hub.List(hub.Value("float32"))}))
    vae = small_vae()
    assert torch.equal(evaluation.latent_means(vae, source)["z"], evaluation.latent_means(vae, X)["z"])
    assert len(fit(vae, source, epochs=1, progress=False)) == 1


# AnnData

COUNTS = np.array([[0, 3, 1], [2, 0, 0], [0, 0, 5], [1, 1, 1]], np.float32)


@pytest.fixture(params=["dense", "csr", "csc", "backed dense", "backed csr", "view"])
def annotated(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    anndata = pytest.importorskip("anndata")
    kind = request.param
    x = getattr(scipy.sparse, f"{kind[-3:]}_matrix")(COUNTS) if kind[-3:] in ("csr", "csc") else COUNTS.copy()
    adata = anndata.AnnData(x, obs=pd.DataFrame(index=list("abcd")), var=pd.DataFrame(index=["g", "h", "i"]))
    if kind == "view":
        return anndata.concat({"first": adata, "second": adata}, index_unique="-")[:4]
    if not kind.startswith("backed"):
        return adata
    adata.write_h5ad(tmp_path / "counts.h5ad")
    return anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")


def test_anndata_of_every_kind_is_its_matrix(annotated: Any) -> None:
    dataset = data.as_dataset(annotated)
    assert dataset.tensor().tolist() == COUNTS.tolist()
    assert dataset.columns == ("g", "h", "i")


def test_anndata_layers_and_raw_are_taken_where_they_are_given() -> None:
    anndata = pytest.importorskip("anndata")
    adata = anndata.AnnData(
        scipy.sparse.csr_matrix(np.log1p(COUNTS)), layers={"counts": scipy.sparse.csr_matrix(COUNTS)}
    )
    adata.raw = anndata.AnnData(COUNTS)
    assert data.as_dataset(adata.layers["counts"]).tensor().tolist() == COUNTS.tolist()
    assert data.as_dataset(adata.raw).tensor().tolist() == COUNTS.tolist()
    assert "its layers are left out: counts" in data.as_dataset(adata).note
    adata.X = None
    with pytest.raises(TypeError, match=r"expected AnnData with an X; got none, and layers: counts\. Give a layer"):
        data.as_dataset(adata)


def test_write_latents_has_the_means_of_each_row(annotated: Any) -> None:
    vae = small_vae()
    x = torch.from_numpy(COUNTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AnnData's, of a view that becomes data of its own
        evaluation.write_latents(annotated, vae)
    assert np.array_equal(annotated.obsm["X_vae"], vae.encode(x).mean.detach().numpy())


def test_write_latents_of_several_latents_and_of_no_anndata() -> None:
    anndata = pytest.importorskip("anndata")
    vae = HierarchicalVAE(
        prior=priors.StandardNormal(1),
        conditionals=[conditionals.DiagonalNormal(nets.MLP(1, [4]), 2)],
        likelihood=likelihoods.Poisson(nets.MLP(2, [4]), 3),
        posteriors=[conditionals.DiagonalNormal(nets.MLP(3, [4]), 2), conditionals.DiagonalNormal(nets.MLP(2, [4]), 1)],
    )
    adata = anndata.AnnData(COUNTS)
    evaluation.write_latents(adata, vae, key="X_deep")
    assert {name: value.shape for name, value in adata.obsm.items()} == {"X_deep_z1": (4, 2), "X_deep_z2": (4, 1)}
    with pytest.raises(TypeError, match=r"write_latents: expected AnnData; got ndarray\. Use latent_means"):
        evaluation.write_latents(COUNTS, vae)


def test_latent_means_are_those_of_the_guide_in_parts_and_leave_its_mode() -> None:
    vae = small_vae().train()
    whole = evaluation.latent_means(vae, X)["z"]
    assert vae.training
    assert torch.allclose(whole, evaluation.latent_means(vae, X, batch_size=7)["z"], atol=1e-6)
    assert torch.allclose(whole, vae.eval().encode(X).mean, atol=1e-6)
    assert not whole.requires_grad


def test_latent_means_of_a_flow_are_means_of_draws() -> None:
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 3),
        conditionals.InverseAutoregressiveFlow(nets.MLP(3, [4]), 2),
    )
    with pytest.raises(ValueError, match=r"latent_means: expected several draws at site 'z'.* Use num_particles=100"):
        evaluation.latent_means(vae, X)
    means = evaluation.latent_means(vae, X, num_particles=2000)["z"]
    draws = vae.encode(X).sample((2000,))
    error = (2 * draws.var(0) / 2000).sqrt()
    assert ((means - draws.mean(0)).abs() < 5 * error).all()
