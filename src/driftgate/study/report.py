"""A study's summary as a report for a referee: report.html, which needs nothing else, and report.md with plots/.

Both pages hold the same numbers; differences are in points (hundredths of a share).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import pyplot as plt

from ..report.by_pass import drift, gates
from ..report.costs import costs
from ..report.effects import effects
from ..report.learning import learning
from ..report.study_style import as_svg, save_png
from .formats import bare_points, count, difference, interval_90, markdown, number, p, percent, points, wrapped
from .view import captions_of, view_of

PLOTS = {
    "effects": effects,
    "costs": costs,
    "learning": learning,
    "gates": gates,
    "drift": drift,
}


def write_report(summary: dict[str, Any], out: Path) -> None:
    """Write report.html, report.md and plots/*.png into the folder `out`, from what is in summary.json.

    Sections without data are left out. Files of the same names are replaced.
    """
    drawn = _draw(summary, out / "plots")
    view = view_of(summary) | {"plots": _shown(summary, drawn)}
    (out / "report.html").write_text(_page("html", view | {"svg": drawn}), encoding="utf-8")
    (out / "report.md").write_text(_page("md", view), encoding="utf-8")


def markdown_report(summary: Mapping[str, Any], plots: Iterable[str]) -> str:
    """report.md beside plots that are drawn already; plots: their names."""
    return _page("md", view_of(summary) | {"plots": _shown(summary, plots)})


def _draw(summary: Mapping[str, Any], folder: Path) -> dict[str, Markup]:
    """name -> SVG of each plot that there is data for; the PNGs go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, plot in PLOTS.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier report that had the data
        figure = plot(summary)
        if figure is not None:
            save_png(figure, path)
            drawn[name] = Markup(as_svg(figure))
            plt.close(figure)
    return drawn


def _shown(summary: Mapping[str, Any], names: Iterable[str]) -> dict[str, dict[str, str]]:
    captions = captions_of(summary)
    return {name: {"name": name, "file": f"plots/{name}.png", "caption": captions[name]} for name in names}


def _page(kind: str, view: Mapping[str, Any]) -> str:
    return _environment(escape=kind == "html").get_template(f"study.{kind}.j2").render(view)


def _environment(escape: bool) -> Environment:
    page = Environment(loader=PackageLoader("driftgate", "report"), autoescape=escape, keep_trailing_newline=True)
    page.filters |= {
        "percent": percent,
        "points": points,
        "bare_points": bare_points,
        "difference": difference,
        "interval_90": interval_90,
        "p": p,
        "number": number,
        "count": count,
        "short_hash": lambda digest: str(digest)[:12],
        "setting": lambda value: value if isinstance(value, str) else json.dumps(value),
        "md": markdown,
        "wrapped": wrapped,
    }
    return page
