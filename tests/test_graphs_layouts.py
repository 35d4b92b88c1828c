from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import SVI, VAE, conditionals, elbo, likelihoods, nets, priors
from pyro_vae.compilation.step import laid_out_as
from pyro_vae.graphs.layouts import convolution

CHANNELS_LAST = torch.channels_last


def test_convolution_is_recorded_once_with_channels_last_and_computes_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 3, 2, 1, 1), nn.ReLU()).double()
    parameters, x = list(net.parameters()), torch.randn(4, 2, 6, 6, dtype=torch.float64)

    def gradients(x: Tensor) -> list[Tensor]:
        out = net(x)
        return [out, *torch.autograd.grad(out.square().sum(), parameters)]

    graph = make_fx(gradients, {torch.ops.aten.convolution.default: convolution})(x)
    for one, other in zip(graph(x), gradients(x), strict=True):
        torch.testing.assert_close(one, other)
    maps = [node.meta["val"] for node in graph.graph.nodes if node.target is torch.ops.aten.convolution.default]
    assert [each.is_contiguous(memory_format=CHANNELS_LAST) for each in maps] == [True, True]
    copies = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)
    assert len(copies) == 1  # of the image; the layout of the other maps follows


def test_laid_out_as_keeps_the_numbers_and_takes_the_order_of_the_parameter() -> None:
    parameter, gradient = torch.zeros(3, 2, 3, 3), torch.randn(3, 2, 3, 3)
    for given in (gradient, gradient.contiguous(memory_format=CHANNELS_LAST), gradient[:1, :1].expand(3, 2, 3, 3)):
        result = laid_out_as(given, parameter)
        assert result.stride() == parameter.stride()
        assert torch.equal(result, given)
    turned = parameter.contiguous(memory_format=CHANNELS_LAST)
    assert laid_out_as(gradient, turned).stride() == turned.stride()


class Padded(nets.Body):
    def __init__(self) -> None:
        super().__init__([(1, 8, 8)], (3, 4, 4))
        self.first = nn.Conv2d(1, 3, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(3, 3, 3, 2, padding=1, padding_mode="replicate")

    def features(self, *inputs: Tensor) -> Tensor:
        return self.second(self.first(*inputs).relu()).relu()


@pytest.mark.slow
def test_convolutions_train_the_same_compiled() -> None:
    """With fused Adam, which reads parameters and gradients in their order in memory."""
    trained = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = VAE(
            priors.StandardNormal(2),
            likelihoods.Bernoulli(nets.ConvDecoder(2, (1, 8, 8), [4, 3]), (1, 8, 8)),
            conditionals.DiagonalNormal(Padded(), 2),
        )
        x = torch.rand(4, 1, 8, 8).round()
        optimizer = partial(torch.optim.Adam, lr=1e-2, fused=True)
        svi = SVI(vae.model, vae.guide, optimizer, elbo.ELBO(), compile=compile)
        for _ in range(6):
            svi.step(x)
        assert svi.compiler.num_graphs == compile
        trained.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-3, atol=1e-4)
