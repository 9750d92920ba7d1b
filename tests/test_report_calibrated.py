"""The report of draws whose spread a calibrator scaled."""

from __future__ import annotations

import torch

from invdiff.conformal import Calibrator, calibrate
from invdiff.montecarlo import standard_errors
from tests.report_page import data_of, known, page, run


def test_a_calibrator_scales_the_spread_and_names_its_guarantee(tmp_path):
    posterior, contents = run()
    calibrator = Calibrator("crc", 0.9, None, 1.5, 168, 0.09, 0.16)
    text = page(tmp_path, posterior, calibrator=calibrator, **known(contents))
    assert '<strong class="badge" data-state="calibrated">calibrated spread (crc, 90 %, 168 images)' in text
    assert "On a new image of the same kind, on average at most 10 % of its values lie outside" in text
    data = data_of(text)
    assert data["scale"] == 1.5
    assert "Std and interval are those of the calibrator, 1.5 times as wide as the draws, which stay." in text
    mean, std = standard_errors(posterior).rms(False)
    assert f"{mean:.4f} of the mean, {1.5 * std:.4f} of the std" in text, "of the std that is shown"
    # The draws stay as they were sampled.
    assert data["draws"] == data_of(page(tmp_path, posterior))["draws"]


def test_an_image_of_the_calibration_is_no_test_of_it(tmp_path):
    posterior, contents = run()
    truths = contents.truth + torch.arange(10).reshape(10, 1, 1, 1) / 100
    calibrator = calibrate([posterior] * 10, truths)
    said = "The calibrator was found on this image among others"
    assert said in page(tmp_path, posterior, calibrator=calibrator, **known(contents))
    assert said in page(tmp_path, posterior, calibrator=calibrator, truth=truths[3].double())
    assert said not in page(tmp_path, posterior, calibrator=calibrator, truth=contents.truth + 0.2)
