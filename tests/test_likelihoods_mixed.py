import copy
from functools import partial

import members
import pytest
import torch

from pyro_vae import likelihoods, nets
from pyro_vae.likelihoods.mixed import MakePart

LATENT = members.LATENT


def body(**options: object) -> nets.MLP:
    return nets.MLP(LATENT, [5], **options)  # type: ignore[arg-type]


def test_Mixed_parts_share_one_head_and_add_up() -> None:
    parts: list[tuple[int | slice, MakePart]] = [
        (slice(0, 4, 2), partial(likelihoods.Normal, scale="per_element")),
        (3, likelihoods.Poisson),
        (1, partial(likelihoods.Categorical, 3)),
    ]
    mixed = likelihoods.Mixed(body(), parts=parts)
    assert mixed.event_shape == (4,)
    assert sum(isinstance(module, torch.nn.Linear) for module in mixed.modules()) == 2  # the body's and the head's
    assert mixed.head.layer.out_features == 2 + 2 + 1 + 3
    z = torch.randn(6, LATENT)
    x = mixed(z).sample()
    raw = mixed.head(mixed.body(z))
    expected = torch.zeros(6)
    for i, (columns, make) in enumerate(parts):
        part = make(body(), 2 if i == 0 else 1)
        own = {name.split(".")[1]: value for name, value in raw.items() if name.startswith(f"{i}.")}
        expected += part.distribution(**own).log_prob(x[:, columns].reshape(6, -1))
    torch.testing.assert_close(mixed(z).log_prob(x), expected)


def test_Mixed_parts_keep_their_parameters_and_first_biases() -> None:
    mixed = likelihoods.Mixed(
        body(),
        parts=[
            (0, likelihoods.Normal),
            (slice(1, 3), partial(likelihoods.Bernoulli, data_mean=torch.tensor([0.2, 0.9]))),
        ],
    )
    assert "parts.0.raw_scale" in dict(mixed.named_parameters())
    torch.testing.assert_close(mixed.head.bias("1.logits").detach(), torch.logit(torch.tensor([0.2, 0.9])))
    copied = copy.deepcopy(mixed)
    with torch.no_grad():
        copied.get_parameter("parts.0.raw_scale").fill_(3.0)
    assert not torch.allclose(copied(torch.zeros(LATENT)).variance[0], mixed(torch.zeros(LATENT)).variance[0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([slice(0, 2), 3], r"cover every column from 0 on once; got columns \[0, 1, 3\]"),
        ([slice(0, 2), 1], r"cover every column from 0 on once; got columns \[0, 1, 1\]"),
        ([], r"cover every column from 0 on once; got columns \[\]"),
        (
            [slice(1, None)],
            r"expected columns as an int, a list or a slice with a stop, .*; got slice\(1, None, None\)",
        ),
        ([-1], r"expected columns as an int, a list or a slice with a stop, .*; got slice\(-1, 0, None\)"),
    ],
)
def test_Mixed_columns_left_out_or_given_twice_are_refused(columns: list[int | slice], message: str) -> None:
    with pytest.raises(ValueError, match=f"Mixed likelihood: .*{message}"):
        likelihoods.Mixed(body(), parts=[(column, likelihoods.Normal) for column in columns])


def test_Mixed_parts_with_a_context_are_refused() -> None:
    with pytest.raises(
        ValueError, match="expected parts without a context; got Multinomial, which takes document_length"
    ):
        likelihoods.Mixed(body(), parts=[(slice(0, 3), likelihoods.Multinomial)])
