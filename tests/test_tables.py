"""Tables: kinds of columns, the likelihood of all, the inputs of an encoder, and the way back to a DataFrame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.optim import Adam

import pyro_vae
from pyro_vae import VAE, conditionals, data, elbo, evaluation, fit, lab, likelihoods, nets, priors
from pyro_vae.tables import Column, Table


def people(n: int = 400, *, missing: bool = False, meters: float = 1.0) -> pd.DataFrame:
    """A table with a column of every kind and of every dtype that has one."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=n)
    frame = pd.DataFrame(
        {
            "height": meters * (1.7 + 0.08 * hidden + 0.02 * rng.normal(size=n)),
            "income": np.exp(10 + 0.5 * hidden + 0.2 * rng.normal(size=n)),
            "weight": (70 + 10 * hidden + 3 * rng.normal(size=n)).astype(np.float32),
            "children": rng.poisson(np.exp(0.3 * hidden)),
            "rooms": (1 + rng.poisson(3, n)).astype(np.int16),
            "smokes": rng.random(n) < 0.3,
            "sex": np.where(rng.random(n) < 0.5, "f", "m"),
            "eyes": pd.Categorical(rng.choice(["blue", "brown", "green"], n), categories=["green", "blue", "brown"]),
            "stage": pd.Categorical(rng.choice(["I", "II", "III"], n), categories=["I", "II", "III"], ordered=True),
            "grade": pd.array(rng.integers(1, 5, n), dtype="Int64"),
            "member": pd.array(rng.random(n) < 0.5, dtype="boolean"),
        }
    )
    if missing:
        for name in frame:
            frame[name] = frame[name].mask(pd.Series(rng.random(n) < 0.1))
    return frame


def vae(train: data.Dataset, hidden: int = 16) -> VAE:
    torch.manual_seed(0)
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Tabular.for_data(train, nets.MLP(2, [hidden])),
        posterior=conditionals.DiagonalNormal(nets.MLP.for_data(train, [hidden]), 2),
    )


# Kinds


def test_as_dataset_finds_the_kind_of_every_column() -> None:
    dataset = data.as_dataset(people(), kinds={"grade": "ordinal"})
    assert dataset.table is not None
    assert {column.name: column.kind for column in dataset.table.columns} == {
        "height": "real",
        "income": "positive",
        "weight": "real",
        "children": "count",
        "rooms": "count",
        "smokes": "binary",
        "sex": "binary",
        "eyes": "category",
        "stage": "ordinal",
        "grade": "ordinal",
        "member": "binary",
    }
    values = {column.name: column.values for column in dataset.table.columns}
    assert values["eyes"] == ("green", "blue", "brown")
    assert values["grade"] == (1, 2, 3, 4)
    assert dataset.tensor()[:, 9].tolist() == (people()["grade"].astype(float) - 1).tolist()
    assert "eyes      category  green, blue, brown        0  Categorical" in repr(dataset.table)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_as_dataset_finds_the_same_kind_in_every_unit(unit: float) -> None:
    frame = people()[["height", "income"]] * unit
    table = data.as_dataset(frame).table
    assert table is not None
    assert [column.kind for column in table.columns] == ["real", "positive"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 2, 2, 1], None, "count"),  # which are left as they are
        ([0.0, 1.0, np.nan, 0.0], None, "binary"),
        ([1.0, 3.0, np.nan, 0.0], None, "count"),
        ([-1, 2, 3, 4], None, "real"),
        ([1, 2, 2, 1], "binary", "binary"),
        ([1, 2, 2, 1], "category", "category"),
        ([1, 2, 2, 1], "real", "real"),
        (["a", "b", "a", "b"], None, "binary"),
        (["a", "b", "a", "b"], "category", "category"),
        (["a", "b", None, "b"], None, "binary"),
    ],
)
def test_kinds_are_found_or_taken(values: list[Any], kind: Any, expected: str) -> None:
    table = data.as_dataset(pd.DataFrame({"x": values}), kinds=None if kind is None else {"x": kind}).table
    assert table is not None
    assert table.columns[0].kind == expected


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1.5, 2.0, 1.0], "count", "expected whole numbers from 0 on for the kind 'count'; got values from 1 to 2"),
        ([0.0, 2.5, 1.0], "positive", "expected numbers above 0 for the kind 'positive'; got values from 0"),
        ([1, 2, 3], "binary", "expected 2 different values for the kind 'binary'; got 3"),
        (["a", "b", "a"], "ordinal", "expected values with an order for the kind 'ordinal'; got words, a, b"),
        (["a", "b", "a"], "count", "expected a kind of values without numbers; got 'count'"),
        (["ann", "bob", "eve"], None, "expected columns of numbers or categories; got 'x' of"),
        (["10", "9", "10"], None, "expected columns of numbers or categories; got 'x' of"),
        ([1, 2, 3], "words", "expected the kind of 'x' one of"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(values: list[Any], kind: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        data.as_dataset(pd.DataFrame({"x": values}), kinds=None if kind is None else {"x": kind})


def test_kinds_of_no_column_or_no_table_are_refused() -> None:
    with pytest.raises(ValueError, match="expected kinds of columns that there are; got 'age'"):
        data.as_dataset(people(), kinds={"age": "count"})
    with pytest.raises(TypeError, match="expected kinds for the columns of a pandas DataFrame; got them for a Tensor"):
        data.as_dataset(torch.ones(2, 2), kinds={"age": "count"})
    with pytest.raises(TypeError, match="expected kinds for a table; got them for 'digits'"):
        data.load("digits", kinds={"age": "count"})
    with pytest.raises(ValueError, match="expected columns of distinct names"):
        data.as_dataset(pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]))


