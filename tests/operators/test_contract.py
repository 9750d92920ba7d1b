"""Every operator against the definition of what it claims to be: a dense matrix, its transpose, its SVD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invdiff.operators import Spectral, checks
from tests.operators.examples import EVERY, F64, OTHERS, SPECTRAL, Choices, contract, dense, every, inputs


@every
@contract
@given(data=st.data())
def test_the_adjoint_is_the_transpose(name: str, data: st.DataObject) -> None:
    operator = EVERY[name](Choices(data))
    checks.dot_test(operator, tol=1e-12)
    checks.dot_test(operator, tol=1e-5, dtype=torch.float32)
    m = dense(operator)
    n = m.shape[0]
    back = operator.take([0]).adjoint(torch.eye(n, dtype=F64).reshape(n, *operator.out_shape)).reshape(n, -1)
    np.testing.assert_allclose(back.numpy(), m, atol=1e-13 * max(np.abs(m).max(), 1))


@pytest.mark.parametrize("name", SPECTRAL)
@contract
@given(data=st.data())
def test_the_svd_holds_and_has_the_dense_singular_values(name: str, data: st.DataObject) -> None:
    operator = EVERY[name](Choices(data))
    assert isinstance(operator, Spectral)
    checks.svd_test(operator, tol=1e-10)
    checks.svd_test(operator, tol=2e-5, dtype=torch.float32)
    one = operator.take([0])
    image = torch.zeros(1, *operator.in_shape, dtype=F64)
    coordinates = one.vt(image)
    values = torch.broadcast_to(one.singular, coordinates.shape)
    width = operator.in_shape[-1]
    if coordinates.is_complex() and values.shape[-1] == width // 2 + 1:
        # Columns of half a spectrum that stand for their mirror images too.
        values = torch.cat([values, values[..., 1 : (width + 1) // 2]], -1)
    got = values.flatten().sort(descending=True).values.numpy()
    expected = np.linalg.svd(dense(operator), compute_uv=False)
    assert (one.singular >= 0).all()
    # Thin coordinates leave out zeros, square ones may add them.
    size = max(len(got), len(expected))
    got, expected = np.pad(got, (0, size - len(got))), np.pad(expected, (0, size - len(expected)))
    np.testing.assert_allclose(got, expected, atol=1e-12 * max(expected[0], 1))


@pytest.mark.parametrize("name", OTHERS)
@contract
@given(data=st.data())
def test_what_has_no_closed_form_does_not_claim_one(name: str, data: st.DataObject) -> None:
    operator = EVERY[name](Choices(data))
    if name != "transposed":
        assert not isinstance(operator, Spectral)


@every
@contract
@given(data=st.data())
def test_pinv_is_the_dense_pseudo_inverse(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    _, y = inputs(operator, c)
    m = dense(operator)
    values = np.linalg.svd(m, compute_uv=False)
    kept = values[values > 1e-13 * max(values[0], 1e-300)]
    condition = kept[0] / kept[-1] if len(kept) else 1.0
    if condition > 1e4:
        return
    got = operator.pinv(y)[0].flatten().numpy()
    expected = np.linalg.pinv(m, rcond=1e-12) @ y[0].flatten().numpy()
    tolerance = 1e-12 * condition if isinstance(operator, Spectral) else 1e-9 * condition**2
    np.testing.assert_allclose(got, expected, atol=tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", SPECTRAL)
@contract
@given(data=st.data(), damping=st.sampled_from([0.0, 0.3, "members"]))
def test_the_damped_step_is_the_damped_inverse_of_what_is_missed(name: str, data: st.DataObject, damping: Any) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    x, y = inputs(operator, c)
    weight = torch.linspace(0.0, 2.0, len(x), dtype=F64) if damping == "members" else damping
    expected = x + operator.damped_pinv(y - operator(x), weight)
    got = operator.damped_step(x, operator.ut(y), weight)
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * size)
    if operator.complete:
        torch.testing.assert_close(operator.v(operator.vt(x)), x, rtol=0, atol=1e-12 * max(1.0, float(x.abs().max())))


@every
@contract
@given(data=st.data())
def test_batch_equals_loop(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    x, y = inputs(operator, c)
    for i in range(len(x)):
        one = operator.take([i]) if operator.batch else operator
        torch.testing.assert_close(one(x[i : i + 1]), operator(x)[i : i + 1], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(one.adjoint(y[i : i + 1]), operator.adjoint(y)[i : i + 1], rtol=1e-12, atol=1e-13)
        if isinstance(operator, Spectral):
            torch.testing.assert_close(one.vt(x[i : i + 1]), operator.vt(x)[i : i + 1], rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*pinv stopped after")  # ill-conditioned examples are welcome here
@every
@contract
@given(data=st.data())
def test_nothing_is_written_into_the_input_nor_shared_with_it(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    x, y = inputs(operator, c)
    before_x, before_y = x.clone(), y.clone()
    calls = [(operator.forward, x), (operator.adjoint, y), (operator.pinv, y)]
    if isinstance(operator, Spectral):
        calls += [(operator.vt, x), (operator.ut, y)]
        z = operator.vt(x)
        w = operator.ut(y)
        calls += [(operator.v, z), (operator.u, w)]
        before_z, before_w = z.clone(), w.clone()
    for function_, value in calls:
        function_(value).zero_()
    assert torch.equal(x, before_x)
    assert torch.equal(y, before_y)
    if isinstance(operator, Spectral):
        assert torch.equal(z, before_z)
        assert torch.equal(w, before_w)


@every
@contract
@given(data=st.data())
def test_gradients_flow(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    x, y = inputs(operator, c)
    x.requires_grad_()
    y.requires_grad_()
    (gradient,) = torch.autograd.grad((operator(x) * y.detach()).sum(), x)
    torch.testing.assert_close(gradient, operator.adjoint(y.detach()), rtol=1e-11, atol=1e-12)
    (gradient,) = torch.autograd.grad((operator.adjoint(y) * x.detach()).sum(), y)
    torch.testing.assert_close(gradient, operator(x.detach()), rtol=1e-11, atol=1e-12)
    assert torch.equal(operator.vjp(x.detach(), y.detach()), operator.adjoint(y.detach()))


@every
@contract
@given(data=st.data())
def test_results_have_the_dtype_of_the_input(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    for dtype in (torch.float32, F64):
        x, y = inputs(operator, c, dtype)
        assert operator(x).dtype == operator.adjoint(y).dtype == dtype
        assert operator(x).shape == y.shape
        assert operator.adjoint(y).shape == x.shape
        if isinstance(operator, Spectral):
            z = operator.vt(x)
            assert z.dtype.to_real() == operator.singular_as(z).dtype == dtype
            assert operator.u(operator.singular_as(z) * z).dtype == operator.v(z).dtype == dtype
            assert operator.pinv(y).dtype == operator.damped_pinv(y, 0.1).dtype == dtype
    exact, single = operator(x), operator(x.float())
    assert float((exact - single).norm()) <= 2e-6 * float(exact.norm() + x.norm() * 0.1)


@pytest.mark.parametrize("name", SPECTRAL)
@contract
@given(data=st.data())
def test_damped_pinv_minimises_its_objective(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    assert isinstance(operator, Spectral)
    _, y = inputs(operator, c)
    m = dense(operator)
    for damping in (0.3, torch.full((len(y),), 0.3, dtype=F64)):
        got = operator.damped_pinv(y, damping)[0].flatten().numpy()
        expected = np.linalg.solve(m.T @ m + 0.3 * np.eye(m.shape[1]), m.T @ y[0].flatten().numpy())
        np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
@contract
@given(data=st.data())
def test_cuda_equals_the_cpu(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    x, y = inputs(operator, c)
    for moved in (operator, operator.to("cuda")):
        for dtype, tolerance in ((torch.float32, 1e-5), (F64, 1e-12)):
            xs, ys = x.to("cuda", dtype), y.to("cuda", dtype)
            pairs = [(moved(xs), operator(x)), (moved.adjoint(ys), operator.adjoint(y))]
            if isinstance(operator, Spectral):
                pairs += [(moved.v(moved.vt(xs)), operator.v(operator.vt(x)))]
                pairs += [(moved.damped_pinv(ys, 0.1), operator.damped_pinv(y, 0.1))]
            for got, expected in pairs:
                assert got.device.type == "cuda"
                torch.testing.assert_close(got.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@every
@contract
@given(data=st.data())
def test_take_picks_members_and_to_makes_no_needless_copy(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    assert operator.to("cpu", torch.float32) is operator
    if operator.batch is None:
        assert operator.take([0, 0]) is operator
        return
    x, _ = inputs(operator, c)
    index = [operator.batch - 1, 0, 0]
    picked = operator.take(torch.tensor(index))
    assert picked.batch == 3
    torch.testing.assert_close(picked(x[index]), operator(x)[index], rtol=1e-12, atol=1e-13)
