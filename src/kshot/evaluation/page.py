"""The parts of the report's page, each a function from the findings to HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kshot.evaluation import plots
from kshot.evaluation.findings import Findings, Row, count, number, percent, points, rank, seconds, verdict
from kshot.evaluation.markup import Html, figure, first, folded, section, table, tag

_LONG = 12  # rows before a table is folded
_SHOWN, _LABELS = 2, 30  # plots of one kind before the rest is folded; labels of a confusion matrix
_VERDICTS = {"better": "▲ better", "worse": "▼ worse", "unclear": "○ unclear", "unknown": "○ no interval"}


def _unbroken(sentence: str) -> str:
    """Return a sentence whose figures stay with their intervals and units at the end of a line."""
    return sentence.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def head(found: Findings) -> Html:
    """Return the headline, the protocol and the warnings."""
    plan = found.report["protocol"]
    shots = [str(value) for value in plan.get("shots") or ["?"]]
    sizes = " and ".join(part for part in (", ".join(shots[:-1]), shots[-1]) if part)
    queries = count(plan.get("queries"), "query").replace("querys", "queries")
    drawn = f"{plan.get('ways')} labels with {sizes} {'shot' if sizes == '1' else 'shots'} and {queries} a label"
    drawn = f"{sizes} examples and {queries}" if plan.get("labels") == 0 else drawn
    inside = "" if plan.get("labels") == 0 else f"{count(plan.get('labels'), 'label')} in "
    protocol = (
        f"{plan.get('suite')}, {plan.get('split')} split: {inside}{count(plan.get('tasks'), 'task')}. "
        f"{count(plan.get('episodes'), 'episode')} of {drawn}, seed {plan.get('seed')}. Intervals are 95 %, over episodes."
    )
    parts = [tag("p", "kshot: few-shot evaluation", class_="kicker"), tag("h1", _unbroken(found.headline()))]
    parts += [tag("p", _unbroken(line), class_="lead") for line in found.lead()]
    parts.append(tag("p", protocol, class_="protocol"))
    warnings = [tag("li", text) for text in found.report.get("warnings") or ()]
    if warnings:
        parts.append(tag("aside", tag("h2", "Before you rely on these figures"), tag("ul", *warnings), class_="warnings"))
    return tag("header", *parts)


def cards(found: Findings) -> Html:
    """Return the key numbers."""
    if found.chosen is None:
        return Html()
    row, shots, boxes = found.row(found.main, found.chosen), found.name(found.chosen), []

    def card(title: str, figure: object, unit: str, detail: str, kind: str = "") -> None:
        shown = tag("dd", figure, tag("small", f" {unit}"), class_=f"number {kind}".strip())
        boxes.append(tag("div", tag("dt", title), shown, tag("dd", detail.replace("± ", "±\u00a0"), class_="detail")))

    ci95 = number(row.get("ci95"))
    width = "no interval" if math.isnan(ci95) else f"± {100 * ci95:.1f} points"
    card(f"{found.title}, {shots}", percent(number(row["accuracy"])), "%", f"{width}, {count(row.get('episodes'), 'episode')}")
    for pair in found.pairs(found.chosen)[:1]:
        difference, half = number(pair["difference"]), number(pair.get("ci95"))
        gain, _, half_text = points(difference, half).partition(" ± ")
        kind = verdict(difference, half)
        against = f"{_VERDICTS[kind]} {'than' if kind in {'better', 'worse'} else 'against'} {pair['baseline']}"
        card("Versus best baseline", gain, "points", against + (f", ± {half_text}" if half_text else ""), kind)
    if not math.isnan(number(row.get("adapt_seconds_median"))):
        time, unit = seconds(number(row["adapt_seconds_median"])).rsplit(" ", 1)
        card("Time to adapt", time, unit, "median, from support texts to classifier")
    if not math.isnan(number(row.get("macro_f1"))):
        both = f"precision {percent(number(row.get('macro_precision')))}, recall {percent(number(row.get('macro_recall')))}"
        card(f"Macro F1{found.of_words}", percent(number(row["macro_f1"])), "%", both)
    weakest = min(found.of_main("labels"), key=lambda label: rank(label.get("f1")), default=None)
    if weakest is not None:
        card(
            f"Weakest label, F1{found.of_words}",
            percent(number(weakest.get("f1"))),
            "%",
            f"{weakest['label']} ({weakest['task']})",
        )
    return tag("dl", *boxes, class_="cards")


def accuracies(found: Findings) -> Html:
    """Return the plot and the table of methods by shots."""
    if found.chosen is None:
        return Html()
    bars = []
    for method in found.methods:
        for key in found.settings:
            row = found.row(method, key)
            if row:
                value, ci95 = number(row.get("accuracy")), number(row.get("ci95"))
                bars.append(plots.Bar(method, found.name(key), value, ci95, method == found.main))
    ways = {key[1] for key in found.settings}
    chance = (
        f" Guessing would reach {100 / found.chosen[1]:.3g} %."
        if len(ways) == 1 and found.metric == "accuracy" and found.chosen[1]
        else ""
    )
    caption = f"Mean {found.metric} over episodes; the line is its 95 % interval.{chance}"
    drawn = figure(plots.accuracy(bars, title=found.title), caption, beside=True)
    fewer = len({row.get("episodes") for row in found.rows}) > 1
    heads = [f"{found.title}, %", "Adapts in"] + ["Episodes"] * fewer
    body, scores = [], []
    for method in found.methods:
        cells: list[object] = []
        more: list[object] = []
        for key in found.settings:
            row = found.row(method, key)
            best = max(rank(found.row(other, key).get("accuracy"), absent=-1) for other in found.methods)
            text = percent(number(row.get("accuracy")), number(row.get("ci95")))
            cells.append(tag("b", text) if number(row.get("accuracy")) == best else text)
            cells.append(seconds(number(row.get("adapt_seconds_median"))))
            cells += [row.get("episodes") or "–"] * fewer
            more += [percent(number(row.get(f"macro_{name}"))) for name in ("precision", "recall", "f1")]
        body.append((method, cells))
        scores.append((method, more))
    groups = [found.name(key) for key in found.settings]
    about = "Bold is the highest mean." * (len(found.methods) > 1) + (
        " Means over different episodes do not compare; the paired differences do." * fewer
    )
    macro = table("Method", ["Precision", "Recall", "F1"], scores, groups, found.main)
    labelled = any("macro_f1" in row for row in found.rows)
    return section(
        found.title,
        about,
        drawn,
        table("Method", heads, body, groups, found.main),
        folded(f"Macro-averaged precision, recall and F1{found.of_words}, %", macro) if labelled else Html(),
    )


def differences(found: Findings) -> Html:
    """Return the paired differences to the baselines."""
    listed = [(key, pair) for key in found.settings for pair in found.pairs(key)]
    if not listed:
        return Html()
    reach = [abs(number(pair["difference"])) + float(np.nan_to_num(number(pair.get("ci95")))) for _, pair in listed]
    # one hopeless baseline must not squeeze the others' intervals into dots
    limit = min(np.nanmax(reach), 3 * np.nanmedian(reach)) or 0.01
    body: list[tuple[str, list[object]]] = []
    more: list[tuple[str, list[object]]] = []
    for key, pair in listed:
        difference, ci95 = number(pair["difference"]), number(pair.get("ci95"))
        kind = verdict(difference, ci95)
        drawn = Html(plots.interval(difference, ci95, limit))
        mark = tag("span", _VERDICTS[kind], class_="unclear" if kind == "unknown" else kind)
        cells = [found.name(key), points(difference, ci95), mark, drawn, pair.get("episodes") or "–"]
        within = body if key == found.chosen or len(listed) <= 2 * _LONG else more
        within.append((str(pair["baseline"]), cells))
    about = (
        f"{found.title} of {found.main} minus a baseline's, on the same episodes, in percentage points. ▲ and ▼ mark intervals "
        "that exclude zero; ○ marks those from which no difference can be told."
    )
    heads = ["Setting", "Difference", "Verdict", "95 % interval", "Episodes"]
    rest = [folded(f"{len(more)} more differences, in other settings", table("Baseline", heads, more))] if more else []
    return section("Differences from the baselines", about, table("Baseline", heads, body), *rest)


def training(found: Findings) -> Html:
    """Return the curves of meta-training."""
    record = found.report.get("training") or {}
    history = record.get("history") or []
    if not history:
        return Html()
    best = record.get("best_step") or None
    kept = f" The dashed line marks step {best}, whose parameters were kept." if best else ""
    caption = f"Light: the loss of every step; strong: its moving average. The band is the 95 % interval of validation.{kept}"
    if not any("validation" in row for row in history):
        caption = "Light: the loss of every step; strong: its moving average. No validation was made."
    return section("Meta-training", "", figure(plots.training(history, best), caption, beside=True))


def maps(found: Findings) -> Html:
    """Return the maps of held-out tasks before and after meta-training."""
    drawn = []
    for index, item in enumerate(found.report.get("map") or []):
        if not item["points"]:
            continue
        signs = [plots.hue(label) for label in range(len(item["labels"]))]
        entries = [
            tag("li", tag("span", sign, style=f"color: {colour}", aria_hidden="true"), label)
            for (colour, sign), label in zip(signs, item["labels"], strict=True)
        ]
        caption = f"{len(item['points'])} texts where the encoder placed them before, and where it places them after."
        pair = [
            tag(
                "div",
                tag("p", f"{when.capitalize()} meta-training"),
                Html(plots.embedding_map(item["points"], when, f"map-{index}-{when}")),
            )
            for when in ("before", "after")
        ]
        drawn.append(figure(tag("div", *pair, class_="pair"), caption, str(item["task"]), tag("ul", *entries, class_="legend")))
    about = "Each sign is a text; those of one label should lie together. Only neighbourhood means anything, not the axes."
    return section("What meta-training changed", about, *first(drawn, "maps", _SHOWN)) if drawn else Html()


def confusions(found: Findings) -> Html:
    """Return the confusion matrices of the main method."""
    drawn = []
    for index, item in enumerate(found.of_main("confusion")):
        counts = np.nan_to_num(np.array(item["matrix"], float)).reshape(len(item["labels"]), len(item["labels"]))
        labels, all_labels = [str(label) for label in item["labels"]], len(item["labels"])
        caption = _mistakes(labels, counts)
        if all_labels > _LABELS:
            errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
            kept = np.sort(np.argsort(-errors, kind="stable")[:_LABELS])
            labels, counts = [labels[i] for i in kept], counts[np.ix_(kept, kept)]
            caption += f" Shown are the {_LABELS} of {all_labels} labels with the most mistakes."
        drawn.append(figure(plots.confusion(labels, counts.tolist(), f"confusion-{index}"), caption, str(item["task"])))
    about = "Rows are the true labels, columns the predicted ones; a cell is the deeper the larger its share of the row."
    return section("Confusions", about, *first(drawn, "matrices", _SHOWN)) if drawn else Html()


def _mistakes(labels: Sequence[str], counts: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    worst = [divmod(int(place), len(labels)) for place in np.argsort(-shares, axis=None, kind="stable")[:3]]
    told = [
        f"{labels[i]} for {labels[j]} ({100 * shares[i, j]:.{0 if shares[i, j] >= 0.01 else 1}f}\u00a0%)"
        for i, j in worst
        if shares[i, j] > 0
    ]
    return f"Most often mistaken: {'; '.join(told)}." if told else "No mistakes."


def by_task(found: Findings) -> Html:
    """Return the accuracies by task, the weakest first."""
    listed = found.report.get("tasks") or []
    cells = {(row["task"], row["shots"], row["method"]): row for row in listed}
    groups = list(dict.fromkeys((row["task"], row["shots"]) for row in listed))
    many = len({task for task, _ in groups})
    if many < 2:
        return Html()
    groups.sort(key=lambda group: (group[1] or 0, rank(cells.get((*group, found.main), {}).get("accuracy"))))
    body = []
    for task, shots in groups:
        rows: list[Row] = [cells.get((task, shots, method), {}) for method in found.methods]
        values = [percent(number(row.get("accuracy")), number(row.get("ci95"))) for row in rows]
        body.append((str(task), [count(shots, "shot"), *values]))
    listing = table("Task", ["Shots", *found.methods], body)
    summary = f"{count(many, 'task')}, {found.metric} in %, the weakest first"
    return section("Task by task", "", folded(summary, listing, is_open=len(body) <= _LONG))


def by_label(found: Findings) -> Html:
    """Return precision, recall and F1 by label of the main method, the weakest first."""
    listed = sorted(found.of_main("labels"), key=lambda row: rank(row.get("f1")))
    if not listed:
        return Html()
    body = []
    for row in listed:
        f1 = number(row.get("f1"))
        bar = tag("span", percent(f1), class_="bar", style=f"--share: {0 if math.isnan(f1) else 100 * f1:.0f}%")
        figures = [percent(number(row.get(name))) for name in ("precision", "recall")]
        body.append((str(row["label"]), [row["task"], *figures, bar, row.get("queries") or "–"]))
    listing = table("Label", ["Task", "Precision, %", "Recall, %", "F1, %", "Queries"], body)
    summary = f"{count(len(listed), 'label')} at {count(listed[0]['shots'], 'shot')}, the lowest F1{found.of_words} first"
    return section("Label by label", "", folded(summary, listing, is_open=len(body) <= _LONG))


def by_type(found: Findings) -> Html:
    """Return precision, recall and F1 of entities by their type, and of all types together."""
    listed = found.of_main("entities")
    if not listed:
        return Html()
    body: list[tuple[str, list[object]]] = []
    for row in listed:
        figures: list[object] = [percent(number(row.get(name))) for name in ("precision", "recall", "f1")]
        name = f"all of {row['task']}" if row["type"] == "micro" else str(row["type"])
        body.append((name, [row["task"], *figures, row["support"]]))
    listing = table("Type", ["Task", "Precision, %", "Recall, %", "F1, %", "Entities"], body)
    about = "An entity is found where its first and last word and its type are right. Counts are pooled over episodes."
    return section("Entities by type", about, folded(f"{len(body)} rows", listing, is_open=len(body) <= 2 * _LONG))


def exact_match(found: Findings) -> Html:
    """Return the share of answers that are right to the letter, of kinds that answer questions."""
    rows = [row for row in found.rows if "exact_match" in row]
    if not rows:
        return Html()
    body = [(str(row["method"]), [row["shots"], percent(number(row["exact_match"]))]) for row in rows]
    about = "The share of answers that are one of those given, up to case, articles and signs."
    return section("Exact match", about, table("Method", ["Examples", "Exact match, %"], body))


def perplexity(found: Findings) -> Html:
    """Return perplexity and bits a byte, of kinds that predict texts."""
    rows = [row for row in found.rows if "perplexity" in row]
    if not rows:
        return Html()
    body = []
    for row in rows:
        figures: list[object] = [row["shots"], f"{number(row['perplexity']):.2f}", f"{number(row['bits_per_byte']):.3f}"]
        body.append((str(row["method"]), figures))
    listing = table("Method", ["Examples", "Perplexity", "Bits a byte"], body)
    about = "Of all episodes' tokens together. The likelihood above is the mean over episodes of one over the perplexity."
    return section("Perplexity", about, listing)


def provenance(found: Findings) -> Html:
    """Return how the figures came to be."""
    run, report = found.report["run"], found.report
    facts = {
        "Algorithm": run.get("algorithm"),
        "Options": ", ".join(f"{key} = {value}" for key, value in (run.get("options") or {}).items()) or "defaults",
        "Backbone": run.get("backbone"),
        "Run's fingerprint": run.get("fingerprint"),
        "Measured": report.get("created"),
        "kshot": report.get("kshot"),
    }
    listed = tag(
        "dl",
        *(tag(name, text or "–") for fact in facts.items() for name, text in zip(("dt", "dd"), fact, strict=True)),
        class_="facts",
    )
    note = "All figures, unrounded, are in report.json beside this page."
    return tag("footer", tag("details", tag("summary", "How these figures came to be"), listed), note)
