"""Every figure of the kit: functions that take data and return a matplotlib Figure, and touch no file.

One thing has one colour in all figures; axes carry units; a title says what is shown and, where it matters, n.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image

from kit.base.metrics import error_buckets
from kit.release.images import decode_image
from kit.release.taxonomy import prompt_names

COLOURS = {
    "train": "#31688e", "test": "#e07b39", "actual": "#6b7280", "predicted": "#2a9d8f",
    "Title": "#31688e", "Alltags": "#2a9d8f", "lightgbm": "#4c78a8", "catboost": "#e0a03a", "author_ridge": "#8a6fb0",
    "blend": "#b5446e", "fusion": "#b5446e",
    "lowest": "#26547c", "highest": "#d1495b", "random": "#8d99ae", "better": "#3f8f4f", "worse": "#a63d40",
    "plain": "#2a9d8f", "copies": "#b5446e", "weight": "#8a6fb0", "LDS": "#e0a03a",
}  # fmt: skip
INK, SOFT = "#222831", "#9aa3ad"
STYLE = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": "#e6e9ec",
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 96,
}  # fmt: skip
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
LABEL = "popularity (label scale)"


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the kit's style without changing anybody else's matplotlib settings."""

    @functools.wraps(draw)
    def drawn(*args: Any, **options: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


@styled
def word_counts(counts: Mapping[str, np.ndarray], longest: int = 40) -> Figure:
    """The paper's Figure 1: how many words Title and Alltags have.

    Args:
        counts: text name -> (n_posts,) words per post.
        longest: texts of more words share the last bar.
    """
    figure, axes = grid(1, len(counts), width=9.6, height=3.0)
    for ax, (name, n_words) in zip(axes[0], counts.items(), strict=True):
        clipped = np.minimum(n_words, longest)
        share = 100 * np.bincount(clipped, minlength=longest + 1) / max(len(n_words), 1)
        ax.bar(range(longest + 1), share, width=0.9, color=COLOURS.get(name, COLOURS["train"]))
        few = 100 * np.mean(np.asarray(n_words) <= 1)
        ax.set_title(f"{name}: median {np.median(n_words):.0f} words, {few:.0f} % have one or none")
        ax.set_xlabel(f"words per post ({longest} stands for {longest} and more)")
        ax.set_ylabel("posts (%)")
        ax.grid(axis="x", visible=False)
    return figure


@styled
def label_histogram(labels: np.ndarray) -> Figure:
    """Histogram of the train labels with median and mean."""
    figure, axes = grid(1, 1, width=7.2, height=2.9)
    ax = axes[0, 0]
    edges = MaxNLocator(40).tick_values(labels.min(), labels.max())
    ax.hist(labels, bins=edges, color=COLOURS["actual"], edgecolor="white", linewidth=0.5)
    for value, name, dash in ((np.median(labels), "median", "-"), (labels.mean(), "mean", "--")):
        ax.axvline(value, color=COLOURS["blend"], linestyle=dash, label=f"{name} {value:.2f}")
    ax.set(title=f"Popularity of the train posts (n = {len(labels):,})", xlabel=LABEL, ylabel="posts")
    ax.legend()
    return figure


@styled
def category_tree(posts: pd.DataFrame, most: int = 12, within: int = 6) -> Figure:
    """Posts per category, each bar divided into its subcategories, and the median label of each category."""
    counts = posts.groupby(["Category", "Subcategory"], observed=True).size()
    order = counts.groupby(level=0, observed=True).sum().sort_values(ascending=False).index[:most]
    figure, axes = grid(1, 2, width=10.5, height=0.42 * len(order) + 1.1, share_y=True, widths=(3.2, 1))
    for row, category in enumerate(order):
        _stack(axes[0, 0], row, counts[category].sort_values(ascending=False), within)
    labels = posts.dropna(subset=["label"]).groupby("Category", observed=True)["label"]
    quartiles = labels.quantile([0.25, 0.5, 0.75]).unstack().reindex(order)
    axes[0, 1].hlines(
        range(len(order)), quartiles[0.25], quartiles[0.75], color=COLOURS["actual"], linewidth=4, alpha=0.4
    )
    axes[0, 1].plot(quartiles[0.5], range(len(order)), "o", color=COLOURS["blend"])
    names = [str(name) or "(none)" for name in order]
    axes[0, 0].set(yticks=range(len(order)), yticklabels=names, xlabel="posts, train and test", title="Category tree")
    axes[0, 0].invert_yaxis()
    axes[0, 0].margins(x=0.3)  # room for the names
    axes[0, 0].grid(axis="y", visible=False)
    axes[0, 1].set(xlabel="label: median, quartiles", title="Popularity")
    return figure


def _stack(ax: Axes, row: int, parts: pd.Series, within: int) -> None:
    """One horizontal bar made of the largest ``within`` parts and the rest."""
    left = 0
    shown = pd.concat([parts[:within], pd.Series({"others": parts[within:].sum()})]) if len(parts) > within else parts
    for i, size in enumerate(shown):
        shade = matplotlib.colormaps["viridis"](0.25 + 0.55 * i / max(len(shown), 2))
        ax.barh(row, size, left=left, height=0.72, color=shade, edgecolor="white", linewidth=0.8)
        left += size
    ax.annotate(", ".join(str(name) for name in list(shown.index)[:3]), (left, row), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=7.5, color=INK)  # fmt: skip


@styled
def posting_rhythm(posts: pd.DataFrame) -> Figure:
    """Posts per hour of the week (UTC), and per calendar year, month or day in train and test, whichever suits their span."""
    figure, axes = grid(1, 2, width=10.5, height=2.9, widths=(1.35, 1))
    dated = posts.dropna(subset=["Postdate"])
    week = np.zeros((7, 24))
    np.add.at(week, (dated["Postdate"].dt.weekday, dated["Postdate"].dt.hour), 1)
    image = axes[0, 0].imshow(week, aspect="auto", cmap="viridis")
    axes[0, 0].set(
        yticks=range(7), yticklabels=WEEKDAYS, xticks=range(0, 24, 3), xlabel="hour (UTC)", title="When posts appear"
    )
    axes[0, 0].grid(visible=False)
    figure.colorbar(image, ax=axes[0, 0], label="posts")
    span_days = (dated["Postdate"].max() - dated["Postdate"].min()).days if len(dated) else 0
    unit, name = ("YS", "year") if span_days > 5 * 365 else ("MS", "month") if span_days > 90 else ("D", "day")
    for split in ("train", "test"):
        when = dated.loc[dated["split"] == split, "Postdate"]
        if len(when):
            counts = when.dt.tz_localize(None).to_frame().resample(unit, on="Postdate").size()
            axes[0, 1].step(counts.index, counts, where="mid", color=COLOURS[split], label=split)
    axes[0, 1].set(ylabel=f"posts per {name}", title="Train and test in time", ylim=(0, None))
    axes[0, 1].tick_params(axis="x", rotation=30)
    if len(dated):
        axes[0, 1].legend()
    return figure


@styled
def users_per_split(posts: pd.DataFrame) -> Figure:
    """Posts per user, and how much of the test part is by users the train part knows."""
    figure, axes = grid(1, 2, width=10.5, height=2.7, widths=(1.35, 1))
    for split in ("train", "test"):
        per_user = posts.loc[posts["split"] == split, "Uid"].value_counts()
        if len(per_user):
            edges = np.unique(np.geomspace(1, per_user.max() + 1, 24).astype(int))
            axes[0, 0].step(edges[:-1], np.histogram(per_user, edges)[0] / len(per_user) * 100, where="post",
                            color=COLOURS[split], label=f"{split}: {len(per_user):,} users")  # fmt: skip
    axes[0, 0].set(xscale="log", xlabel="posts per user", ylabel="users (%)", title="How much users post")
    axes[0, 0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[0, 0].legend()
    known = set(posts.loc[posts["split"] == "train", "Uid"])
    test = posts.loc[posts["split"] == "test", "Uid"]
    if len(test):
        by_known = 100 * test.isin(known).mean()
        axes[0, 1].barh([0], [by_known], color=COLOURS["train"], height=0.5)
        axes[0, 1].barh([0], [100 - by_known], left=[by_known], color=COLOURS["test"], height=0.5)
        bold = {"weight": "bold"}
        axes[0, 1].text(0, 0.36, f"{by_known:.0f} % by users seen in train", color=COLOURS["train"], **bold)
        axes[0, 1].text(
            100, -0.36, f"{100 - by_known:.0f} % by new users", color=COLOURS["test"], ha="right", va="top", **bold
        )
    axes[0, 1].set(
        title=f"Test posts (n = {len(test):,})", xlabel="share (%)", yticks=[], ylim=(-0.8, 0.8), xlim=(0, 100)
    )
    return figure


@styled
def actual_against_predicted(target: np.ndarray, prediction: np.ndarray, name: str) -> Figure:
    """Where predictions fall for each label, and both distributions over each other."""
    figure, axes = grid(1, 2, width=10.5, height=3.4)
    low, high = float(min(target.min(), prediction.min())), float(max(target.max(), prediction.max()))
    extent = (low, high, low, high)
    hexes = axes[0, 0].hexbin(prediction, target, gridsize=45, cmap="viridis", mincnt=1, bins="log", extent=extent)
    axes[0, 0].plot([low, high], [low, high], color=COLOURS["blend"], linewidth=1)
    axes[0, 0].set(
        xlabel=f"out-of-fold prediction, {name}", ylabel=LABEL, title=f"Each train post (n = {len(target):,})"
    )
    figure.colorbar(hexes, ax=axes[0, 0], label="posts")
    bins = np.linspace(low, high, 60)
    axes[0, 1].hist(target, bins, color=COLOURS["actual"], alpha=0.55, label="actual")
    axes[0, 1].hist(prediction, bins, color=COLOURS["predicted"], alpha=0.55, label="predicted")
    axes[0, 1].set(xlabel=LABEL, ylabel="posts", title="Both distributions")
    axes[0, 1].legend()
    return figure


@styled
def error_by_label(target: np.ndarray, prediction: np.ndarray, n_bins: int = 12) -> Figure:
    """Mean absolute error and bias over the range of labels: where a model is blind."""
    figure, axes = grid(1, 1, width=7.2, height=2.9)
    table = error_buckets(target, prediction, n_bins)
    middle, width = (table["low"] + table["high"]) / 2, table["high"] - table["low"]
    ax = axes[0, 0]
    ax.bar(middle, table["mae"], width=0.85 * width, color=COLOURS["actual"], alpha=0.6, label="MAE")
    ax.plot(middle, table["bias"], "o-", color=COLOURS["blend"], label="mean of predicted - actual")
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set(xlabel=LABEL, ylabel="error (label units)", title=f"Error by popularity (n = {len(target):,})")
    ax.legend()
    return figure


@styled
def importance(table: pd.DataFrame, most: int = 20) -> Figure:
    """Share of the gain of the most used columns, side by side for each model.

    Args:
        table: columns model, column, gain (shares that sum to 1 per model).
    """
    wide = table.pivot_table(index="column", columns="model", values="gain", fill_value=0.0)
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index[:most]][::-1]
    figure, axes = grid(1, 1, width=7.6, height=0.27 * len(wide) + 0.9)
    height = 0.8 / len(wide.columns)
    for i, model in enumerate(wide.columns):
        rows = np.arange(len(wide)) + (len(wide.columns) / 2 - i - 0.5) * height
        axes[0, 0].barh(rows, 100 * wide[model], height=height, color=COLOURS.get(model, INK), label=model)
    axes[0, 0].set(yticks=range(len(wide)), yticklabels=wide.index, xlabel="share of the model's gain (%)",
                   title="What the models use most")  # fmt: skip
    axes[0, 0].grid(axis="y", visible=False)
    axes[0, 0].legend(loc="lower right")
    return figure


@styled
def error_correlation(errors: pd.DataFrame) -> Figure:
    """Correlation between the errors of all pairs of models; light squares err together.

    Args:
        errors: one column per model, one row per post, NaN where not scored.
    """
    table, n = errors.corr(), errors.shape[1]
    side = max(3.0, 0.24 * n)
    figure, axes = grid(1, 1, width=side + 4.6, height=side + 0.8)
    ax = axes[0, 0]
    shown = ax.imshow(table, cmap="viridis", vmin=min(0.5, float(table.min().min())), vmax=1)
    ax.set(yticks=range(n), yticklabels=table.columns, xticks=[], title="Errors of the models, correlation")
    ax.tick_params(labelsize=8)
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, shrink=0.8)
    return figure


