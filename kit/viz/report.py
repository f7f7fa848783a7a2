"""One self-contained HTML page from a run: scores, figures, data quality, parameters, versions. No network, no scripts.

python -m kit.viz.report outputs/demo
"""

from __future__ import annotations

import base64
import datetime
import html
import platform
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import kit
from kit.base import machine, metrics
from kit.base.errors import InputError
from kit.base.files import read_json, write_atomic
from kit.base.paths import resolve
from kit.demo import make
from kit.evaluation.table_one import limit_warning
from kit.run.directory import Run
from kit.viz import tables

FIGURES = {  # file name -> caption, in the order of the page; what a run does not have is left out
    "table_1": "Table 1 as a picture: every feature set, model and fusion; bars are one standard deviation over folds.",
    "table_1_time": "The same on folds that run forward in time.",
    "table_1_gains": "What blocks add, with 95 % ranges of a paired bootstrap over authors.",
    "figure_3": "Figure 3: actual and predicted distribution, and the bias by popularity, with more weight for the tail.",
    "figure_4b": "Figure 4b: training on fewer posts, chosen by CLIP_FT loss or at random.",
    "figure_4a": "Figure 4a: agreement of image and text in each class, against how well its popularity is predicted.",
    "actual_against_predicted": "Out-of-fold predictions of the fusion against the labels.",
    "error_by_label": "Where on the label scale the fusion errs, and in which direction.",
    "importance": "Share of the gain each column brings, mean over folds, for the last feature set.",
    "blend_weights": "Weights of the models in the fusion, chosen on out-of-fold predictions.",
    "error_correlation": "Which models err alike.",
    "clip_ft_history": "Training of CLIP_FT: loss terms and accuracies on authors held out of training.",
    "figure_1": "Words per title and per tag list (the paper's Figure 1).",
    "label_histogram": "Labels of the train part.",
    "category_tree": "Posts per category, divided by subcategory, and the popularity of each category.",
    "posting_rhythm": "When posts appear, and how train and test lie in time.",
    "users_per_split": "How much users post, and how many test posts are by users that the train part knows.",
    "shot_coverage": "Months, concepts and users of a class that its shots touch, against as many random posts.",
    "shots": "Posts drawn for the prototypes of some classes.",
    "similarity": "Cosines between the class prototypes.",
}
WARNING = (
    "Every number on this page was measured on the <b>synthetic demo</b>. It shows that the chain works; it says nothing "
    "about popularity on a real platform and compares with no published score."
)
CSS = """
:root { --ink: #222831; --soft: #6b7280; --line: #e3e6ea; --mark: #b5446e; --ground: #fbfbfc }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--ground);
       max-width: 1020px; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line) }
.sub { color: var(--soft); margin: .2rem 0 1.2rem }
.cards { display: flex; flex-wrap: wrap; gap: .8rem }
.card { background: white; border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1.1rem; min-width: 9.5rem }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums }
.card span { color: var(--soft); font-size: .85rem }
.warn { background: #fff4e5; border-left: 4px solid #e07b39; padding: .7rem 1rem; border-radius: 4px }
table { border-collapse: collapse; background: white; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .28rem .75rem; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 600 }
.wide { overflow-x: auto } figure { margin: 1.2rem 0 } img { max-width: 100%; background: white; border: 1px solid var(--line) }
figcaption { color: var(--soft); font-size: .88rem } code { font-size: .85em } details { margin: .5rem 0 }
"""


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into the run directory and return its path.

    Raises:
        InputError: there is no run.
    """
    run = Run.open(run_dir)
    facts_path = run.dir / "release.json"
    if not facts_path.is_file():
        raise InputError(f"{run.dir} holds no finished 01_eda, so there is nothing to report")
    facts = read_json(facts_path)
    body = [
        _head(run, facts), _fusion(run), _ceiling(run, facts), _table_one(run, facts), _studies(run), _figures(run),
        _table(run, "quality", "Data quality"), _steps(run), _versions(),
    ]  # fmt: skip
    title = html.escape(f"Report of {run.dir.name}")
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{CSS}</style></head>'
    path = run.dir / "report.html"
    write_atomic(path, page + "<body>" + "\n".join(part for part in body if part) + "</body></html>\n")
    return path


def _head(run: Run, facts: dict) -> str:
    blend = _read(run, "blend_scores")
    cards = [(f"{facts['n_train']:,}", "train posts"), (f"{facts['n_test']:,}", "test posts")]
    if blend is not None:
        blend = blend[blend["scheme"] == blend["scheme"].iloc[0]]
        for metric, name in (("src", "SRC"), ("mae", "MAE")):
            mean, sd = metrics.spread(blend[metric])
            cards.append((f"{mean:.4f}", f"{name} of the fusion, ± {sd:.4f} over folds"))
    shown = "".join(f'<div class="card"><b>{value}</b><span>{html.escape(name)}</span></div>' for value, name in cards)
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    warning = f'<p class="warn">{WARNING}</p>' if facts["synthetic"] else ""
    submission = (
        'Submission: <a href="submission.csv">submission.csv</a>, <a href="submission.json">submission.json</a>.'
        if (run.dir / "submission.csv").is_file() else "No submission: this release has no test part."
    )  # fmt: skip
    return (
        f'<h1>{html.escape(run.dir.name)}</h1><p class="sub">SMP popularity prediction, {now}. {submission}</p>'
        f'{warning}{_left_out(run)}<div class="cards">{shown}</div>'
    )


def _left_out(run: Run) -> str:
    """What the run did without, and what it would have needed."""
    notes = [read_json(path) for path in sorted((run.dir / "done").glob("*.left_out.json"))]
    return "".join(
        f'<p class="warn"><b>{note["step"]} was left out.</b> {html.escape(note["reason"])}</p>' for note in notes
    )


def _fusion(run: Run) -> str:
    """The fusion under every fold scheme, and the ways of fusion that were tried."""
    scores, tried = _read(run, "blend_scores"), _read(run, "fusion")
    if scores is None:
        return ""
    rows = [
        {
            "folds": f"{len(part)} by {scheme}",
            "SRC": tables.spread(*metrics.spread(part["src"])),
            "MAE": tables.spread(*metrics.spread(part["mae"])),
            "n": part["n"].sum(),
        }
        for scheme, part in scores.groupby("scheme", sort=False)
    ]
    note = (
        "<p>Out-of-fold scores: mean ± standard deviation over folds; n is the number of scored posts. Folds by user keep "
        "authors apart; folds by time score later posts with models of earlier ones. Weights and calibration are fitted "
        "without the fold that is scored.</p>"
    )
    parts = [f"<h2>The fused models</h2>{note}{_html_table(pd.DataFrame(rows))}"]
    if tried is not None:
        shown = tried[["fusion"]].copy()
        for metric in ("src", "mae"):
            shown[metric.upper()] = list(map(tables.spread, tried[metric], tried[f"{metric}_sd"]))
        shown["models used"] = tried["models"]
        parts.append(f"<p>Ways of fusion, best first, and the best single model:</p>{_html_table(shown)}")
    return "".join(parts)


def _table_one(run: Run, facts: dict) -> str:
    """Table 1 beside the paper's, for every fold scheme, and the gain of each block."""
    table, gains = _read(run, "table_1"), _read(run, "table_1_gains")
    if table is None:
        return ""
    parts = [
        "<h2>Table 1: feature sets</h2><p>Rows as in the paper, then those of this kit (<i>taught</i>: columns made from "
        "training labels inside each fold). Blocks <i>statistic</i> and <i>behaviour</i> stand in for the paper's features, "
        "which it does not list. Mean ± standard deviation over folds. <b>The paper's numbers are other data</b>: "
        "the challenge's server on the test part of SMPD"
        + (", while these posts are synthetic" if facts["synthetic"] else "") + ".</p>"
    ]  # fmt: skip
    for scheme, part in table.groupby("scheme", sort=False):
        n = part["n"].max()
        parts.append(
            f"<h3>Folds by {html.escape(scheme)} (n = {n:,.0f})</h3>{_html_table(tables.as_text(part))}"
            f"<p>{html.escape(limit_warning(part))}</p>"
        )
        if gains is not None:
            shown = tables.gains_as_text(gains[gains["scheme"] == scheme])
            what = f"What each block brings, by {html.escape(scheme)}: fused models of a row minus those of another"
            parts.append(f"<details open><summary>{what}</summary>{_html_table(shown)}</details>")
    return "".join(parts)


