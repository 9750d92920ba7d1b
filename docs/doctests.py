"""Examples in docstrings (`>>>` up to the next blank line) become code on the API pages, not quotations."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Doctests(Extension):
    """Fences them before the docstrings are read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    return re.sub(r"(?m)(?:^>>> .*(?:\n(?!\s*$).*)*)", lambda found: f"```python\n{found[0]}\n```", text)
