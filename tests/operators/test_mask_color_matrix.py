"""Masks and their makers, channel mixtures, dense matrices: values and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    Mask,
    Matrix,
    Spectral,
    bayer_mask,
    box_mask,
    half_mask,
    random_mask,
    text_mask,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_masks_multiply_and_their_values_are_the_singular_values() -> None:
    mask, image = random(3, 4, 5), random(2, 3, 4, 5, seed=1)
    operator = Mask(mask, (3, 4, 5))
    torch.testing.assert_close(operator(image), mask * image)
    torch.testing.assert_close(operator.singular, mask)
    for narrow in (mask[0], mask[:1]):
        torch.testing.assert_close(Mask(narrow, (3, 4, 5))(image), mask[0] * image)
    assert Mask(mask[0] > 0.5, (3, 4, 5))(image).dtype == torch.float64


def test_one_mask_per_member_stands_by_the_number_of_axes() -> None:
    masks, image = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    operator = Mask(masks, (3, 4, 5))
    assert operator.batch == 2
    torch.testing.assert_close(operator(image), masks * image)
    torch.testing.assert_close(operator.take([1, 0])(image), masks.flip(0) * image)
    with pytest.raises(ValueError, match="3 members, but its maps differ over 2"):
        operator(random(3, 3, 4, 5))
    shared = Mask(masks[:, :1], (3, 4, 5))
    torch.testing.assert_close(shared(image), masks[:, :1] * image)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.full((4, 5), 1.5), "values from 1.5 to 1.5"),
        (torch.full((4, 5), -0.1), "values from -0.1"),
        (torch.full((4, 5), float("nan")), "not finite"),
        (torch.ones(4, 4), "has the shape \\(4, 4\\)"),
        (torch.ones(2, 3, 4, 4), "has the shape \\(2, 3, 4, 4\\)"),
        (torch.ones(1, 2, 3, 4, 5), "has the shape"),
    ],
)
def test_bad_masks_are_refused(mask: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Mask(mask, (3, 4, 5))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("per_channel", [False, True])
def test_random_masks_keep_exactly_the_fraction(fraction: float, per_channel: bool) -> None:
    mask = random_mask((3, 10, 11), fraction, per_channel=per_channel, seed=0)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.sum((1, 2)).tolist() == [round(fraction * 110)] * 3
    same = torch.equal(mask[0], mask[1])
    assert same == (not per_channel or fraction in (0.0, 1.0))


def test_random_masks_follow_their_seed_and_leave_the_global_stream() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_mask((1, 8, 8), 0.5, seed=0)
    text_mask((1, 32, 32), seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, random_mask((1, 8, 8), 0.5, seed=0))
    assert not torch.equal(first, random_mask((1, 8, 8), 0.5, seed=1))
    assert not torch.equal(text_mask((1, 64, 64), seed=0), text_mask((1, 64, 64), seed=1))


def test_boxes_and_halves_hide_what_they_say() -> None:
    mask = box_mask((2, 6, 7), (1, 2, 3, 4))
    assert mask[:, 1:4, 2:6].sum() == 0
    assert mask.sum() == 2 * (42 - 12)
    assert box_mask((1, 1, 1)).sum() == 0
    for hidden, index in {
        "left": (slice(None), slice(0, 3)),
        "right": (slice(None), slice(4, 7)),
        "top": (slice(0, 3), slice(None)),
        "bottom": (slice(3, 6), slice(None)),
    }.items():
        half = half_mask((1, 6, 7), hidden)[0]
        assert half[index].sum() == 0
        assert half.sum() == 42 - half[index].numel()


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 17, 40), (3, 256, 256), (1, 5, 5), (1, 1, 1)])
def test_text_masks_are_strokes_on_every_part_of_the_image(shape: tuple[int, int, int]) -> None:
    mask = text_mask(shape)
    assert tuple(mask.shape) == shape
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mask, mask[:1].expand(shape))
    if min(shape[1:]) >= 64:
        parts = mask[0].reshape(2, shape[1] // 2, 2, shape[2] // 2).mean((1, 3))
        assert float(parts.min()) > 0.5
        assert float(parts.max()) < 0.98


def test_wide_strokes_hide_more() -> None:
    assert text_mask((1, 64, 64), letter=12, stroke=3).mean() < text_mask((1, 64, 64), letter=12, stroke=1).mean()


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_bayer_sees_each_pixel_once_and_green_twice_as_often(pattern: str) -> None:
    mask = bayer_mask((3, 6, 8), pattern)
    torch.testing.assert_close(mask.sum(0), torch.ones(6, 8))
    assert mask.sum((1, 2)).tolist() == [12.0, 24.0, 12.0]
    corner = [int(mask[:, i, j].argmax()) for i in (0, 1) for j in (0, 1)]
    assert "".join("RGB"[c] for c in corner) == pattern


def test_bad_mask_arguments_are_refused() -> None:
    for call, sentence in [
        (lambda: random_mask((3, 8, 8), 1.5), "fraction_kept=1.5, expected 0 to 1"),
        (lambda: random_mask((3, 8, 8), float("nan")), "fraction_kept=nan"),
        (lambda: box_mask((3, 8, 8), (5, 5, 4, 2)), "expected one inside the image of 8 x 8"),
        (lambda: half_mask((3, 8, 8), "north"), "hidden='north', expected one of left, right, top, bottom"),
        (lambda: text_mask((3, 8, 8), stroke=0.2), "at least 1 pixel"),
        (lambda: bayer_mask((1, 8, 8)), "1 channels, expected 3"),
        (lambda: bayer_mask((3, 8, 8), "RGBG"), "pattern='RGBG', expected RGGB"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_grayscale_weights() -> None:
    image = random(2, 3, 4, 5)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    expected = (weights[:, None, None] * image).sum(1, keepdim=True)
    torch.testing.assert_close(Grayscale((3, 4, 5))(image), expected)
    torch.testing.assert_close(
        Grayscale((3, 4, 5), [1, 2, 3])(image)[:, 0], image[:, 0] + 2 * image[:, 1] + 3 * image[:, 2]
    )
    assert float(Grayscale((3, 4, 5)).singular) == pytest.approx(float(weights.norm()))
    # Positive coordinates: the gray image itself, scaled.
    torch.testing.assert_close(Grayscale((3, 4, 5)).vt(image) * weights.norm(), expected)
    for wrong, sentence in [
        ("ntsc", "weights='ntsc'"),
        ([1.0, 2.0], "one number per channel"),
        ([0, 0, 0], "all zero"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Grayscale((3, 4, 5), wrong)
    with pytest.raises(ValueError, match="for 1 channels"):
        Grayscale((1, 4, 5))


def test_products_of_a_channel_and_a_spatial_map_are_spectral_in_either_order() -> None:
    shape, small = (3, 8, 8), (3, 4, 4)
    psf, image = random(3, 3), random(2, *shape)
    for spatial in (Blur(psf, shape), Downsample(2, shape), Downsample(2, shape, "bicubic"), Downsample(2, shape, psf)):
        product = Grayscale(spatial.out_shape) @ spatial
        assert isinstance(product, Spectral)
        torch.testing.assert_close(product(image), Grayscale(spatial.out_shape)(spatial(image)))
    mask = random(8, 8).round()
    assert isinstance(Grayscale(shape) @ Mask(mask, shape), Spectral)
    assert not isinstance(Grayscale(shape) @ Mask(random(3, 8, 8), shape), Spectral)
    assert isinstance(Blur(psf, (1, 8, 8)) @ Grayscale(shape), Spectral)
    assert isinstance(Mask(mask, (1, 8, 8)) @ Grayscale(shape), Spectral)
    assert isinstance((2 * Grayscale(shape)) @ (Blur(psf, shape) / 3), Spectral)
    assert Grayscale(small) @ Identity(small)
    assert not isinstance(Grayscale(shape) @ Blur(psf, shape, "reflect"), Spectral)


def test_a_gray_blur_with_one_psf_per_member_takes_members() -> None:
    psfs, image = random(3, 3, 3), random(3, 3, 8, 8, seed=1)
    product = Grayscale((3, 8, 8)) @ Blur(psfs, (3, 8, 8))
    assert product.batch == 3
    torch.testing.assert_close(product.take([2, 0, 0])(image[[2, 0, 0]]), product(image)[[2, 0, 0]])
    torch.testing.assert_close(product.take([1])(image[1:2]), product(image)[1:2])
    assert isinstance(product, Spectral)
    assert product.singular.shape == (3, 1, 8, 5)


def test_matrices_multiply_flattened_images() -> None:
    matrix, image = random(5, 12), random(2, 3, 2, 2, seed=1)
    operator = Matrix(matrix, in_shape=(3, 2, 2))
    torch.testing.assert_close(operator(image), image.flatten(1) @ matrix.T)
    torch.testing.assert_close(Matrix(matrix)(image.flatten(1)), image.flatten(1) @ matrix.T)
    many = random(2, 5, 12)
    torch.testing.assert_close(Matrix(many)(image.flatten(1))[1], many[1] @ image[1].flatten())
    torch.testing.assert_close(Matrix(many).pinv(operator(image))[1], torch.linalg.pinv(many[1]) @ operator(image)[1])
    for wrong, sentence in [
        ({"matrix": torch.ones(3)}, "expected \\(n_out, n_in\\)"),
        ({"matrix": torch.ones(2, 3), "in_shape": (4,)}, "expected 3 and 2 elements"),
        ({"matrix": torch.full((2, 2), float("inf"))}, "not finite"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Matrix(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_short_way_of_a_mask_of_0_and_1_gives_the_bits_of_the_long_one(dtype):
    mask = random_mask((3, 8, 8), 0.4)
    z, y = (torch.randn(2, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    A = Mask(mask, (3, 8, 8))
    # Two members have two dampings, for which there is no short way.
    long = A.damped_step(z, y, torch.tensor([0.3, 0.3], dtype=dtype))
    assert torch.equal(A.damped_step(z, y, 0.3), long)
    assert torch.equal(A.damped_step(z, y, torch.tensor([0.3], dtype=dtype)), long)
    attenuated = Mask(0.5 * mask, (3, 8, 8))
    long = attenuated.damped_step(z, y, torch.tensor([0.3, 0.3], dtype=dtype))
    assert torch.equal(attenuated.damped_step(z, y, 0.3), long)


def test_the_damping_of_a_mask_keeps_its_gradient():
    z, y = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    d = torch.tensor([1.0], requires_grad=True)
    Mask(torch.ones(2, 2), (1, 2, 2)).damped_step(z, y, d).sum().backward()
    assert d.grad is not None
    assert d.grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("mask", [torch.ones(2, 2), torch.full((2, 2), 0.5)])
def test_a_damping_that_is_no_number_is_refused_whatever_the_mask_holds(mask):
    with pytest.raises(ValueError, match="got damping inf"):
        Mask(mask, (1, 2, 2)).damped_step(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), math.inf)


def test_a_damping_too_small_for_the_precision_is_none():
    A = Mask(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (1, 2, 2))
    z, y = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert torch.equal(A.damped_step(z, y, 1e-60), A.singular.float()[None])
    assert torch.equal(A.damped_pinv(y, 1e-60), A.singular.float()[None])
