"""Functions of matrices known on a small space, against dense eigendecompositions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invdiff.lowrank import LowRank, block_lanczos, dense

examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
FUNCTIONS = {"sqrt": torch.sqrt, "gain": lambda j: j / (j + 0.3), "double": lambda j: 2 * j}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(low: LowRank) -> Tensor:
    """J as a dense matrix, (b, n, n)."""
    v = low.vectors
    other = torch.eye(v.shape[1], dtype=torch.float64) - v @ v.mT
    return v @ torch.diag_embed(low.values) @ v.mT + low.rest[..., None] * other


def of_matrix(function, j: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(j)
    return vectors @ torch.diag_embed(function(values.clamp_min(0))) @ vectors.mT


def random_lowrank(b: int, n: int, m: int, seed: int) -> LowRank:
    vectors = torch.linalg.qr(normal(b, n, m, seed=seed)).Q
    return LowRank(vectors, normal(b, m, seed=seed + 1).abs(), 0.1 + normal(b, 1, seed=seed + 2).abs())


shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 999))


@pytest.mark.parametrize("name", FUNCTIONS)
@examples
@given(shapes)
def test_functions_are_those_of_the_dense_matrix(name, shape):
    b, n, m, k, seed = shape
    low, function = random_lowrank(b, n, min(m, n), seed), FUNCTIONS[name]
    expected = of_matrix(function, matrix(low))
    vector, rows = normal(b, n, seed=seed + 3), normal(b, k, n, seed=seed + 4)
    torch.testing.assert_close(low.apply(function, vector), (expected @ vector[..., None])[..., 0], atol=1e-7, rtol=0)
    torch.testing.assert_close(low.project(function, rows), rows @ expected @ rows.mT, atol=1e-6, rtol=0)
    index = torch.tensor([b - 1, 0, 0])
    torch.testing.assert_close(matrix(low.take(index)), matrix(low)[index])


@examples
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 999))
def test_dense_is_the_whole_matrix(b, n, seed):
    root = normal(b, n, n, seed=seed)
    j = root @ root.mT
    low = dense(lambda v: torch.einsum("bij,bj->bi", j, v), normal(b, n))
    torch.testing.assert_close(matrix(low), j, atol=1e-9, rtol=0)
    vector = normal(b, n, seed=seed + 1)
    half = low.apply(torch.sqrt, low.apply(torch.sqrt, vector))
    torch.testing.assert_close(half, torch.einsum("bij,bj->bi", j, vector), atol=1e-7, rtol=0)


def test_dense_takes_the_symmetric_part_and_no_negative_eigenvalue():
    j = torch.tensor([[[1.0, 0.5], [-0.5, -2.0]]], dtype=torch.float64)
    low = dense(lambda v: torch.einsum("bij,bj->bi", j, v), torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(matrix(low), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))[None])


@examples
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 6), st.floats(0.01, 3.0), st.integers(0, 999))
def test_block_lanczos_is_exact_for_identity_and_rank_two(b, k, more, c, seed):
    n = 3 * k + 1 + more
    root = normal(b, n, min(2, n), seed=seed)
    j = c * torch.eye(n, dtype=torch.float64) + root @ root.mT
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(v.dtype)
        return torch.einsum("bij,bj->bi", j, v)

    low = block_lanczos(product, normal(b, n, k + 1, seed=seed + 1), 3)
    assert len(calls) == 3 * k + 1
    assert low.vectors.shape == (b, n, 3 * k)
    eye = torch.eye(3 * k, dtype=torch.float64).expand(b, -1, -1)
    torch.testing.assert_close(low.vectors.mT @ low.vectors, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(matrix(low), j, atol=1e-6, rtol=0)


def test_block_lanczos_is_exact_on_the_moments_of_its_block():
    """start^T J^p start for p up to 2 depth - 1, whatever J is: what Lanczos's quadrature stands for."""
    root, start = normal(1, 12, 12), normal(1, 12, 3, seed=1)
    j = root @ root.mT / 12
    low = block_lanczos(lambda v: torch.einsum("bij,bj->bi", j, v), start, 2)
    for power in range(4):
        found = low.project(lambda x, p=power: x**p, start[..., :2].mT)
        exact = start[..., :2].mT @ torch.linalg.matrix_power(j, power) @ start[..., :2]
        torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)
    beyond = low.project(lambda x: x**4, start[..., :2].mT)
    assert not torch.allclose(beyond, start[..., :2].mT @ torch.linalg.matrix_power(j, 4) @ start[..., :2], rtol=1e-3)


def test_a_member_does_not_feel_its_neighbours():
    root, block = normal(3, 8, 8), normal(3, 8, 3, seed=1)
    # The second starts in a space that J does not leave, and the third is 0.
    j = root @ root.mT * torch.tensor([1.0, 1e4, 0.0], dtype=torch.float64).reshape(3, 1, 1)
    block[1, :, :2] = torch.linalg.eigh(j[1]).eigenvectors[:, :2]
    together = matrix(block_lanczos(lambda v: torch.einsum("bij,bj->bi", j, v), block, 2))
    for k in range(3):
        alone = block_lanczos(lambda v, k=k: torch.einsum("bij,bj->bi", j[k : k + 1], v), block[k : k + 1], 2)
        if k == 1:
            continue  # directions beside an invariant space are any: only the neighbours' matter here
        torch.testing.assert_close(together[k : k + 1], matrix(alone), atol=1e-10, rtol=0)
