import pytest
import torch

from pyro_vae.distributions import PlanarTransform, SylvesterTransform


def transform(*batch: int) -> SylvesterTransform:
    r, s = torch.randn(2, *batch, 3, 3, dtype=torch.float64)
    for matrix in (r, s):
        matrix.diagonal(dim1=-2, dim2=-1).tanh_()
    b, reflections = torch.randn(*batch, 3, dtype=torch.float64), torch.randn(*batch, 2, 3, dtype=torch.float64)
    return SylvesterTransform(r, s, b, reflections)


def planar(*batch: int) -> PlanarTransform:
    bias, u, w = (torch.randn(*batch, n, dtype=torch.float64) for n in (1, 3, 3))
    return PlanarTransform((bias, u, w))


def test_SylvesterTransform_log_determinant_is_that_of_the_jacobian() -> None:
    t, x = transform(), torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(t, x)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, t(x)), torch.linalg.slogdet(jacobian).logabsdet)


def test_SylvesterTransform_rows_have_parameters_of_their_own() -> None:
    t, x = transform(4), torch.randn(5, 4, 3, dtype=torch.float64)
    y = t(x)
    one = SylvesterTransform(t.r[2], t.s[2], t.bias[2], t.rotation.u_unnormed[2])
    torch.testing.assert_close(y[:, 2], one(x[:, 2]))
    torch.testing.assert_close(t.log_abs_det_jacobian(x, y)[:, 2], one.log_abs_det_jacobian(x[:, 2], y[:, 2]))


@pytest.mark.parametrize("kind", ["planar", "sylvester"])
def test_SylvesterTransform_inverse(kind: str) -> None:
    t = planar(4) if kind == "planar" else transform(4)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    y = t(x)
    log_det = t.log_abs_det_jacobian(x, y)
    anew = y.detach().requires_grad_()
    inverse = t.inv(anew)
    torch.testing.assert_close(inverse, x)
    torch.testing.assert_close(t.log_abs_det_jacobian(inverse, anew), log_det)
    # its derivative is the inverse of the derivative
    back = torch.autograd.functional.jacobian(t.inv, y.detach().reshape(5, 4, 3))[0, 0, :, 0, 0]
    forth = torch.autograd.functional.jacobian(t, x.detach())[0, 0, :, 0, 0]
    torch.testing.assert_close(back @ forth, torch.eye(3, dtype=torch.float64))


def test_SylvesterTransform_inverse_has_the_gradient_of_the_parameters() -> None:
    bias, u, w = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (1, 3, 3))
    y = torch.randn(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *params: PlanarTransform(params).inv(y), (bias, u, w))
    r, s, b, reflections = (torch.randn(shape, dtype=torch.float64) / 4 for shape in ((3, 3), (3, 3), (3,), (2, 3)))
    parameters = [p.requires_grad_() for p in (r, s, b, reflections)]
    assert torch.autograd.gradcheck(lambda *params: SylvesterTransform(*params).inv(y), parameters)