def test_load_reads_comma_separated_values(tmp_path: Path) -> None:
    people(missing=True).to_csv(tmp_path / "people.csv", index=False)
    train, validation, test = data.load(tmp_path / "people.csv", kinds={"grade": "ordinal"})
    assert train.table is not None
    assert train.table == validation.table == test.table
    assert {column.kind for column in train.table.columns} == {
        *["real", "positive", "count", "binary", "ordinal", "category"]
    }
    (tmp_path / "wrong.csv").write_bytes(b"a,b\n1,2,3\n1,2,3,4,5\n\xff\xfe")
    with pytest.raises(
        ValueError, match=r"expected a table of comma-separated values .* Read it with pandas\.read_csv"
    ):
        data.load(tmp_path / "wrong.csv")


def test_as_dataset_reads_a_frame_by_the_table_of_another() -> None:
    train = data.as_dataset(people(), kinds={"grade": "ordinal"})
    assert train.table is not None
    further = people()[::-1].head(7)  # without some of the categories, and in another order of columns
    read = data.as_dataset(further[list(further)[::-1]], kinds=train.table)
    assert torch.equal(read.tensor(), train.tensor().flip(0)[:7])
    assert read.table is not None
    pd.testing.assert_frame_equal(
        read.table.frame(read.tensor()), further.reset_index(drop=True), check_exact=False, rtol=1e-6
    )
    with pytest.raises(ValueError, match="expected the values green, blue, brown of the table; got 'red'"):
        data.as_dataset(further.assign(eyes="red"), kinds=train.table)
    with pytest.raises(ValueError, match=r"expected the columns height, income, .* got others, or one twice: age"):
        data.as_dataset(further.assign(age=1), kinds=train.table)