def _studies(run: Run) -> str:
    """The two experiments on training posts: one line each, and their tables."""
    readings = _read(run, "readings")
    if readings is None:
        return ""
    titles = {"oversampling": "More weight for the tail", "selection": "Fewer training posts"}
    columns = {
        "oversampling": ["variant", "src", "src_sd", "mae", "mae_sd", "src_tail", "mae_tail", "bias", "bias_tail", "n", "n_tail"],
        "selection": ["ratio", "side", "scope", "n_taught", "src", "src_sd", "mae", "mae_sd", "seconds", "seeds"],
    }  # fmt: skip
    parts = ["<h2>Experiments on training posts</h2>"]
    for row in readings.itertuples():
        table = _read(run, row.study)[columns[row.study]].round(4)
        parts.append(f"<h3>{titles[row.study]}</h3><p>{html.escape(row.reading)}</p>"
                     f"<details><summary>Table</summary>{_html_table(table)}</details>")  # fmt: skip
    return "".join(parts)


def _ceiling(run: Run, facts: dict) -> str:
    """On the demo: what a perfect model could reach, and what the submission reaches on the labels kept from the kit."""
    truth = make.read_truth(Path(facts["data_dir"])) if facts["synthetic"] else None
    submission = run.dir / "submission.csv"
    if truth is None or not submission.is_file():
        return ""
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
    return (
        f"<h2>Test part of the demo (n = {len(test):,})</h2><p>The demo's labels are a noise-free score plus noise. No model "
        f"can do better than that score; no step of the chain reads it.</p>{_html_table(pd.DataFrame(rows))}"
    )