@styled
def blend_weights(weights: Mapping[str, float]) -> Figure:
    """The weight of each model in the blend; those without weight are counted in the title."""
    names: Sequence[str] = sorted((name for name in weights if weights[name] > 0), key=lambda name: weights[name])
    figure, axes = grid(1, 1, width=6.0, height=0.35 * len(names) + 0.9)
    colours = [COLOURS.get(name.split("/")[-1], INK) for name in names]
    axes[0, 0].barh(names, [weights[name] for name in names], color=colours, height=0.6)
    axes[0, 0].set(xlabel="weight", title=f"The fusion: {len(names)} of {len(weights)} models have weight")
    axes[0, 0].set_xlim(left=0)
    axes[0, 0].grid(axis="y", visible=False)
    return figure


@styled
def contact_sheet(pictures: Mapping[str, Sequence[Any]]) -> Figure:
    """Some posts of some classes, a class per row.

    Args:
        pictures: class name -> PIL images; rows may differ in length.
    """
    n_columns = max(len(row) for row in pictures.values())
    figure, axes = grid(len(pictures), n_columns, width=1.05 * n_columns + 1.2, height=1.1 * len(pictures))
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for ax, image in zip(row, [*images, *[None] * (n_columns - len(images))], strict=True):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if image is not None:
                ax.imshow(image)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure


@styled
def similarity_map(visual: np.ndarray, textual: np.ndarray, names: Sequence[str]) -> Figure:
    """Cosines between the classes' visual prototypes, between the textual ones, and across.

    Args:
        visual, textual: (K, d) float, rows of norm 1.
        names: the K classes, in an order that puts relatives side by side.
    """
    figure, axes = grid(1, 3, width=12.5, height=4.4, share_y=True)
    maps = {"image x image": visual @ visual.T, "text x text": textual @ textual.T, "image x text": visual @ textual.T}
    every = max(1, len(names) // 20)
    for ax, (title, cosines) in zip(axes[0], maps.items(), strict=True):
        image = ax.imshow(cosines, cmap="viridis")
        ax.set(title=title, xticks=[], yticks=range(0, len(names), every), yticklabels=list(names)[::every])
        ax.tick_params(axis="y", labelsize=6.5)
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax, shrink=0.75, label="cosine")
    return figure


@styled
def shot_coverage(coverage: pd.DataFrame) -> Figure:
    """How much of each class's months, concepts and users the chosen shots touch, against as many random posts.

    Args:
        coverage: per class the columns months, months_shots, months_random, and so for concepts and users.
    """
    figure, axes = grid(1, 3, width=10.5, height=3.2)
    for ax, what in zip(axes[0], ("months", "concepts", "users"), strict=True):
        for kind, colour in (("random", COLOURS["actual"]), ("shots", COLOURS["predicted"])):
            share = 100 * coverage[f"{what}_{kind}"] / coverage[what].clip(lower=1)
            ax.plot(np.sort(share)[::-1], color=colour, label={"shots": "three-stage sampling"}.get(kind, "at random"))
        ax.set(title=f"{what.capitalize()} covered", ylim=(0, 103))
        ax.set(xlabel="classes, best first", ylabel="share of the class (%)")
    axes[0, 0].legend(loc="lower left")
    return figure


