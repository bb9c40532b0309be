"""Draw what the benchmarks printed: `python -m benchmarks.plot benchmarks/results/*.json --out docs/img`.

One picture a benchmark, one panel a question, one bar a way to do it: the median over the rounds, and a dot for each round.
`load_curves` has lines instead: the median over the rounds, and a band from quartile to quartile. `coserving`: a point for each
way to train, by what training gets and what requests lose.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

from benchmarks.coserving_plot import draw_coserving
from benchmarks.curves import CURVES, save

_OURS, _OTHERS = "#2f6fde", "#b0b7c3"


class Panel(NamedTuple):
    """`bars`: label → sample; those whose label begins with "FMplex" are ours. Values are multiplied with `factor`."""

    title: str
    bars: Mapping[str, str]
    factor: float = 1.0


_RIVALS = {"process a task": "processes", "copy a task": "colocated", "one task a pass": "one_at_a_time"}


def _against(title: str, theirs: str, ours: str, factor: float = 1.0) -> Panel:
    """Set each rival beside FMplex under the same load."""
    bars: dict[str, str] = {}
    for label, rival in _RIVALS.items():
        bars |= {label: theirs.format(rival), f"FMplex vs {label}": ours.format(rival)}
    return Panel(title, bars, factor)


PANELS: dict[str, tuple[Panel, ...]] = {
    "sharing": (
        _against("mean latency at 50 %, ms", "latency_50_{}_mean_s", "latency_50_ours_vs_{}_mean_s", 1e3),
        _against("mean latency at 90 %, ms", "latency_90_{}_mean_s", "latency_90_ours_vs_{}_mean_s", 1e3),
        _against("maximum rate, jobs/s", "max_rate_{}_per_s", "max_rate_ours_vs_{}_per_s"),
        _against("unique memory, MiB", "memory_{}_bytes", "memory_ours_vs_{}_bytes", 2.0**-20),
    ),
    "overhead": (
        Panel("BERT-base, jobs/s", {"bare loop": "bert_base_bare_per_s", "FMplex worker": "bert_base_worker_per_s"}),
        Panel("MiniLM, jobs/s", {"bare loop": "minilm_bare_per_s", "FMplex worker": "minilm_worker_per_s"}),
    ),
    "residency": (
        Panel("jobs/s", {"all resident": "resident_jobs_per_s", "FMplex, room for 100": "budget_jobs_per_s"}),
        Panel("p50 of resident vFMs, ms", {"all resident": "resident_p50_ms", "FMplex, room for 100": "budget_p50_ms"}),
        Panel("p99 of resident vFMs, ms", {"all resident": "resident_p99_ms", "FMplex, room for 100": "budget_p99_ms"}),
    ),
    "shares": (
        Panel(
            "received / promised - 1, %: worst of 8 vFMs",
            {"FMplex, device seconds": "worst_device", "tokens": "worst_units", "as claimed": "worst_claims"}, 100.0,
        ),
        Panel("… by weight", {f"FMplex, weight {w}": f"error_weight_{w}" for w in range(1, 9)}, 100.0),
        Panel(
            "… by length of the texts",
            {f"FMplex, {n} tokens": f"error_tokens_{n}" for n in (8, 13, 20, 32, 50, 79, 126, 200)}, 100.0,
        ),
    ),
    "generation": tuple(
        Panel(
            f"{kind} prompts, tokens/s",
            {
                "generate, one at a time": f"{kind}_one_tokens_per_s", "generate, batches of 8": f"{kind}_static_tokens_per_s",
                "continuous batching": f"{kind}_cb_tokens_per_s", "FMplex": f"{kind}_fmplex_tokens_per_s",
            },
        )
        for kind in ("short", "long")
    ),
    "generation_fairness": (
        Panel(
            "chat's time from token to token, p99, ms",
            {
                "a full pass": "drr_budget_s", "FMplex": "drr_inter_token_p99_s",
                "first in, first out": "fifo_inter_token_p99_s",
            }, 1e3,
        ),
        Panel(
            "chat's time to first token, p99, ms",
            {"bound": "drr_ttft_bound_s", "FMplex": "drr_ttft_p99_s", "first in, first out": "fifo_ttft_p99_s"}, 1e3,
        ),
        Panel(
            "essays, tokens/s",
            {"FMplex": "drr_essays_tokens_per_s", "first in, first out": "fifo_essays_tokens_per_s"},
        ),
    ),
    "peers": (
        Panel(
            "requests/s",
            {
                "LitServe": "litserve_requests_per_s", "infinity": "infinity_requests_per_s", "mosec": "mosec_requests_per_s",
                "FMplex": "fmplex_plain_requests_per_s", "FMplex, 16 LoRAs": "fmplex_loras_requests_per_s",
            },
        ),
    ),
}  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the panels of one benchmark."""
    panels = PANELS[result["benchmark"]]
    figure, every = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axes, panel in zip(every[0], panels, strict=True):
        found = {label: result["samples"].get(name) for label, name in panel.bars.items()}
        shown = {label: [v * panel.factor for v in values] for label, values in found.items() if values}
        medians = [statistics.median(values) for values in shown.values()]
        colours = [_OURS if label.startswith("FMplex") else _OTHERS for label in shown]
        axes.barh(list(shown), medians, color=colours)
        for place, (values, median) in enumerate(zip(shown.values(), medians, strict=True)):
            axes.plot(values, [place] * len(values), ".", color="#222222", markersize=3)
            # Behind the last round's dot, which it would cover at the end of the bar.
            said = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
            axes.annotate(said, (max(values), place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_title(panel.title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, result, path)


def main() -> None:
    """Draw every result that has a picture."""
    parser = argparse.ArgumentParser(description="Draw what the benchmarks printed.")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files (`make bench` writes them)")
    parser.add_argument("--out", type=Path, default=Path("docs/img"), help="folder for the pictures")
    args = parser.parse_args()
    curves = CURVES | {"coserving": draw_coserving}
    for path in args.results:
        result = json.loads(path.read_text())
        picture = args.out / f"{path.stem}.png"
        if result["benchmark"] in curves:
            curves[result["benchmark"]](result, picture)
        elif result["benchmark"] in PANELS:
            draw(result, picture)


if __name__ == "__main__":
    main()
