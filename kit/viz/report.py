"""One self-contained HTML page from a run: scores, figures, data quality, parameters, versions. No network.

python -m kit.viz.report outputs/demo
"""

from __future__ import annotations

import base64
import datetime
import sys
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from kit.base import metrics
from kit.base.errors import InputError
from kit.base.files import read_json, write_atomic
from kit.base.paths import resolve
from kit.demo import make
from kit.evaluation.table_one import limit_warning
from kit.run.directory import Run
from kit.run.marks import made_otherwise
from kit.run.predictions import FUSED
from kit.viz import tables
from kit.viz.explore.page import grid
from kit.viz.residuals import extremes

GALLERY = {"over": "Predicted too high", "under": "Predicted too low", "median": "As wrong as half of the posts"}
CARDS = 6  # posts of each
TEMPLATE = Path(__file__).with_name("report.html.j2")
STUDIES = {  # table -> title and columns
    "oversampling": ("More weight for the tail", [
        "variant", "src", "src_sd", "mae", "mae_sd", "src_tail", "mae_tail", "bias", "bias_tail", "n", "n_tail"]),
    "selection": ("Fewer training posts", [
        "ratio", "side", "scope", "n_taught", "src", "src_sd", "mae", "mae_sd", "seconds", "seeds"]),
}  # fmt: skip


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into the run directory and return its path.

    Raises:
        InputError: there is no run.
    """
    run = Run.open(run_dir)
    if not (run.dir / "release.json").is_file():
        raise InputError(f"{run.dir} holds no finished 01_eda, so there is nothing to report")
    facts, steps = read_json(run.dir / "release.json"), _steps(run)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["table"] = _html_table
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.dir.name, facts=facts, now=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        has_submission=(run.dir / "submission.csv").is_file(), cards=_cards(run, facts), fusion=_fusion(run),
        left_out=[read_json(path) for path in sorted((run.dir / "done").glob("*.left_out.json"))],
        ceiling=_ceiling(run, facts), table_one=_table_one(run), studies=_studies(run), quality=_read(run, "quality"),
        shared=_shared(run), gallery=_gallery(run), explained=_explained(run),
        pictures={path.stem: base64.b64encode(path.read_bytes()).decode() for path in run.dir.glob("figures/*.png")},
        steps=steps, versions=_versions(steps),
    )  # fmt: skip
    path = run.dir / "report.html"
    write_atomic(path, page)
    return path


def _cards(run: Run, facts: dict) -> list[tuple[str, str]]:
    """The first numbers of the page, each with what it is."""
    blend = _read(run, "blend_scores")
    cards = [(f"{facts['n_train']:,}", "train posts"), (f"{facts['n_test']:,}", "test posts")]
    if blend is not None:
        blend = blend[blend["scheme"] == blend["scheme"].iloc[0]]
        for metric, name in (("src", "SRC"), ("mae", "MAE")):
            mean, sd = metrics.spread(blend[metric])
            cards.append((f"{mean:.4f}", f"{name} of the fusion, ± {sd:.4f} over folds"))
    return cards


def _fusion(run: Run) -> dict | None:
    """The fusion under every fold scheme, the ways of fusion that were tried, and how sure it is."""
    scores, tried = _read(run, "blend_scores"), _read(run, "fusion")
    if scores is None:
        return None
    rows = [
        {"folds": f"{len(part)} by {scheme}", "SRC": tables.spread(*metrics.spread(part["src"])),
         "MAE": tables.spread(*metrics.spread(part["mae"])), "n": part["n"].sum()}
        for scheme, part in scores.groupby("scheme", sort=False)
    ]  # fmt: skip
    if tried is not None:
        spreads = {m.upper(): list(map(tables.spread, tried[m], tried[f"{m}_sd"])) for m in ("src", "mae")}
        tried = tried[["fusion"]].assign(**spreads, **{"models used": tried["models"]})
    schemes, coverage = _read(run, "schemes"), _read(run, "coverage")
    decides = None if schemes is None else schemes[schemes["decides"]].iloc[0]
    ranges = None if coverage is None or coverage.empty else tables.coverage_as_text(coverage)
    return {"scores": pd.DataFrame(rows), "tried": tried, "decides": decides, "ranges": ranges}


def _table_one(run: Run) -> list[dict]:
    """Table 1 beside the paper's, for every fold scheme, and the gain of each block."""
    table, gains = _read(run, "table_1"), _read(run, "table_1_gains")
    if table is None:
        return []
    return [
        {"scheme": scheme, "n": part["n"].max(), "rows": tables.as_text(part[part["note"].isna()]),
         "not_run": part.dropna(subset="note")[["features", "note"]].to_dict("records"), "warning": limit_warning(part),
         "gains": None if gains is None else tables.gains_as_text(gains[gains["scheme"] == scheme])}
        for scheme, part in table.groupby("scheme", sort=False)
    ]  # fmt: skip