def _figures(run: Run) -> str:
    parts = []
    for name, caption in FIGURES.items():
        path = run.dir / "figures" / f"{name}.png"
        if path.is_file():
            picture = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
    return f"<h2>Figures</h2>{''.join(parts)}" if parts else ""


def _table(run: Run, name: str, title: str) -> str:
    table = _read(run, name)
    return "" if table is None else f"<h2>{html.escape(title)}</h2>{_html_table(table)}"


def _steps(run: Run) -> str:
    """Time, memory and parameters of each step, with links to the executed notebooks and logs."""
    rows, settings = [], []
    for path in sorted((run.dir / "done").glob("[0-9][0-9]_*.json")):
        mark = read_json(path)
        if "parameters" not in mark:
            continue  # a record that is no done-mark yet
        name = mark["step"]
        links = [f'<a href="notebooks/{name}.ipynb">{name}</a>', f'<a href="logs/{name}.log">log</a>']
        rows.append({"step": links[0], "log": links[1], "seconds": f"{mark['seconds']:.0f}", "peak MB": f"{mark['peak_mb']:,}",
                     "finished": mark["finished"]})  # fmt: skip
        values = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(repr(value))}</td></tr>"
                         for key, value in mark["parameters"].items())  # fmt: skip
        settings.append(f"<details><summary>Parameters of {name}</summary><table>{values}</table></details>")
    if not rows:
        return ""
    return f"<h2>Steps</h2>{_html_table(pd.DataFrame(rows), escape=False)}{''.join(settings)}"


def _versions() -> str:
    here = {"kit": kit.__version__, "python": platform.python_version(), "system": platform.platform()}
    known = {**here, **machine.package_versions()}
    return f"<h2>Versions</h2><p>{', '.join(f'{html.escape(name)} {html.escape(v)}' for name, v in known.items())}</p>"


def _read(run: Run, name: str) -> pd.DataFrame | None:
    path = run.dir / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def _html_table(table: pd.DataFrame, escape: bool = True) -> str:
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": "", "escape": escape, "justify": "right"}
    return f'<div class="wide">{table.to_html(**options)}</div>'


if __name__ == "__main__":
    try:
        print(write_report(resolve(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo")))
    except InputError as mistake:
        sys.exit(f"error: {mistake}")
