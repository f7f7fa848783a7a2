"""The figures of the paper's experiments: Table 1 as a picture, tail and selection studies, alignment per class.

Same rules as `kit.viz.figures`: data in, Figure out, one colour for one thing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kit.viz.figures import COLOURS, INK, LABEL, SOFT, grid, styled

SIDES = ("lowest", "highest", "random")
MODEL_MARKS = {"lightgbm": "o", "catboost": "s", "author_ridge": "^", "fusion": "D"}
METRICS = {"src": "SRC (higher is better)", "mae": "MAE (lower is better)"}
MIN_CLASS_POSTS = 30  # fewer, and a class's SRC is mostly noise
CLASS_COLOURS = "#31688e #e07b39 #2a9d8f #b5446e #8a6fb0 #e0a03a #4c78a8 #7a8b3c #c0524a #5f6b7a".split()
CLASS_MARKS = "os^D"  # the next one for every ten classes


@styled
def table_one(table: pd.DataFrame, title: str = "Table 1, out of fold") -> Figure:
    """SRC and MAE of every feature set: each model's mean over folds, a bar of one standard deviation to either side.

    Args:
        table: from `ablation.table_one`; rows that were not run are left out.
    """
    shown = table[table["note"].fillna("") == ""].reset_index(drop=True)
    models = [name for name in MODEL_MARKS if f"{name}_src" in shown]
    figure, axes = grid(1, 2, width=10.5, height=0.42 * len(shown) + 1.5, share_y=True)
    for ax, (metric, label) in zip(axes[0], METRICS.items(), strict=True):
        for place, model in enumerate(models):
            y = np.arange(len(shown)) + 0.22 * (place - (len(models) - 1) / 2)
            colour = COLOURS.get(model, INK)
            ax.errorbar(shown[f"{model}_{metric}"], y, xerr=shown[f"{model}_{metric}_sd"], fmt=MODEL_MARKS[model],
                        color=colour, markersize=5, elinewidth=1.2, label=model)  # fmt: skip
        ax.set(xlabel=label, yticks=range(len(shown)), yticklabels=shown["features"])
        ax.set_ylim(len(shown) - 0.5, -0.5)
    axes[0, 0].set_title(f"{title} (n = {shown['n'].max():,.0f}; bars: sd over folds)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(models))
    return figure


@styled
def gains(table: pd.DataFrame) -> Figure:
    """What the blocks of each row add: differences in SRC and MAE with their 95 % ranges.

    Args:
        table: from `table_one.gains`; the rows "added: ..." are drawn.
    """
    shown = table[table["what"].str.startswith("added")].reset_index(drop=True)
    names = [
        f"{what.removeprefix('added: ')}  to  {against}"
        for what, against in zip(shown["what"], shown["against"], strict=True)
    ]
    figure, axes = grid(1, 2, width=10.5, height=0.36 * max(len(shown), 1) + 1.3, share_y=True)
    labels = ("change of SRC (right is better)", "change of MAE (left is better)")
    for ax, metric, label in zip(axes[0], METRICS, labels, strict=True):
        for y, row in shown.iterrows():
            colour = COLOURS.get(row["reading"], SOFT)
            ax.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=colour, linewidth=2)
            ax.plot(row[metric], y, "o", color=colour, markersize=6)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set(xlabel=label, yticks=range(len(shown)), yticklabels=names)
        ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
        ax.locator_params(axis="x", nbins=6)
    axes[0, 0].set_title("What is added to what: fused models, 95 % of draws of authors")
    return figure


@styled
def tail(target: np.ndarray, oof: Mapping[str, np.ndarray], buckets: pd.DataFrame, threshold: float) -> Figure:
    """Figure 3: actual and predicted distribution, their tail, and the error by popularity for each variant.

    Args:
        target: (n,) labels of scored posts.
        oof: variant -> (n,) predictions of the same posts; "plain" first.
        buckets: variant, low, high, n, mae, bias (`studies.error_buckets`).
        threshold: where the tail begins.
    """
    figure, axes = grid(1, 3, width=13.0, height=3.8)
    edges = np.linspace(target.min(), target.max(), 50)
    for ax, inside in ((axes[0, 0], -np.inf), (axes[0, 1], threshold - (threshold - target.min()) * 0.12)):
        ax.hist(target, edges, color=COLOURS["actual"], alpha=0.35, label="actual")
        for name, values in oof.items():
            kind, dashed = _variant_style(name)
            counts, _ = np.histogram(values, edges)
            ax.stairs(counts, edges, color=kind, linestyle=dashed, linewidth=1.5, label=name)
        ax.axvline(threshold, color=INK, linewidth=0.8, linestyle=":")
        if np.isfinite(inside):
            n_shown = [np.histogram(v[v >= inside], edges)[0].max() for v in (target, *oof.values())]
            ax.set(xlim=(inside, target.max()), ylim=(0, 1.1 * max(n_shown)), title=f"The tail, above {threshold:.2f}")
        else:
            ax.set_title(f"Actual and predicted (n = {len(target):,})")
        ax.set(xlabel=LABEL, ylabel="posts")
    for name in oof:
        part = buckets[buckets["variant"] == name]
        colour, dashed = _variant_style(name)
        middle = (part["low"] + part["high"]) / 2
        axes[0, 2].plot(middle, part["bias"], "o", linestyle=dashed, color=colour, markersize=4)
    axes[0, 2].axhline(0, color=INK, linewidth=0.8)
    axes[0, 2].axvline(threshold, color=INK, linewidth=0.8, linestyle=":")
    axes[0, 2].set(xlabel=LABEL, ylabel="mean of predicted - actual", title="Bias by popularity")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


@styled
def selection(table: pd.DataFrame, marked: float = 0.77) -> Figure:
    """Figure 4b: SRC, MAE and fitting time against the share of training posts kept, by loss and at random.

    Args:
        table: from `studies.selection_study`.
        marked: share at which a line is drawn, the paper's.
    """
    full = table[table["side"] == "all"].iloc[0]
    figure, axes = grid(1, 3, width=13.0, height=3.8)
    panels = {"src": METRICS["src"], "mae": METRICS["mae"], "seconds": "fitting time (share of full training)"}
    for ax, (value, label) in zip(axes[0], panels.items(), strict=True):
        for (side, scope), part in table[table["side"] != "all"].groupby(["side", "scope"], sort=False):
            part = pd.concat([full.to_frame().T, part]).sort_values("ratio", ascending=False)
            x, style = 100 * part["ratio"].astype(float), "--" if scope.startswith("within") else "-"
            scale = full["seconds"] if value == "seconds" else 1.0
            ax.plot(x, part[value].astype(float) / scale, "o", linestyle=style, color=COLOURS[side], markersize=4)
            if value != "seconds" and full["seeds"] > 1:
                ax.fill_between(x, part[f"{value}_low"].astype(float), part[f"{value}_high"].astype(float),
                                color=COLOURS[side], alpha=0.12, linewidth=0)  # fmt: skip
        ax.axvline(100 * marked, color=INK, linewidth=0.8, linestyle=":")
        ax.invert_xaxis()
        ax.set(xlabel="training posts kept (%)", ylabel=label)
    axes[0, 0].set_title(f"Training on fewer posts ({full['seeds']:.0f} seeds)")
    names = dict(zip(SIDES, ("lowest loss", "highest loss", "random"), strict=True))
    lines = [Line2D([], [], color=COLOURS[side], label=name) for side, name in names.items()]
    lines += [
        Line2D([], [], color=INK, linestyle=s, label=n)
        for n, s in (("ranked over all", "-"), ("within subcategory", "--"))
    ]
    lines.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label=f"{marked:.0%}, the paper's share"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


@styled
def alignment(classes: pd.DataFrame, note: str = "") -> Figure:
    """Figure 4a: how well image and text agree in a class, against how well its popularity is predicted.

    Args:
        classes: one row per class: name, level ("Category" or "Subcategory"), n, cosine, src, mae.
        note: a remark for the title.
    """
    figure, axes = grid(1, 2, width=12.5, height=4.6)
    shown = classes[(classes["n"] >= MIN_CLASS_POSTS) & classes["cosine"].notna()]
    small, large = shown[shown["level"] == "Subcategory"], shown[shown["level"] == "Category"]
    for ax, (metric, label) in zip(axes[0], METRICS.items(), strict=True):
        ax.scatter(small["cosine"], small[metric], s=12, color=SOFT, alpha=0.7, label="a subcategory")
        for place, row in enumerate(large.itertuples()):
            turn, colour = divmod(place, len(CLASS_COLOURS))
            look = {
                "color": CLASS_COLOURS[colour],
                "marker": CLASS_MARKS[turn % len(CLASS_MARKS)],
                "edgecolor": "white",
            }
            ax.scatter(row.cosine, getattr(row, metric), s=70, **look, label=row.name, zorder=3)
        rho = small[["cosine", metric]].corr("spearman").iloc[0, 1] if len(small) > 2 else np.nan
        ax.set(xlabel="mean image-text cosine of the class, frozen CLIP", ylabel=label,
               title=f"Spearman over {len(small)} subcategories: {rho:+.2f}")  # fmt: skip
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    if note:
        figure.suptitle(note, fontsize=9, x=0.01, ha="left")
    return figure


def _variant_style(name: str) -> tuple[str, str]:
    kind = name.split(" ")[0]
    return COLOURS.get(kind, INK), {"x2": ":", "x3": "--"}.get(name.split(" ")[-1], "-")
