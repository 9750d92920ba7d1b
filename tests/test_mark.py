"""The visible mark: small, readable on black and white, and nothing else of the picture is touched."""

from __future__ import annotations

import pytest
import torch

from invdiff.mark import marked
from invdiff.provenance import EDITED, GENERATED, Provenance


@pytest.mark.parametrize("source", [EDITED, GENERATED, "algorithmicallyEnhanced"])
@pytest.mark.parametrize("shape", [(3, 80, 100), (1, 128, 128), (3, 333, 500), (3, 1200, 900), (3, 100, 2000)])
def test_the_mark_is_small_readable_and_in_the_corner(shape, source):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    result = marked(image, Provenance(source=source))
    assert torch.equal(image, before)
    changed = (result != image).any(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    height, width = shape[1] - top, shape[2] - left
    assert 0 < height * width <= 0.03 * shape[1] * shape[2]
    assert top > shape[1] / 2
    assert left > shape[2] / 2
    box = result[:, top:, left:]
    # The same on any picture: white letters on black, between a tenth and a half of the box.
    assert torch.equal(box, marked(torch.ones(shape), Provenance(source=source))[:, top:, left:])
    assert box.min() == 0
    assert box.max() == 1
    assert 0.1 < (box > 0.5).float().mean() < 0.5


def test_the_words_differ():
    image = torch.zeros(3, 300, 300)
    marks = [marked(image, Provenance(source=source)) for source in (EDITED, GENERATED, "algorithmicallyEnhanced")]
    assert not any(torch.equal(a, b) for k, a in enumerate(marks) for b in marks[:k])


def test_the_dtype_stays():
    assert marked(torch.zeros(3, 100, 100, dtype=torch.float64), Provenance(source=EDITED)).dtype == torch.float64


def test_what_is_too_small_or_no_image_is_refused():
    with pytest.raises(ValueError, match="has 32 x 30 pixels: too small for a mark that can be read and covers 3 %"):
        marked(torch.zeros(3, 30, 32), Provenance(source=EDITED))
    with pytest.raises(ValueError, match=r"has the shape \(30, 32\): expected \(C, H, W\)"):
        marked(torch.zeros(30, 32), Provenance(source=EDITED))
