"""Bodies take any leading dims, contexts and image sizes, and build the head that fits."""

import itertools
import math
import re
from collections.abc import Callable, Sequence

import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Size, Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import VAE, conditionals, data, internals, likelihoods, nets, priors
from pyro_vae.checkpoint.description import build, describe
from pyro_vae.likelihoods import Likelihood
from pyro_vae.nets import MLP, Body, ConvDecoder, ConvEncoder, ConvHead, LinearHead, ResidualDecoder, ResidualEncoder
from pyro_vae.nets.residual import Block, Doubled, Halved

BODIES: dict[str, Callable[[], Body]] = {
    "MLP": lambda: MLP((2, 3), [5, 4]),
    "MLP, no hidden": lambda: MLP((2, 3), []),
    "MLP, contexts": lambda: MLP(6, [5], context_shapes=[3, (2, 2), ()]),
    "ConvEncoder": lambda: ConvEncoder((2, 7, 5), [3, 4]),
    "ConvEncoder, contexts": lambda: ConvEncoder((1, 6, 6), [3], context_shapes=[4, ()]),
    "ConvDecoder": lambda: ConvDecoder(3, (2, 7, 5), [4, 3]),
    "ConvDecoder, contexts": lambda: ConvDecoder((3, 2), (1, 6, 6), [4], context_shapes=[2, ()]),
    "ResidualEncoder": lambda: ResidualEncoder((2, 7, 5), [4, 6], blocks=2),
    "ResidualEncoder, contexts": lambda: ResidualEncoder((1, 6, 6), [5], context_shapes=[4, ()]),
    "ResidualDecoder": lambda: ResidualDecoder(3, (2, 7, 5), [6, 4], blocks=2),
    "ResidualDecoder, contexts": lambda: ResidualDecoder((3, 2), (1, 6, 6), [5], context_shapes=[2, ()]),
}


@pytest.fixture(params=BODIES.values(), ids=list(BODIES))
def body(request: pytest.FixtureRequest) -> Body:
    built = request.param()
    assert isinstance(built, Body)
    return built


def inputs(body: Body, lead: Sequence[int]) -> list[Tensor]:
    return [torch.randn((*lead, *shape)) for shape in body.input_shapes]


@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (3, 2, 4), (0,), (2, 0)], ids=str)
def test_Body_features_have_the_leading_dims_of_the_inputs(body: Body, lead: tuple[int, ...]) -> None:
    assert body(*inputs(body, lead)).shape == lead + body.feature_shape


def test_Body_leading_dims_are_independent_rows(body: Body) -> None:
    values = inputs(body, (2, 3))
    rows = [body(*(value[i, j] for value in values)) for i in range(2) for j in range(3)]
    torch.testing.assert_close(body(*values).flatten(0, 1), torch.stack(rows))


