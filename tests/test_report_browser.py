"""The report in a real browser, Chromium without a window: everything that a reader can do with it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import Posterior
from invdiff.html import write_report
from tests.report_page import data_of, pixels, run

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def executable() -> str | None:
    """INVDIFF_CHROMIUM, or what the PATH holds."""
    named = os.environ.get("INVDIFF_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = executable()
    if path is None:
        pytest.skip(f"no browser: INVDIFF_CHROMIUM names none, and none of {', '.join(NAMES)} is in the PATH")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    posterior, known = run()
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, posterior, measurement=known.measurement, truth=known.truth, operator=known.operator)


class Opened:
    """A page, and what it said and asked for."""

    def __init__(self, browser, file: Path, **look) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | look))
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self._hear(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def _hear(self, text: str) -> None:
        # The tests themselves read the canvas often.
        if "willReadFrequently" not in text:
            self.said.append(text)

    def wait_for_text(self, where: str, wanted: str) -> None:
        """Until a text matches; the page's policy forbids playwright's own way of waiting for it."""
        for _ in range(200):
            if re.match(wanted, self.text(where)):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{where} reads {self.text(where)!r} and never matched {wanted!r}")

    def shown(self, canvas: str = "base") -> np.ndarray:
        """The pixels of a canvas, (H, W, 4)."""
        found = self.page.evaluate(
            "id => { const c = document.getElementById(id); return [c.height, c.width, "
            "...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }",
            canvas,
        )
        return np.array(found[2:], dtype=np.uint8).reshape(found[0], found[1], 4)

    def text(self, where: str) -> str:
        return self.page.inner_text(where)


@pytest.fixture
def opened(browser, file, request):
    one = Opened(browser, file, **getattr(request, "param", {}))
    yield one
    one.context.close()
    assert one.said == []
    assert all(url.startswith(("file:", "data:")) for url in one.asked)
    assert sum(url.startswith("file:") for url in one.asked) == 1


def test_the_slider_shows_each_draw_as_it_is(opened, file):
    uris = data_of(file)["draws"]
    np.testing.assert_array_equal(opened.shown()[..., :3], pixels(uris[0]))
    assert opened.text("#number") == "Draw 0 (1 of 24)"
    opened.page.focus("#slider")
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    np.testing.assert_array_equal(opened.shown()[..., :3], pixels(uris[3]))
    assert opened.page.get_attribute("#slider", "aria-valuetext") == "Draw 3"
    opened.page.keyboard.press("End")
    np.testing.assert_array_equal(opened.shown()[..., :3], pixels(uris[23]))
    assert opened.text("#number") == "Draw 23 (24 of 24)"


def test_space_and_the_button_play_and_stop(opened):
    page = opened.page
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-pressed") == "true"
    opened.wait_for_text("#number", r"Draw [2-9] ")
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-pressed") == "false"
    before = opened.text("#number")
    page.wait_for_timeout(500)
    assert opened.text("#number") == before
    page.click("#play")
    opened.wait_for_text("#number", f"(?!{re.escape(before)})")
    assert page.get_attribute("#play", "aria-label") == "Stop the draws"
    page.click("#layers label:has-text('Mean')")
    assert page.get_attribute("#play", "aria-pressed") == "false"


def test_every_picture_comes_on_the_stage(opened, file):
    data, text = data_of(file), file.read_text()
    names = {"mean": "Mean", "std": "Std", "measurement": "Measurement", "truth": "Truth", "error": "Error"}
    for layer in data["layers"]:
        opened.page.click(f"#layers label:has-text('{names[layer['key']]}')")
        uri = layer.get("uri") or re.findall(rf'id="{layer["of"]}" src="([^"]*)"', text)[0]
        np.testing.assert_array_equal(opened.shown()[..., :3], pixels(uri))
        assert opened.page.is_visible("#bar") == (layer["key"] in ("std", "error"))
        assert opened.page.get_attribute("#base", "aria-label") == names[layer["key"]]


def test_the_probe_says_what_the_draws_say(opened):
    """Mean, std and interval of the pixel under the mouse against those of numpy, from the draws of 8 bits."""
    page, (posterior, known) = opened.page, run()
    box = page.locator("#stage").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 7.5 / 20, box["y"] + box["height"] * 4.5 / 16)
    assert opened.text("#place") == "row 4, column 7"
    values = (posterior.draws[:, :, 4, 7].clamp(0, 1) * 255).round() / 255
    ends = torch.stack(Posterior(values, {}).interval(0.9), 1).tolist()
    rows = page.locator("#values tbody tr").all_inner_texts()
    assert len(rows) == 3
    for channel, row in enumerate(rows):
        name, mean, std, interval, truth = row.split("\t")
        assert name == ("red", "green", "blue")[channel]
        assert float(mean) == pytest.approx(float(values[:, channel].mean()), abs=6e-4)
        assert float(std) == pytest.approx(float(values[:, channel].std()), abs=6e-4)
        assert [float(end) for end in interval.split(" – ")] == pytest.approx(ends[channel], abs=6e-4)
        assert float(truth) == pytest.approx(float(known.truth[channel, 4, 7]), abs=3e-3)
    assert page.locator("#plots svg").count() == 3
    # All draws stand in the bars.
    assert page.locator("#plots svg").first.get_attribute("aria-label") == "Histogram of 24 draws, red"
    assert page.locator("#plots .truth-mark").count() == 3


def test_the_probe_follows_the_mouse_until_a_click_holds_it(opened):
    page, stage = opened.page, opened.page.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()

    def to(row: int, column: int) -> str:
        page.mouse.move(box["x"] + box["width"] * (column + 0.5) / 20, box["y"] + box["height"] * (row + 0.5) / 16)
        return opened.text("#place")

    assert to(4, 7) == "row 4, column 7"
    values = page.locator("#values tbody").inner_text()
    assert to(9, 15) == "row 9, column 15"
    assert page.locator("#values tbody").inner_text() != values
    assert page.text_content("#said") == "", "what goes by is not said aloud"
    assert not page.is_visible("#held")
    page.mouse.down()
    page.mouse.up()
    assert page.is_visible("#held")
    assert page.text_content("#said").startswith("row 9, column 15: red")
    assert to(4, 7) == "row 9, column 15"
    page.mouse.down()
    page.mouse.up()
    assert opened.text("#place") == "row 4, column 7"
    assert not page.is_visible("#held")
    assert to(5, 7) == "row 5, column 7"
    page.mouse.click(box["x"] + 5, box["y"] + 5, button="right")
    assert opened.text("#place") == "row 0, column 0"
    assert not page.is_visible("#held"), "that is for the browser's menu"
    assert to(5, 7) == "row 5, column 7"
    # Keys hold it too: a mouse that is pushed does not take it away.
    page.keyboard.press("ArrowDown")
    assert page.is_visible("#held")
    assert to(0, 0) == "row 6, column 7"


def test_a_pen_holds_it_as_a_mouse_does_and_a_finger_puts_it_down(opened):
    for kind, held in (("pen", True), ("pen", False), ("touch", False)):
        event = {"pointerType": kind, "button": 0, "clientX": 100, "clientY": 300}
        opened.page.dispatch_event("#stage", "pointerdown", event)
        assert opened.page.is_visible("#held") == held


def test_a_screen_reader_leaves_the_arrow_keys_to_the_stage_and_names_the_probe(opened):
    found = opened.page.locator("main").aria_snapshot()
    assert '- application "Picture and pixel probe"' in found
    assert re.search(r'- region "Pixel row \d+, column \d+"', found)


def test_the_space_bar_scrolls_the_record_and_held_down_does_not_flicker(opened):
    page = opened.page
    page.click("details summary")
    page.focus("pre")
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-pressed") == "false"
    page.focus("#stage")
    page.keyboard.down("Space")
    page.keyboard.down("Space")
    page.keyboard.up("Space")
    assert page.get_attribute("#play", "aria-pressed") == "true"


def test_the_keys_move_the_probe(opened):
    page = opened.page
    page.locator("#stage").focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowUp")
        page.keyboard.press("Shift+ArrowLeft")
    assert opened.text("#place") == "row 0, column 0"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert opened.text("#place") == "row 2, column 1"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    assert opened.text("#place") == "row 15, column 0"
    assert opened.page.text_content("#said").startswith("row 15, column 0: red, mean 0.")
    assert page.evaluate("document.activeElement.id") == "stage"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_wipe_lies_where_the_handle_is_dragged(opened):
    page = opened.page
    assert not page.is_visible("#handle")
    page.select_option("#against", "truth")
    assert page.is_visible("#handle")
    assert (opened.text("#left-name"), opened.text("#right-name")) == ("Draw 0", "Truth")
    assert page.evaluate("getComputedStyle(document.getElementById('over')).clipPath") == "inset(0px 0px 0px 50%)"
    box, place = page.locator("#stage").bounding_box(), opened.text("#place")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 60)
    page.mouse.up()
    assert float(page.input_value("#wipe")) == pytest.approx(25, abs=1)
    assert opened.text("#place") == place, "the probe stays"
    page.focus("#wipe")
    page.keyboard.press("End")
    assert page.evaluate("document.getElementById('over').style.clipPath") == "inset(0px 0px 0px 100%)"
    page.select_option("#against", "")
    assert not page.is_visible("#over")


def test_the_overlay_is_strong_where_the_prior_invented(opened, file):
    """Clear up to the share that is asked for, then rising, and never so strong that the picture is gone."""
    page = opened.page
    shares = pixels(data_of(file)["tints"][0]["uri"]) / 255
    assert not page.is_visible("#from-tool")
    page.select_option("#tints", "variance")
    for steps, least in ((0, 0.5), (6, 0.8), (-99, 0.0)):
        page.focus("#from")
        for _ in range(abs(steps)):
            page.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")
        strength = opened.shown("tint")[..., 3] / 255
        wanted = np.where(shares > least, 0.6 * (shares - least) / (1 - least), 0)
        np.testing.assert_allclose(strength, wanted, atol=0.003)
        found = f"{round(100 * least)} % ({round(100 * float((shares > least).mean()))} % of the pixels)"
        assert opened.text("#above") == found
        assert page.evaluate("document.getElementById('key').style.getPropertyValue('--from')") == f"{100 * least:.0f}%"
    assert page.is_visible("#key")
    page.select_option("#tints", "")
    assert not page.is_visible("#tint")
    assert not page.is_visible("#from-tool")


def luminance(opened) -> tuple[float, float]:
    """Of the page and of its words."""
    found = opened.page.evaluate(
        "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    return float(np.mean(found[0])), float(np.mean(found[1]))


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_it_is_dark_where_that_is_asked_for(opened):
    paper, ink = luminance(opened)
    assert paper < 40
    assert ink > 200


def test_it_is_light_otherwise(opened):
    paper, ink = luminance(opened)
    assert paper > 240
    assert ink < 60


@pytest.mark.parametrize(
    "opened", [{"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}], indirect=True
)
def test_a_telephone_needs_no_scrolling_sideways(opened):
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.select_option("#against", "truth")
    page.select_option("#tints", "detail")
    page.click("details summary")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#stage").bounding_box()["width"] > 300
    page.locator("#stage").tap(position={"x": 5, "y": 5})
    assert opened.text("#place") == "row 0, column 0"


@pytest.mark.parametrize("opened", [{"reduced_motion": "reduce"}], indirect=True)
def test_nothing_moves_by_itself_where_that_is_not_wanted(opened):
    page, before = opened.page, opened.text("#number")
    page.wait_for_timeout(400)
    assert opened.text("#number") == before
    assert page.evaluate("getComputedStyle(document.querySelector('.segments span')).transitionDuration") == "0s"


def test_without_its_script_pictures_and_tables_are_there(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.is_visible("#sheet-mean")
    assert page.is_visible("#sheet-std")
    assert not page.is_visible("#explore")
    assert "Residual chi²" in page.inner_text("main")
    context.close()


def test_pixels_are_whole_and_crisp(opened):
    page = opened.page
    assert page.locator("#stage").bounding_box()["width"] % 20 == 0
    assert page.evaluate("getComputedStyle(document.getElementById('base')).imageRendering") == "pixelated"


def test_every_control_and_picture_has_a_name(opened):
    unnamed = opened.page.evaluate(
        "[...document.querySelectorAll('button, input, select, img, canvas:not([hidden]), svg[role=img]')].filter(e => "
        "!(e.ariaLabel || e.alt || (e.labels && e.labels.length) || e.closest('[aria-hidden=true], .bar'))"
        ").map(e => e.outerHTML.slice(0, 80))"
    )
    assert unnamed == []


def test_a_point_estimate_has_a_picture_and_values(browser, tmp_path):
    posterior, known = run(draws=1)
    point = Posterior(posterior.draws, posterior.record, "point estimate")
    one = Opened(browser, write_report(tmp_path / "r.html", point, truth=known.truth))
    assert one.said == []
    assert not one.page.is_visible(".transport")
    assert one.page.locator("#plots svg").count() == 0
    assert one.page.locator("#layers label").all_inner_texts() == ["Estimate", "Truth", "Error"]
    rows = one.page.locator("#values tbody tr").all_inner_texts()
    assert [len(row.split("\t")) for row in rows] == [3, 3, 3]
    one.page.keyboard.press("Space")
    assert one.said == []
    one.context.close()


def test_texts_of_a_record_stay_texts(browser, tmp_path):
    evil = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    posterior, _ = run(draws=3, solver={"name": evil}, seed=evil)
    one = Opened(browser, write_report(tmp_path / "r.html", posterior, title=evil))
    assert one.page.title() == evil
    assert evil in one.page.inner_text("h1")
    assert one.said == []
    one.context.close()


def test_gray_draws_in_a_window(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("invdiff.html.report.LIMIT", 150_000)
    posterior, _ = run(draws=36, shape=(1, 64, 80))
    posterior.draws[:, :, 40:60, 50:70] += 0.3 * torch.randn(36, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    path = write_report(tmp_path / "r.html", posterior)
    data = data_of(path)
    one = Opened(browser, path)
    assert (data["height"], data["width"]) != (64, 80)
    np.testing.assert_array_equal(one.shown()[..., 0], pixels(data["draws"][0]))
    one.page.locator("#stage").click(position={"x": 2, "y": 2})
    assert one.text("#place") == f"row {data['top']}, column {data['left']}"
    assert one.page.locator("#plots svg").count() == 1
    assert one.said == []
    one.context.close()
