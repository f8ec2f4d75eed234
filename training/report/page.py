"""The page itself: HTML beside its pictures. It loads nothing from elsewhere and escapes all it is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from re4.common.files import replacing
from re4.training.report.figures import ReportFigures
from re4.training.report.pictures import DPI, PICTURES

PAGE: Final = "index.html"
_TEMPLATE: Final = "page.html.j2"


def write_page(folder: Path, figures: ReportFigures, *, title: str, config: Mapping[str, Any]) -> Path:
    """Write the pictures, then the page that shows them; give the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        with replacing(folder / name) as part:
            draw(figures).savefig(part, format="png", dpi=DPI)
    templates = Environment(
        loader=PackageLoader("re4.training.report", ""), autoescape=True, undefined=StrictUndefined
    )
    text = templates.get_template(_TEMPLATE).render(title=title, figures=figures, config=config)
    with replacing(folder / PAGE) as part:
        part.write_text(text, encoding="utf-8")
    return folder / PAGE
