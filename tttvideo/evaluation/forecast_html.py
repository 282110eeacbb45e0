"""The report of an evaluation of predictions as one HTML file, in the parts that the classifier's report has."""

from typing import TYPE_CHECKING, Any

from tttvideo.evaluation.checkpoint import selection_sentence
from tttvideo.evaluation.forecaster import shown_horizons
from tttvideo.evaluation.html import page

if TYPE_CHECKING:
    from tttvideo.evaluation.forecasting import Forecasts

WORST_LISTED = 20
"""Videos whose errors are listed, at most; predictions.csv has all."""
TITLES = {
    "mse": "Squared error of a frame (sum)",
    "mae": "Absolute error of a frame (sum)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ssim_openstl": "SSIM of OpenSTL",
    "lpips": "LPIPS",
    "cosine": "Cosine of features",
}
SMALLER_IS_BETTER = ("mse", "mae", "lpips")


def render_forecasts(found: "Forecasts", figures: dict[str, bytes]) -> str:
    """The page; ``figures``: caption -> PNG."""
    metrics = found.metrics
    names = list(metrics["mean"]["model"])
    measured = [row for row in found.predictions if not row["failure"]]
    return page(
        "forecast.html.jinja",
        metrics=metrics,
        figures=figures,
        selection=selection_sentence(metrics["selection"]),
        n=len(measured),
        methods=list(metrics["mean"]),
        names=names,
        titles=TITLES,
        tables={name: _table(metrics, name) for name in names},
        samples=found.samples,
        worst=found.worst,
        worst_rows=sorted(measured, key=lambda row: -float(row["model_mse"]))[:WORST_LISTED],
    )


def _table(metrics: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Rows of a few horizons and of the mean: what it is, a value for each method, the best of them."""
    rows: list[dict[str, Any]] = [
        {"ahead": str(ahead), "values": [row[name][ahead - 1] for row in metrics["per_horizon"].values()]}
        for ahead in shown_horizons(metrics["horizon"])
    ]
    rows.append({"ahead": "mean", "values": [row[name] for row in metrics["mean"].values()]})
    for row in rows:
        known = [value for value in row["values"] if value is not None]
        row["best"] = (min if name in SMALLER_IS_BETTER else max)(known, default=None)
    return rows