@pytest.mark.parametrize(
    "name",
    [
        "MLP, contexts",
        *(f"{kind}{coder}, contexts" for kind in ("Conv", "Residual") for coder in ("Encoder", "Decoder")),
    ],
)
def test_Body_contexts_broadcast_and_matter(name: str) -> None:
    body = BODIES[name]()
    value, *contexts = inputs(body, (4,))
    particles = torch.randn(5, *value.shape)
    out = body(particles, *contexts)
    assert out.shape == (5, 4, *body.feature_shape)
    torch.testing.assert_close(out[2], body(particles[2], *contexts))
    for i in range(len(contexts)):
        moved = [context + (i == j) for j, context in enumerate(contexts)]
        assert (body(value, *moved) - body(value, *contexts)).flatten(1).abs().amax(1).gt(1e-4).any()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8), (28, 28), (29, 17), (33, 2)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ConvEncoder_and_ConvDecoder_fit_every_image_size(size: tuple[int, int], depth: int) -> None:
    image = (2, *size)
    encoder, decoder = ConvEncoder(image, [3] * depth), ConvDecoder(4, image, [3] * depth)
    halved = tuple(-(-n // 2**depth) for n in size)
    assert encoder(torch.zeros(2, *image)).shape == (2, *encoder.feature_shape) == (2, 3, *halved)
    assert decoder(torch.zeros(2, 4)).shape == (2, *decoder.feature_shape) == (2, 3, *size)
    assert decoder.coarsest == (3, *halved)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (28, 28), (29, 17), (33, 2)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ResidualEncoder_and_ResidualDecoder_fit_every_image_size(size: tuple[int, int], depth: int) -> None:
    image = (2, *size)
    encoder, decoder = ResidualEncoder(image, [4] * depth), ResidualDecoder(4, image, [4] * depth)
    halved = tuple(-(-n // 2**depth) for n in size)
    assert encoder(torch.zeros(2, *image)).shape == (2, *encoder.feature_shape) == (2, 4, *halved)
    assert decoder(torch.zeros(2, 4)).shape == (2, *decoder.feature_shape) == (2, 4, *size)
    assert decoder.coarsest == (4, *halved)


def test_ResidualDecoder_doubles_each_pixel_and_cuts_what_is_too_much() -> None:
    (double,) = [m for m in ResidualDecoder(2, (1, 3, 4), [4]).modules() if isinstance(m, Doubled)]
    h = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert double(h)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]


@pytest.mark.parametrize("name", ["ResidualEncoder", "ResidualDecoder"])
def test_Residual_blocks_are_the_identity_at_the_start_and_learn_nonetheless(name: str) -> None:
    body = BODIES[name]()
    blocks = [m for m in body.modules() if isinstance(m, Block)]
    assert len(blocks) == 4  # two stages of two
    last = [conv for block in blocks if isinstance(conv := block.layers[-1], nn.Conv2d)]
    maps = [torch.randn(2, conv.in_channels, 3, 3) for conv in last]
    assert all(torch.equal(block(h), h) for block, h in zip(blocks, maps, strict=True))
    body(*inputs(body, (5,))).square().sum().backward()
    assert all(conv.weight.grad is not None and conv.weight.grad.abs().max() > 0 for conv in last)
    with torch.no_grad():
        for conv in last:
            conv.weight.normal_()
    assert not any(torch.equal(block(h), h) for block, h in zip(blocks, maps, strict=True))


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (15, 1), (32, 2), (48, 3), (50, 2), (53, 1), (256, 16)])
def test_Residual_norm_is_over_sixteen_channels_or_more(channels: int, groups: int) -> None:
    norms = [m for m in ResidualEncoder((1, 2, 2), [channels]).modules() if isinstance(m, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups] * 3


@pytest.mark.parametrize("name", ["ResidualEncoder", "ResidualDecoder"])
def test_Residual_bodies_keep_data_of_a_batch_apart_in_training(name: str) -> None:
    body = BODIES[name]().train()
    (value,) = inputs(body, (6,))
    together = body(value)
    torch.testing.assert_close(together[:1], body(value[:1]))
    torch.testing.assert_close(together, body.eval()(value))


def test_ResidualEncoder_tells_images_of_one_pixel_apart_at_the_end() -> None:
    features = ResidualEncoder((1, 8, 8), [8, 8, 8])(torch.randn(20, 1, 8, 8)).flatten(1)
    assert (torch.cdist(features, features) + 10 * torch.eye(20) > 1e-3).all()
    assert torch.linalg.matrix_rank(features - features.mean(0)) >= 6


def test_ConvDecoder_channels() -> None:
    decoder = ConvDecoder(4, (3, 8, 8), [7, 6, 5])
    shapes = [tuple(m.weight.shape[:2]) for m in decoder.layers if isinstance(m, nn.ConvTranspose2d)]
    assert shapes == [(7, 6), (6, 5), (5, 5)]
    assert decoder.feature_shape == (5, 8, 8)


def test_Body_activation_is_a_choice() -> None:
    for body in (
        MLP(3, [4, 4], activation=nn.Softplus),
        ConvEncoder((1, 4, 4), [2, 2], activation=nn.Softplus),
        ConvDecoder(3, (1, 4, 4), [2, 2], activation=nn.Softplus),
        ResidualEncoder((1, 4, 4), [4, 4], activation=nn.Softplus),
        ResidualDecoder(3, (1, 4, 4), [4, 4], activation=nn.Softplus),
    ):
        kinds = {type(m) for m in body.modules()}
        assert nn.Softplus in kinds
        assert not kinds & {nn.Tanh, nn.ReLU, nn.SiLU}
        assert (body(*inputs(body, (5,))) > 0).all()


# Heads


@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (0,)], ids=str)
def test_Head_makes_every_parameter(body: Body, lead: tuple[int, ...]) -> None:
    spatial = body.feature_shape[1:] if len(body.feature_shape) == 3 else (2, 2)
    shapes = {"loc": Size((2, *spatial)), "scale": Size((1, *spatial)), "weight": Size((3, *spatial))}
    parameters = body.head(shapes)(body(*inputs(body, lead)))
    assert {name: value.shape for name, value in parameters.items()} == {n: lead + s for n, s in shapes.items()}


