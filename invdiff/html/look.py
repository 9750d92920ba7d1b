"""What of one image is on the page, and how its values become colours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..posterior import Posterior
from ..provenance import describe
from ..rim import Rim
from .pictures import Range, Window, heat_map, picture

__all__ = ["Look", "Shown"]


@dataclass(frozen=True)
class Shown:
    """One picture of the sheet.

    Args:
        key, name, note, alt: how it is called, and described.
        uri: the picture.
        shape: (H, W) of what it shows.
        frame: whether it shows the whole image, on which the window can be marked.
    """

    key: str
    name: str
    note: str
    alt: str
    uri: str
    shape: tuple[int, int]
    frame: bool = True


@dataclass(frozen=True)
class Look:
    """What there is to see of one image, and how its values become colours.

    Args:
        posterior: of one measurement, as it is shown.
        mean, truth: (C, H, W).
        measurement: (C, h, w) where it is a picture.
        maps: "std" and "error", (H, W), as far as they are known.
        scale: of the pictures.
        top: of the maps.
        rim: that was not measured, and that `top` leaves out.
    """

    posterior: Posterior
    mean: Tensor
    truth: Tensor | None
    measurement: Tensor | None
    maps: dict[str, Tensor]
    scale: Range
    top: float
    rim: Rim

    def sheet(self, *, reduce: bool) -> list[Shown]:
        """The pictures at a glance, whole."""
        size = (self.mean.shape[-2], self.mean.shape[-1])
        posterior, pixels, out = self.posterior, f"{size[1]} × {size[0]} pixels", list[Shown]()

        def add(key: str, name: str, note: str, alt: str, image: Tensor, what: str | None = None) -> None:
            shape = (image.shape[-2], image.shape[-1])
            mark = None if what is None else describe(posterior, what)
            if image.ndim == 2:
                uri = heat_map(image, self.top, reduce=reduce, mark=mark)
            else:
                uri = picture(image, self.scale, reduce=reduce, mark=mark)
            out.append(Shown(key, name, note, alt, uri, shape, shape == size))

        if self.measurement is not None:
            height, width = self.measurement.shape[-2:]
            add("measurement", "Measurement", f"{width} × {height} pixels", "The measurement.", self.measurement)
        if posterior.point:
            add("mean", "Point estimate", pixels, "The point estimate.", self.mean, "restored")
        else:
            note = f"of {posterior.usable} draw{'s' if posterior.usable > 1 else ''}, {pixels}"
            add("mean", "Mean", note, "The mean of the draws.", self.mean, "restored")
        if "std" in self.maps:
            std, label = self.maps["std"], posterior.label
            alt = f"Map of the standard deviation of the draws, {float(std.mean()):.3f} on average: {label}."
            add("std", "Standard deviation", label, alt, std, "std")
        if self.truth is not None:
            add("truth", "Truth", "known here, and not used for the draws", "The true image.", self.truth)
        return out

    def layers(self, window: Window, whole: bool) -> list[dict[str, str]]:
        """What the stage shows beside the draws: pictures of the sheet, or their windows."""
        out = []

        def add(key: str, name: str, image: Tensor) -> None:
            if whole and key != "error" and not (key == "measurement" and self.rim):
                out.append({"key": key, "name": name, "of": f"sheet-{key}"})
                return
            uri = heat_map(image, self.top) if image.ndim == 2 else picture(image, self.scale)
            out.append({"key": key, "name": name, "uri": uri})

        add("mean", "Estimate" if self.posterior.point else "Mean", window.of(self.mean))
        if "std" in self.maps:
            add("std", "Std", window.of(self.maps["std"]))
        part, y = None, self.measurement
        if y is not None:
            # In its place, with gray around it; stretched over the whole image it would not lie on what it shows.
            placed = self.rim.around(y, self.mean, (self.scale.low + self.scale.high) / 2) if self.rim else y
            part = window.measured(placed, tuple(self.mean.shape))
        if part is not None:
            add("measurement", "Measurement", part)
        if self.truth is not None:
            add("truth", "Truth", window.of(self.truth))
            add("error", "Error", window.of(self.maps["error"]))
        return out
