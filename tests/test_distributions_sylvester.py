import pytest
import torch

from pyro_vae.distributions import SylvesterTransform


def transform(*batch: int) -> SylvesterTransform:
    r, s = torch.randn(2, *batch, 3, 3, dtype=torch.float64)
    for matrix in (r, s):
        matrix.diagonal(dim1=-2, dim2=-1).tanh_()
    b, reflections = torch.randn(*batch, 3, dtype=torch.float64), torch.randn(*batch, 2, 3, dtype=torch.float64)
    return SylvesterTransform(r, s, b, reflections)


def test_log_determinant_is_that_of_the_jacobian() -> None:
    t, x = transform(), torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(t, x)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, t(x)), torch.linalg.slogdet(jacobian).logabsdet)


def test_rows_have_parameters_of_their_own() -> None:
    t, x = transform(4), torch.randn(5, 4, 3, dtype=torch.float64)
    y = t(x)
    one = SylvesterTransform(t.r[2], t.s[2], t.bias[2], t.rotation.u_unnormed[2])
    torch.testing.assert_close(y[:, 2], one(x[:, 2]))
    torch.testing.assert_close(t.log_abs_det_jacobian(x, y)[:, 2], one.log_abs_det_jacobian(x[:, 2], y[:, 2]))


def test_inverse_is_that_of_the_last_value_or_refused() -> None:
    t, x = transform(), torch.randn(3, dtype=torch.float64)
    y = t(x)
    assert t.inv(y) is x
    with pytest.raises(NotImplementedError):
        t.inv(y.clone())
