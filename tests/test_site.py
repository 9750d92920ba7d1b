"""The documentation site: built without a warning, complete, and without a request to anybody else."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parent.parent


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, doctests = _script("hooks"), _script("doctests")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    return folder


class Requests(HTMLParser):
    """What a page asks for as it opens: all but what a reader clicks on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "link" and ("rel", "canonical") in attrs:
            return
        names = ("src", "srcset", "poster", "data") + (("href",) if tag == "link" else ())
        self.asked += [value for name, value in attrs if name in names and value]


def test_a_request_is_told_from_a_link() -> None:
    parser = Requests()
    parser.feed('<link rel="stylesheet" href="https://a/b.css"><a href="https://c/d">e</a><img src="f.png">')
    assert parser.asked == ["https://a/b.css", "f.png"]


def test_no_page_asks_anybody_else(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 20
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.asked
        assert not [address for address in parser.asked if re.match(r"(https?:)?//", address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"""url\(\s*["']?(https?:)?//|@import\s+["']http""", style.read_text(encoding="utf-8")), (
            style
        )


def test_every_public_name_has_its_place(site: Path) -> None:
    for module, chosen in hooks.API.items():
        page = (site / "api" / f"{module}.html").read_text(encoding="utf-8")
        shown = importlib.import_module(module)
        objects = {name: getattr(shown, name) for name in chosen or shown.__all__}
        names = [name for name, thing in objects.items() if inspect.isclass(thing) or inspect.isfunction(thing)]
        assert names
        missing = [name for name in names if f'id="{module}.{name}"' not in page]
        assert not missing, f"{module}: {missing}"


def test_every_page_picture_program_and_table_is_there(site: Path) -> None:
    for source in (ROOT / "docs").glob("*.md"):
        assert (site / f"{source.stem}.html").is_file()
    for program in hooks.programs():
        assert (site / "examples" / program.name).read_text() == program.read_text()
        assert (site / "examples" / f"{program.stem}.html").is_file()
    assert hooks.tables()
    for table in hooks.tables():
        assert (site / "results" / table.name).read_text() == table.read_text()
    assert not list(site.rglob("conftest.py"))
    assert not list(site.rglob("hooks.py"))


def test_the_readme_is_the_first_page(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="demo.png"' in page
    assert 'href="kps.html"' in page
    assert "](docs/" not in page


def test_links_of_the_readme_are_seen_from_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("docs/examples/x.py", "benchmarks/results/y.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("[a](docs/kps.md#b) [c](benchmarks/results/y.csv) [d](LICENSE) ![e](docs/e.png) [f](#f)")
    assert hooks.seen_from_docs(page) == "[a](kps.md#b) [c](results/y.csv) d ![e](e.png) [f](#f)"
    page.write_text("[a](docs/examples/x.py) [b](https://example.org/b) [c](benchmarks/README.md)")
    assert hooks.seen_from_docs(page) == "[a](examples/x.md) [b](https://example.org/b) [c](benchmarks.md)"
    other = tmp_path / "benchmarks" / "README.md"
    other.write_text("[a](../docs/kps.md) [b](results/y.csv) [c](../README.md) [d](speed.py)")
    assert hooks.seen_from_docs(other) == "[a](kps.md) [b](results/y.csv) [c](index.md) d"


def test_examples_in_docstrings_become_code() -> None:
    text = "One sentence.\n\n>>> 1 + 1\n2\n>>> 3\n3\n\nArgs:\n    x: a number."
    expected = "One sentence.\n\n```python\n>>> 1 + 1\n2\n>>> 3\n3\n```\n\nArgs:\n    x: a number."
    assert doctests.fenced(text) == expected
    assert doctests.fenced("No example.") == "No example."