@styled
def training_history(history: pd.DataFrame) -> Figure:
    """CLIP_FT's loss terms and its accuracies on held-out authors, epoch by epoch; epoch 0 is before training.

    Args:
        history: as ``kit.clip_ft.train.train`` returns it; without held-out authors only training losses are drawn.
    """
    figure, axes = grid(1, 2, width=10.5, height=3.3)
    for term, colour in {"L_g": "#31688e", "L_o": "#2a9d8f", "L_c": "#e07b39"}.items():
        for part, name, style in (("valid", "held-out authors", "o-"), ("train", "training", "--")):
            if f"{part}_{term}" in history:
                axes[0, 0].plot(
                    history["epoch"], history[f"{part}_{term}"], style, color=colour, label=f"{term}, {name}"
                )
    axes[0, 0].set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss terms (Eq. 8)")
    axes[0, 0].legend(fontsize=7.5, ncols=2)
    heads = {"global": "#31688e", "local": "#2a9d8f", "visual": "#e07b39", "textual": "#8a6fb0", "averaged": "#b5446e"}
    for head, colour in heads.items():
        if f"valid_accuracy_{head}" in history:
            axes[0, 1].plot(history["epoch"], 100 * history[f"valid_accuracy_{head}"], "o-", color=colour, label=head)
            axes[0, 1].legend(fontsize=8, ncols=2)
    axes[0, 1].set(xlabel="epoch", ylabel="accuracy (%)", title="Right subcategory, held-out authors")
    for ax in axes[0]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


class Shown(Figure):
    """A figure that a notebook shows as a picture."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=96, bbox_inches="tight", facecolor="white")
        return picture.getvalue()


def grid(
    n_rows: int, n_columns: int, width: float, height: float, share_y: bool = False, widths: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """A figure with its axes, made without pyplot so that nothing is kept open or shown twice."""
    figure = Shown(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(n_rows, n_columns, squeeze=False, sharey=share_y, width_ratios=widths)


CELL_PX = 96  # side of a picture on the contact sheet


def shot_pictures(
    posts: pd.DataFrame, shots: pd.DataFrame, n_classes: int, n_shots: int
) -> dict[str, list[Image.Image]]:
    """Pictures of the first shots of the largest classes: class name -> images of CELL_PX a side."""
    largest = shots["Subcategory"].value_counts().index[:n_classes]
    pictures = {}
    for name in largest:
        rows = shots.loc[shots["Subcategory"] == name, "row"].iloc[:n_shots]
        pictures[prompt_names([name])[0]] = pictures_of(posts, rows)
    return pictures


def pictures_of(posts: pd.DataFrame, rows: Sequence[int]) -> list[Image.Image]:
    """The pictures of some posts, CELL_PX a side; unreadable ones are grey."""
    decoded = [decode_image(posts["image_path"].iloc[row], 2 * CELL_PX)[0] for row in rows]
    return [image.resize((CELL_PX, CELL_PX)) for image in decoded]
