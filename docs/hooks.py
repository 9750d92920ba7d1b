"""Pages of the site that are made from other files: README.md, the examples, the API, the laboratory's results."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks" / "README.md"
GUIDES = ["solvers", "kps", "ensembles", "samplers", "large", "checkpoints", "training", "natural", "own_solver"]
# Module -> the names to show, or none for all that it exports.
API: dict[str, tuple[str, ...]] = {
    "invdiff": ("Likelihood", "Posterior", "Restoration", "restore", "sample"),
    "invdiff.operators": (),
    "invdiff.operators.checks": (),
    "invdiff.noise": (),
    "invdiff.priors": (),
    "invdiff.solvers": (),
    "invdiff.exact.check": ("Report", "check", "load", "run"),
    "invdiff.exact.problems": ("cells", "problems"),
    "invdiff.exact.problem": ("ExactPosterior", "Problem"),
    "invdiff.exact.distances": (),
    "invdiff.exact.figures": (),
    "invdiff.calibration": (),
    "invdiff.measured": (),
    "invdiff.metrics": (),
    "invdiff.plots": (),
    "invdiff.images": (),
    "invdiff.export": (),
    "invdiff.distributed": (),
    "invdiff.evidence": (),
    "invdiff.provenance": (),
    "invdiff.html": (),
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: guides in an order worth reading, others after them, so that none is left out."""
    rest = sorted({path.stem for path in (ROOT / "docs").glob("*.md")} - set(GUIDES))
    config.nav = [
        {"Home": "index.md"},
        {"Guides": [f"{name}.md" for name in [*GUIDES, *rest]]},
        {"Examples": [f"examples/{path.stem}.md" for path in programs()]},
        {"API": [{module: f"api/{module}.md"} for module in API]},
        {"Results": [*(["benchmarks.md", "quality.md"] if BENCHMARKS.exists() else []), "results.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the tables of the laboratory."""
    made = {"index.md": seen_from_docs(ROOT / "README.md"), "results.md": results()}
    if BENCHMARKS.exists():
        made["benchmarks.md"] = seen_from_docs(BENCHMARKS)
        made["quality.md"] = seen_from_docs(BENCHMARKS.with_name("quality.md"))
    made |= {f"examples/{path.stem}.md": example(path) for path in programs()}
    made |= {f"api/{module}.md": api(module) for module in API}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    for path in tables():
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def programs() -> list[Path]:
    return sorted((ROOT / "docs" / "examples").glob("*.py"))


def tables() -> list[Path]:
    return sorted((ROOT / "benchmarks" / "results").glob("*.csv"))


def seen_from_docs(page: Path) -> str:
    """A page from outside docs/, its links as seen from there; what the site does not hold stays as text."""
    places = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "benchmarks/quality.md": "quality.md"}
    places |= {f"docs/examples/{path.name}": f"examples/{path.stem}.md" for path in programs()}
    places |= {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in tables()}

    def link(found: re.Match[str]) -> str:
        text, (path, sign, part) = found[1], found[2].partition("#")
        if not path or ":" in path:
            return found[0]
        target = os.path.relpath(page.parent / path, ROOT)
        place = places.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else "")
        return f"[{text}]({place}{sign}{part})" if place else text

    return re.sub(r"\[([^]]*)\]\(([^)\s]+)\)", link, page.read_text(encoding="utf-8"))


def example(path: Path) -> str:
    """A program with its docstring as text."""
    source = path.read_text(encoding="utf-8")
    title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    code = source.split('"""', 2)[2].lstrip()
    picture = path.with_suffix(".png")
    shown = f"\n![What it draws]({picture.name})\n" if picture.exists() else ""
    return f"# {title.rstrip('.')}\n{text}\n\n[{path.name}]({path.name})\n\n```python\n{code}```\n{shown}"


def api(module: str) -> str:
    names = "".join(f"        - {name}\n" for name in API[module])
    return f"# {module}\n\n::: {module}\n" + (f"    options:\n      members:\n{names}" if names else "")


def results() -> str:
    """The list of the tracked tables, with the number of their rows."""
    lines = ["# Results", "", "The tables behind every figure on these pages, as tracked beside the code.", ""]
    for path in tables():
        rows = len(path.read_text(encoding="utf-8").splitlines()) - 1
        lines.append(f"- [{path.name}](results/{path.name}), {rows} rows")
    return "\n".join(lines) + "\n"