def _studies(run: Run) -> list[dict]:
    """The two experiments on training posts: one line each, and their tables."""
    readings = _read(run, "readings")
    return [] if readings is None else [
        {"title": STUDIES[row.study][0], "reading": row.reading, "rows": _read(run, row.study)[STUDIES[row.study][1]].round(4)}
        for row in readings.itertuples()
    ]  # fmt: skip


def _ceiling(run: Run, facts: dict) -> dict | None:
    """On the demo: what a perfect model could reach, and what the submission reaches on the labels kept from the kit."""
    truth = make.read_truth(Path(facts["data_dir"])) if facts["synthetic"] else None
    submission = run.dir / "submission.csv"
    if truth is None or not submission.is_file():
        return None
    test = truth[truth["split"] == "test"].set_index("Pid")
    ids = pd.read_csv(submission, dtype={"post_id": str})
    test = test.loc[ids["post_id"].str.removeprefix("post")]
    label, predictions = test["label"].to_numpy(), {
        "the noise-free score (ceiling)": test["score"].to_numpy(), "this submission": ids["popularity_score"].to_numpy(),
    }  # fmt: skip
    rows = [
        {"prediction": name, "SRC": f"{metrics.src(label, values):.4f}", "MAE": f"{metrics.mae(label, values):.4f}"}
        for name, values in predictions.items()
    ]
    return {"n": len(test), "scores": pd.DataFrame(rows)}


def _shared(run: Run) -> pd.DataFrame | None:
    """What test posts share with train posts, and what it is worth."""
    table = _read(run, "shared_posts")
    if table is None:
        return None
    parts = {part: [f"{n:,} ({share:.1f} %)" for n, share in zip(table[part], table[f"{part} (%)"], strict=True)]
             for part in ("test", "train")}  # fmt: skip
    worth = table[["src", "mae", "mae_median"]].round(3)
    worth.columns = ["SRC of its partners' label", "MAE", "MAE of the median"]
    return pd.concat([table[["shared"]], pd.DataFrame(parts).add_suffix(" posts"), worth], axis=1)


def _gallery(run: Run) -> dict[str, Markup]:
    """Some train posts that are predicted too high, too low and typically, as cards."""
    if not (run.dir / FUSED).is_file():
        return {}
    posts, fused = run.posts(), pd.read_parquet(run.dir / FUSED)
    posts = posts.assign(prediction=fused["prediction"].to_numpy())
    posts = posts[posts["label"].notna() & posts["prediction"].notna()]
    found = {}
    for which, title in GALLERY.items():
        rows = posts.iloc[extremes(posts["label"].to_numpy(), posts["prediction"].to_numpy(), which, CARDS)]
        found[title] = Markup(grid(rows, rows["image_path"]))
    return found


def _explained(run: Run) -> Markup:
    """What 08 says of some posts; it has escaped their texts."""
    path = run.dir / "explained.html"
    return Markup(path.read_text(encoding="utf-8")) if path.is_file() else Markup("")


def _steps(run: Run) -> list[dict]:
    """The done-marks, in order, each with its name and how its results were made otherwise than it says ("made")."""
    marks = [read_json(path) for path in sorted((run.dir / "done").glob("[0-9][0-9]_*.json"))]
    return [
        {**mark, "name": mark["step"], "made": made_otherwise(mark)} for mark in marks
        if "parameters" in mark  # else a record that is no done-mark yet
    ]  # fmt: skip


def _versions(steps: list[dict]) -> dict[str, list[str]]:
    """Versions of kit, Python, system and packages in one line -> the steps that were made with them."""
    found: dict[str, list[str]] = {}
    for step in steps:
        made = step.get("made_with", {})
        here = {name: made[name] for name in ("kit", "python", "system") if name in made}
        known = {**here, **(made.get("packages") or step["packages"])}
        found.setdefault(", ".join(f"{name} {version}" for name, version in known.items()), []).append(step["name"])
    return found


def _read(run: Run, name: str) -> pd.DataFrame | None:
    path = run.dir / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def _html_table(table: pd.DataFrame) -> Markup:
    """The table as HTML, its texts escaped by pandas."""
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": "", "justify": "right"}
    return Markup(f'<div class="wide">{table.to_html(**options)}</div>')


if __name__ == "__main__":
    try:
        print(write_report(resolve(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo")))
    except InputError as mistake:
        sys.exit(f"error: {mistake}")