def test_Head_makes_scalars() -> None:
    body = MLP((2, 2), [])
    parameters = body.head({"rate": Size(()), "loc": Size((2,))})(body(torch.zeros(4, 2, 2)))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {"rate": (4,), "loc": (4, 2)}


def test_ConvHead_is_made_only_where_height_and_width_stay() -> None:
    decoder, encoder, mlp = ConvDecoder(3, (1, 6, 6), [4]), ConvEncoder((1, 6, 6), [4]), MLP(3, [4])
    assert isinstance(decoder.head({"logits": Size((1, 6, 6))}), ConvHead)
    assert isinstance(ResidualDecoder(3, (1, 6, 6), [4]).head({"logits": Size((1, 6, 6))}), ConvHead)
    assert isinstance(decoder.head({"logits": Size((1, 6, 6)), "scale": Size((1,))}), LinearHead)
    assert isinstance(decoder.head({"logits": Size((1, 6, 5))}), LinearHead)
    assert isinstance(encoder.head({"loc": Size((5,)), "log_scale": Size((5,))}), LinearHead)
    assert isinstance(mlp.head({"logits": Size((1, 6, 6))}), LinearHead)


def test_ConvHead_does_not_grow_with_the_image() -> None:
    def count(side: int) -> int:
        head = ConvDecoder(3, (3, side, side), [64]).head({"parameters": Size((100, side, side))})
        return sum(p.numel() for p in head.parameters())

    assert count(4) == count(16) == 6400 + 100


@pytest.mark.parametrize("body", [MLP(3, [4]), ConvDecoder(3, (2, 4, 5), [4])], ids=["linear", "conv"])
def test_Head_set_bias_sets_one_parameter(body: Body) -> None:
    shapes = {"loc": Size((2, 4, 5)), "scale": Size((2, 4, 5))}
    head = body.head(shapes)
    nn.init.zeros_(head.layer.weight)
    before = head(body(torch.zeros(3)))
    head.set_bias("scale", torch.tensor([3.0, -1.0])[:, None, None])
    after = head(body(torch.zeros(3)))
    assert torch.equal(after["loc"], before["loc"])
    assert torch.equal(after["scale"], torch.tensor([3.0, -1.0])[:, None, None].expand(2, 4, 5))
    head.set_bias("loc", torch.tensor(0.5))
    assert head(body(torch.zeros(3)))["loc"].eq(0.5).all()
    assert head.layer.bias is not None
    assert head.layer.bias.requires_grad


def test_Head_set_bias_is_exact_per_element_in_a_linear_one_and_a_channel_mean_in_a_conv_one() -> None:
    value = torch.arange(8.0).reshape(2, 2, 2)
    for body, expected in (
        (MLP(3, [4]), value),
        (ConvDecoder(3, (1, 2, 2), [4]), value.mean((-2, -1), keepdim=True).expand(2, 2, 2)),
    ):
        head = body.head({"logits": Size((2, 2, 2))})
        nn.init.zeros_(head.layer.weight)
        head.set_bias("logits", value)
        torch.testing.assert_close(head(body(torch.zeros(3)))["logits"], expected)


# Within a VAE


def conv_vae(likelihood: type[Likelihood] = likelihoods.Bernoulli) -> VAE:
    image = (1, 5, 7)
    return VAE(
        priors.StandardNormal(2),
        likelihood(ConvDecoder(2, image, [3, 2], activation=nn.Tanh), image),
        conditionals.DiagonalNormal(ConvEncoder(image, [2, 3], activation=nn.Tanh), 2),
    )


@pytest.mark.usefixtures("global_store")
def test_ConvDecoder_serves_vectorized_particles_of_stock_pyro() -> None:
    vae = conv_vae()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    x = torch.rand(3, 1, 5, 7).round()
    loss = pyro.infer.Trace_ELBO(num_particles=4, vectorize_particles=True)
    optim = pyro.optim.Adam({"lr": 0.01})  # type: ignore[attr-defined]
    svi = pyro.infer.SVI(vae.model, vae.guide, optim, loss)
    for _ in range(2):
        svi.step(x)
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.usefixtures("global_store")
def test_ConvDecoder_of_vectorized_particles_agrees_with_looped_ones() -> None:
    vae, x = conv_vae(), torch.rand(3, 1, 5, 7).round()
    means, squared_errors = [], []
    for vectorize in (True, False):
        loss = pyro.infer.Trace_ELBO(vectorize_particles=vectorize, num_particles=8)
        values = torch.tensor([loss.loss(vae.model, vae.guide, x) for _ in range(10)])
        means.append(values.mean())
        squared_errors.append(values.var() / len(values))
    assert abs(means[0] - means[1]) < 5 * sum(squared_errors) ** 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("global_store")