def test_as_dataset_takes_the_order_of_words() -> None:
    frame = pd.DataFrame({"stage": ["low", "high", "mid", None, "low"]})
    dataset = data.as_dataset(frame, kinds={"stage": ["low", "mid", "high"]})
    assert dataset.table is not None
    assert dataset.table.columns[0].kind == "ordinal"
    assert dataset.tensor()[:, 0].nan_to_num(-1).tolist() == [0, 2, 1, -1, 0]
    with pytest.raises(ValueError, match="expected the values low, mid of the table; got 'high'"):
        data.as_dataset(frame, kinds={"stage": ["low", "mid"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,income\n" + "".join(f"{20 + i % 50},{1000 + i},{i}\n" for i in range(80)), "Length of header or names"),
        (",age\n" + "".join(f"{i},{20 + i % 50}\n" for i in range(80)), "a first column without a name"),
        ("age\n" + "".join(f"{20 + i % 40}\n" for i in range(59)) + "?\n", "expected columns of numbers or categories"),
    ],
)
def test_load_refuses_tables_that_would_be_read_as_another(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    with pytest.raises((TypeError, ValueError), match=message):
        data.load(tmp_path / "x.csv")


# Back to a DataFrame


@pytest.mark.parametrize("missing", [False, True])
def test_Table_frame_gives_the_data_back(missing: bool) -> None:
    frame = people(missing=missing)
    dataset = data.as_dataset(frame, kinds={"grade": "ordinal"})
    assert dataset.table is not None
    pd.testing.assert_frame_equal(dataset.table.frame(dataset.tensor()), frame, check_exact=False, rtol=1e-6)


def test_Table_frame_of_draws_has_the_dtypes_of_the_data() -> None:
    frame = people()
    train = data.as_dataset(frame, kinds={"grade": "ordinal"})
    assert train.table is not None
    program = vae(train)
    for draws in (program.sample(50), program.reconstruct(train.tensor()[:50], mean=False)):
        drawn = train.table.frame(draws)
        assert drawn.dtypes.to_dict() == frame.dtypes.to_dict()
        assert list(drawn) == list(frame)
        assert drawn["grade"].between(1, 4).all()
    with pytest.raises(
        ValueError, match=r"expected whole numbers in column 'children'; .*reconstruct\(x, mean=False\)"
    ):
        train.table.frame(program.reconstruct(train.tensor()))
    with pytest.raises(ValueError, match=r"expected rows \(N, 11\); got \(5, 2\)"):
        train.table.frame(torch.zeros(5, 2))


def test_Table_frame_widens_whole_numbers_that_do_not_fit() -> None:
    table = Table([Column("x", "count", "uint8")])
    assert table.frame(torch.tensor([[3.0]])).dtypes["x"] == "uint8"
    assert table.frame(torch.tensor([[300.0], [1.0]]))["x"].tolist() == [300, 1]
    assert table.frame(torch.tensor([[300.0], [torch.nan]])).dtypes["x"] == "Int64"


def test_Table_frame_rounds_whole_numbers_of_a_continuous_kind() -> None:
    frame = pd.DataFrame({"temperature": [-3, 2, 11, 5], "income": [100, 2000, 400, 30]})
    dataset = data.as_dataset(frame, kinds={"income": "positive"})
    assert dataset.table is not None
    drawn = dataset.table.frame(torch.tensor([[10.67, 99.6], [-1.2, 1e20]]))
    assert drawn["temperature"].tolist() == [11, -1]
    assert drawn.dtypes.astype(str).tolist() == ["int64", "float64"]  # which no whole numbers hold


def test_Table_frame_refuses_codes_of_nothing() -> None:
    table = Table([Column("x", "category", "str", ("a", "b"))])
    with pytest.raises(ValueError, match="expected codes 0 to 1 in column 'x'; got 0 to 2"):
        table.frame(torch.tensor([[2.0], [0.0]]))


# The likelihood


def test_Tabular_log_density_is_that_of_each_column() -> None:
    train = data.as_dataset(people(), kinds={"grade": "ordinal"})
    torch.manual_seed(0)
    likelihood = likelihoods.Tabular.for_data(train, nets.MLP(2, [8]))
    assert isinstance(likelihood, likelihoods.Tabular)
    x, z = train.tensor()[:20], torch.randn(20, 2)
    joint = likelihood(z)
    by_column = joint.elementwise_log_prob(x)
    assert torch.allclose(by_column.sum(-1), joint.log_prob(x), rtol=1e-5)
    parameters = likelihood.head(likelihood.body(z))
    column = {each.name: i for i, each in enumerate(likelihood.table.columns)}
    income = likelihood.table.columns[column["income"]]
    block = next(i for i, columns in enumerate(likelihood.columns) if columns == [column["income"]])
    loc = income.center + income.spread * parameters[f"{block}.loc"][:, 0].double()
    scale = income.spread * (1e-2 + torch.nn.functional.softplus(parameters[f"{block}.raw_scale"][:, 0].double()))
    y = x[:, column["income"]].double().log()
    by_hand = -0.5 * ((y - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi) - y
    assert torch.allclose(by_column[:, column["income"]].double(), by_hand, atol=1e-4)


def nll(frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods after training, and in natural units."""
    train = data.as_dataset(frame)
    program = vae(train)
    fit(program, train, epochs=3, seed=0, progress=False)
    torch.manual_seed(0)
    log_p = evaluation.log_marginal_likelihood(program, train.tensor(), num_particles=50, progress=False).value
    likelihood: Any = program.likelihood
    return -log_p, -log_p - likelihood.table.log_unit(train.tensor())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_Tabular_meters_and_millimeters_are_the_same_figure_in_natural_units() -> None:
    """In their own units the densities differ by the Jacobian, log 1000 for each datum of each column."""
    frame = people()[["height", "income", "children", "eyes"]]
    (meters, natural), (millimeters, also) = (
        nll(frame),
        nll(frame.assign(height=frame.height * 1000, income=frame.income / 100)),
    )
    assert torch.allclose(natural.mean(), also.mean(), rtol=0, atol=1e-4)
    assert float((millimeters - meters).mean()) == pytest.approx(math.log(1000) - math.log(100), abs=1e-4)


def test_Tabular_refuses_columns_that_never_vary_and_data_that_are_no_table() -> None:
    frame = people(50)
    for constant in (1.5, pd.Categorical(["one"] * 50)):
        with pytest.raises(ValueError, match="expected columns that vary; got 'same', which never does"):
            likelihoods.Tabular.for_data(data.as_dataset(frame.assign(same=constant)), nets.MLP(2, [8]))
    for make in (lambda x: likelihoods.Tabular.for_data(x, nets.MLP(2, [8])), lambda x: nets.MLP.for_data(x, [8])):
        with pytest.raises(TypeError, match="expected a Dataset of a pandas DataFrame; got Dataset without a table"):
            make(data.as_dataset(torch.ones(3, 3)))


def test_Ordinal_levels_are_equally_likely_at_the_start_and_odds_are_proportional() -> None:
    ordinal = likelihoods.Ordinal(4, nets.MLP(2, [8]), 1)
    levels = torch.arange(4.0)[:, None]
    at_zero = ordinal.distribution(location=torch.zeros(4, 1)).log_prob(levels).exp()
    assert torch.allclose(at_zero, torch.full((4,), 0.25), atol=1e-3)
    odds = []
    for location in (0.0, 1.5):
        p = ordinal.distribution(location=torch.full((4, 1), location)).log_prob(levels).exp().cumsum(0)[:3]
        odds.append(torch.logit(p.double()))
    assert torch.allclose(odds[0] - odds[1], torch.tensor(1.5, dtype=torch.double), atol=1e-5)
    for location in (-80.0, 80.0):
        p = ordinal.distribution(location=torch.full((4, 1), location))
        assert torch.isfinite(p.log_prob(levels)).all()


def test_program_of_a_table_refuses_data_of_another() -> None:
    train = data.as_dataset(people())
    program = vae(train)
    other = people().assign(eyes=pd.Categorical(people()["eyes"].astype(str)))
    for frame in (other, people()[list(people())[::-1]]):
        with pytest.raises(ValueError, match="expected the columns that the program was built for, column"):
            fit(program, frame, epochs=1, progress=False)
        with pytest.raises(ValueError, match="expected the columns that the program was built for, column"):
            lab.rank({"one": program, "other": vae(train)}, frame, num_particles=2, progress=False)
        with pytest.raises(ValueError, match="expected the columns that the program was built for, column"):
            lab.race(
                program,
                data.as_dataset(frame),
                data.as_dataset(frame),
                [elbo.ELBO()],
                optimizer=Adam,
                steps=5,
                progress=False,
            )
        with pytest.raises(ValueError, match="expected the columns that the program was built for, column"):
            evaluation.elbo_terms(program, data.as_dataset(frame))  # type: ignore[arg-type]
    again = data.as_dataset(other, kinds=train.table)
    torch.manual_seed(0)
    expected = evaluation.elbo_terms(program, train.tensor()).elbo
    torch.manual_seed(0)
    assert torch.equal(evaluation.elbo_terms(program, again).elbo, expected)  # type: ignore[arg-type]


def test_load_reads_lines_that_end_with_a_comma(tmp_path: Path) -> None:
    lines = ["age,income", *(f"{20 + i % 50},{1000 + i}," for i in range(80))]
    (tmp_path / "x.csv").write_text("\n".join(lines), encoding="utf-8")
    train = data.load(tmp_path / "x.csv").train
    assert train.columns == ("age", "income")
    assert bool(((train.tensor()[:, 0] < 70) & (train.tensor()[:, 1] >= 1000)).all())


@pytest.mark.filterwarnings("ignore:impute")  # of a guide that is not trained
def test_condition_takes_categories_by_their_value() -> None:
    train = data.as_dataset(people(missing=True))
    program = vae(train)
    given = {"eyes": "brown", "smokes": True, "height": 1.8}
    result = evaluation.condition(program, given, num_samples=5, num_particles=200, progress=False)
    frame = program.likelihood.table.frame(result.samples[:, 0])  # type: ignore[operator, union-attr]
    assert set(frame["eyes"]) == {"brown"}
    assert set(frame["smokes"]) == {True}
    with pytest.raises(ValueError, match="expected one of 'green', 'blue', 'brown' for 'eyes'; got 'red'"):
        evaluation.condition(program, {"eyes": "red"}, progress=False)


@pytest.mark.slow
def test_program_of_a_table_compiles() -> None:
    train = data.as_dataset(people(missing=True))
    losses = []
    for compile in (False, True):
        history = fit(vae(train), train, epochs=2, batch_size=100, seed=0, compile=compile, progress=False)
        losses.append(history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_Tabular_dispersion_begins_near_that_of_the_data() -> None:
    counts = pd.DataFrame({"narrow": np.random.default_rng(0).normal(100, 14, 500).round().astype(int)})
    likelihood = likelihoods.Tabular.for_data(data.as_dataset(counts), nets.MLP(2, [8]))
    torch.manual_seed(0)
    draws = likelihood(torch.zeros(20000, 2)).sample()
    assert float(draws.mean()) == pytest.approx(100, rel=0.3)
    assert float(draws.std()) == pytest.approx(14, rel=0.3)


# The encoder


@pytest.mark.parametrize("missing", [False, True])
def test_MLP_for_data_standardizes_and_encodes(missing: bool) -> None:
    train = data.as_dataset(people(missing=missing))
    body = nets.MLP.for_data(train, [8])
    assert body.transform is not None
    seen = body.transform(train.tensor())
    assert seen.shape == (400, 13)  # one of three categories takes three
    assert not bool(seen.isnan().any())
    observed = ~train.tensor().isnan()
    for place in (0, 1, 2, 3):
        column = seen[:, place][observed[:, place]]
        assert float(column.mean()) == pytest.approx(0, abs=1e-3)
        assert float(column.std(correction=0)) == pytest.approx(1, abs=1e-3)
    eyes = seen[:, 7:10]
    assert torch.equal(eyes.sum(-1), observed[:, 7].float())
    assert torch.equal(eyes.argmax(-1)[observed[:, 7]].float(), train.tensor()[:, 7][observed[:, 7]])
    assert body.masked == missing
    assert body(train.tensor()).shape == (400, 8)
    assert body(train.tensor()[None]).shape == (1, 400, 8)


def test_program_of_a_table_trains_is_kept_and_gives_frames_back(tmp_path: Path) -> None:
    train = data.as_dataset(people(missing=True))
    program = vae(train)
    history = fit(program, train, epochs=8, batch_size=50, seed=0, progress=False, folder=tmp_path / "run")
    assert history.epochs[-1]["train_elbo"] > history.epochs[0]["train_elbo"] + 0.5
    loaded = pyro_vae.load(tmp_path / "run")
    z = torch.randn(5, 2)
    assert torch.equal(loaded.decode(z).mean, program.eval().decode(z).mean)
    assert torch.equal(loaded.encode(train.tensor()).mean, program.encode(train.tensor()).mean)
    frame = loaded.likelihood.table.frame(loaded.sample(5))
    assert list(frame) == list(people())