def test_ResidualDecoder_and_ResidualEncoder_bound_digits_better_than_plain_convolutions_after_as_many_steps() -> None:
    train, _, test = data.load("digits")
    shape, latents, channels = train.event_shape, 10, [16, 32]
    bodies: dict[str, Callable[[], tuple[Body, Body]]] = {
        "conv": lambda: (ConvEncoder(shape, channels), ConvDecoder(latents, shape, channels[::-1])),
        "residual": lambda: (ResidualEncoder(shape, channels), ResidualDecoder(latents, shape, channels[::-1])),
    }
    bits = {}
    for name, make in bodies.items():
        torch.manual_seed(0)
        encoder, decoder = make()
        vae = VAE(
            priors.StandardNormal(latents),
            likelihoods.Binomial(decoder, shape, total_count=16),
            conditionals.DiagonalNormal(encoder, latents),
        )
        optim = pyro.optim.Adam({"lr": 1e-3})  # type: ignore[attr-defined]
        svi = pyro.infer.SVI(vae.model, vae.guide, optim, pyro.infer.Trace_ELBO())
        for (x,) in itertools.islice(train.batches(12), 100):
            svi.step(x)
        bits[name] = svi.evaluate_loss(test.tensor()) / test.tensor().numel() / math.log(2)
    assert bits["residual"] < 0.9 * bits["conv"]  # 4.9 and 6.5 bits per pixel


# Saved


def test_nets_are_recorded_under_the_name_of_the_package_whatever_file_has_them() -> None:
    """As folders say that were written when all of it was one module."""
    convolutions = {"$class": "pyro_vae.nets.ConvEncoder", "arguments": {"input_shape": [1, 4, 4], "channels": [2]}}
    scale = {name: {"$tensor": name} for name in ("mean", "deviation")}
    described = {
        "$class": "pyro_vae.nets.MLP",
        "arguments": {
            "input_shape": 2,
            "hidden": [8],
            "transform": {"$class": "pyro_vae.nets.Standardize", "arguments": scale},
        },
    }
    decoder = {
        "$class": "pyro_vae.nets.ConvDecoder",
        "arguments": {"input_shape": 2, "output_shape": [1, 4, 4], "channels": [2]},
    }
    tensors = {"mean": torch.tensor([1.0, 2.0]), "deviation": torch.tensor([3.0, 4.0])}
    body = build(described, tensors)
    assert torch.equal(body.transform(torch.tensor([4.0, 6.0])), torch.ones(2))
    for description in (convolutions, decoder, described):
        assert describe(build(description, tensors), {})["$class"] == description["$class"]


# Refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nets.as_size((3, 0)), ValueError, "Shape: expected every size at least 1; got (3, 0). Give positive"),
        (
            lambda: nets.Standardize(torch.zeros(2), torch.tensor([1.0, torch.nan])),
            ValueError,
            "Standardize: expected a finite mean and a finite deviation of at least 0; got others. Use Standardize.of",
        ),
        (lambda: nets.Standardize(torch.zeros(2), torch.tensor([1.0, -1.0])), ValueError, "Standardize: expected a"),
        (lambda: nets.Standardize(torch.tensor([torch.inf]), torch.ones(1)), ValueError, "Standardize: expected a"),
        (
            lambda: nets.StandardizeLog(torch.zeros(2)),  # type: ignore[arg-type]
            TypeError,
            "StandardizeLog: expected standardize to be a Standardize; got Tensor. Use Standardize.of(x.log()).",
        ),
        (
            lambda: MLP(3, [2], transform=nets.StandardizeLog(nets.Standardize(torch.zeros(4), torch.ones(4)))),
            ValueError,
            "MLP: expected a transform with a standardize.mean of shape (3,); got (4,).",
        ),
        (
            lambda: likelihoods.Bernoulli(MLP(3, [2]), 2, data_mean=torch.tensor([0.5, torch.nan])),
            ValueError,
            "Head: expected a finite bias for 'logits'; got 1 values that are not. Give another mean where",
        ),
        (lambda: MLP(-1, [2]), ValueError, "Shape: expected every size at least 1; got (-1,)."),
        (lambda: MLP(3, [0]), ValueError, "Shape: expected every size at least 1; got (0,)."),
        (lambda: MLP(3, [0, 2]), ValueError, "Shape: expected every size at least 1; got (0, 2)."),
        (
            lambda: ConvEncoder((28, 28), [4]),
            ValueError,
            "ConvEncoder: expected an image shape (channels, height, width); got (28, 28). Reshape the data, or use",
        ),
        (
            lambda: ConvDecoder(2, (28, 28), [4]),
            ValueError,
            "ConvDecoder: expected an image shape (channels, height, width); got (28, 28).",
        ),
        (
            lambda: ConvEncoder((1, 4, 4), []),
            ValueError,
            "ConvEncoder: expected at least one layer in channels; got none. Give for example channels=[32].",
        ),
        (lambda: ConvDecoder(2, (1, 4, 4), []), ValueError, "ConvDecoder: expected at least one layer in channels"),
        (
            lambda: ResidualEncoder((1, 4, 4), [8, 3]),
            ValueError,
            "ResidualEncoder: expected every number of channels at least 4; got 3. Give a larger number.",
        ),
        (
            lambda: ResidualDecoder(2, (1, 4, 4), [8], blocks=0),
            ValueError,
            "ResidualDecoder: expected blocks at least 1; got 0. Give a larger number.",
        ),
        (
            lambda: ResidualDecoder(2, (28, 28), [8]),
            ValueError,
            "ResidualDecoder: expected an image shape (channels, height, width); got (28, 28).",
        ),
        (lambda: ConvEncoder((1, 4, 4), [0, 3]), ValueError, "Shape: expected every size at least 1; got (0, 3)."),
        (lambda: ConvDecoder(2, (1, 4, 4), [0, 3]), ValueError, "Shape: expected every size at least 1; got (0, 3)."),
        (
            lambda: MLP(3, [2])(torch.zeros(4, 3), torch.zeros(4, 1)),
            TypeError,
            "MLP: expected 1 inputs of shapes [(3,)]; got 2. Give the context's shape as context_shapes=...",
        ),
        (
            lambda: MLP(3, [2], context_shapes=[1])(torch.zeros(4, 3)),
            TypeError,
            "MLP: expected 2 inputs of shapes [(3,), (1,)]; got 1.",
        ),
        (
            lambda: ConvEncoder((1, 4, 4), [2])(torch.zeros(3, 1, 4, 5)),
            ValueError,
            "ConvEncoder: expected an input of shape (..., 1, 4, 4); got (3, 1, 4, 5). Build the network for the shape",
        ),
        (
            lambda: MLP((1, 4, 4), [2])(torch.zeros(4, 4)),
            ValueError,
            "MLP: expected an input of shape (..., 1, 4, 4); got (4, 4).",
        ),
        (
            lambda: MLP(3, [2], context_shapes=[1])(torch.zeros(4, 3), torch.zeros(5, 1)),
            ValueError,
            "MLP: expected inputs whose leading dims broadcast; got (4,), (5,). Give one row of context per datum.",
        ),
    ],
)
def test_Body_refuses_what_does_not_fit(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_Body_of_ones_own_implements_features() -> None:
    class Doubled(Body):
        def features(self, *inputs: Tensor) -> Tensor:
            return 2 * inputs[0]

    assert torch.equal(Doubled([3], 3)(torch.ones(2, 4, 3)), torch.full((2, 4, 3), 2.0))
    with pytest.raises(NotImplementedError):
        Body([3], 3)(torch.ones(2, 3))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3), (4, 7)])
def test_Halved_is_the_mean_of_the_pixels_that_there_are(shape: tuple[int, int]) -> None:
    h = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Halved()(h), nn.AvgPool2d(2, ceil_mode=True)(h), rtol=1e-14, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_Halved_has_the_same_gradient_compiled(layout: torch.memory_format) -> None:
    """That of ``AvgPool2d(ceil_mode=True)`` is wrong by as much as it is large."""
    h = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)

    def gradient(h: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            return torch.autograd.grad(Halved()(h).square().sum(), h)

    graph = make_fx(gradient)(h)
    with torch.no_grad():
        torch.testing.assert_close(internals.compile_graph(graph, [h])(h)[0], gradient(h)[0])
