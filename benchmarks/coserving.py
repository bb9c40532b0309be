"""Training beside inference: what training gets, and what requests keep.

Three parts (`--parts`), each for an encoder and, with `generation_` in front of every name, for generated text:
`units`: in this process, without a worker. A micro-batch by units over one forward and backward through the whole model, its time
with all activations kept (`units_over_monolithic`) and with all computed again (`recompute_over_monolithic`), and what the latter
keeps (`saved_activations`: bytes at most, layer inputs included, over those of the whole). Two trainings of weights 1 and 2 by
units in turn: `weights_error`, |part of the device seconds / promised - 1|; `prediction_error_p50`: of |predicted / taken - 1|,
all units. `samples.checkpoint_device_share`: of the device thread's time, for checkpoints as far apart as a worker makes them.
`simulated`: a worker's own device task on made-up time (`coserving_arms` says which ways to train). Load in % of the highest rate
at which 99 % are in time without training. `share_at_N`: units' part of device time over that of training alone, spend .8;
`attainment_loss_worst`: how much less of all requests (of all gaps between tokens) is in time than with inference only, the worst
load, in parts of 1; `share_over_best_rival`: at 50 %, over the best other way that loses no more than a point.
`generation_over_split_at_N`: training's share over that of a quarter of the device, as FlexLLM compares; whether each attains, by
every gap and by a text's mean, is in `config.simulated`.
`real`: two workers of one backbone on one core, one of them with `worker.tuning.enabled`; broker, gateway and callers on the
other. `no_job_throughput`, `no_job_p99`: with it and no job over without it. `real_share_at_N`, `real_attainment_loss_worst`: as
above, spend .8. Beside it (`samples.real_beside_*`) a worker and a process of `fmplex fit`, niced, on the same core;
`memory_over_separate`: the most unique memory of the one over that of the two.

    python -m benchmarks.coserving [--json] [--rounds N] [--quick] [--parts units simulated real]

takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import coserving_arms as arms
from benchmarks.coserving_arms import Seen
from benchmarks.harness import Benchmark, Ratios, Report, main
from benchmarks.processes import LineProcess
from benchmarks.stopping import run_async

_PARTS = ("units", "simulated", "real")
_KINDS = {"encoder": "", "generation": "generation_"}
_LOADS, _QUICK_LOADS = (20, 40, 50, 60, 80, 100), (20, 50, 80)
_GOALS = (20, 50, 80)
_SPLIT = "static_25"
_SPLIT_AT = (20, 80)
_LOSES = 0.01  # at most, who attains


# ---- the simulated device ----


def _simulate(report: Report) -> None:
    """Run all ways at all loads, for both kinds at the same time."""
    loads, seconds = (_QUICK_LOADS, 1.5) if report.options.quick else (_LOADS, 20.0)
    with ExitStack() as stack, ThreadPoolExecutor(len(_KINDS)) as threads:
        ways = {kind: stack.enter_context(LineProcess("benchmarks.coserving_arms")) for kind in _KINDS}
        lines = [json.dumps([kind, loads, seconds]) for kind in _KINDS]
        answers = list(threads.map(LineProcess.ask, ways.values(), lines))
    found = [{name: Seen(*values) for name, values in json.loads(answer).items()} for answer in answers]
    config: dict[str, Any] = {"loads": list(loads), "seconds": seconds}
    for (kind, prefix), seen in zip(_KINDS.items(), found, strict=True):
        config[kind] = {name: value._asdict() for name, value in seen.items()}
        alone = seen.pop("training").share
        for name, value in seen.items():
            report.add(
                {
                    f"{prefix}{name}_share": value.share / alone,
                    f"{prefix}{name}_attained": value.attained,
                    f"{prefix}{name}_firsts": value.firsts,
                    f"{prefix}{name}_p50_s": value.p50_s,
                }
            )
    report.config["simulated"] = config


def _attains(report: Report, prefix: str, name: str, load: int) -> bool:
    """Tell whether a way keeps what inference alone keeps: of all requests or gaps, and of first tokens."""
    return all(
        report.samples[f"{prefix}{name}_at_{load}_{what}"][0]
        >= report.samples[f"{prefix}inference_at_{load}_{what}"][0] - _LOSES
        for what in ("attained", "firsts")
    )


def _over_rivals(report: Report, prefix: str, load: int) -> list[float]:
    """Return our share over that of the best other way that attains; empty if none does, or nothing was measured."""
    ours = report.samples.get(f"{prefix}spend_80_at_{load}_share")
    if not ours:
        return []
    shares = [
        report.samples[f"{prefix}{name}_at_{load}_share"][0]
        for name in arms.RIVALS
        if _attains(report, prefix, name, load)
    ]
    best = max(shares, default=0.0)
    return [ours[0] / best] if best > 0 else []


def _of_simulated(report: Report, prefix: str) -> Ratios:
    samples = report.samples
    loads = report.config.get("simulated", {}).get("loads", ())
    lost = [
        samples[f"{prefix}inference_at_{load}_attained"][0] - samples[f"{prefix}spend_80_at_{load}_attained"][0]
        for load in loads
    ]
    out = {f"share_at_{load}": samples.get(f"{prefix}spend_80_at_{load}_share", []) for load in _GOALS}
    out |= {
        "attainment_loss_worst": [max(lost)] if lost else [],
        "share_over_best_rival": _over_rivals(report, prefix, 50),
    }
    if prefix:
        out |= {
            f"over_split_at_{load}": report.ratio(
                f"{prefix}spend_80_at_{load}_share", f"{prefix}{_SPLIT}_at_{load}_share"
            )
            for load in _SPLIT_AT
        }
    return out


# ---- real compute ----


def _compute(report: Report, parts: Sequence[str]) -> None:
    """Measure units, and whole workers, of small models with random weights."""
    from benchmarks import coserving_kinds, coserving_real, coserving_units  # torch, which the simulation does not need

    quick = report.options.quick
    sizes = coserving_units.sizes(quick)
    kinds: list[coserving_kinds.Kind] = [coserving_kinds.Encoder(), coserving_kinds.Generator()]
    with TemporaryDirectory(prefix="fmplex-coserving-") as place:
        models = {
            kind.name: {name: kind.save(Path(place) / kind.name / name, size) for name, size in sizes.items()}
            for kind in kinds
        }
        for kind in kinds if "units" in parts else []:
            served, deep = models[kind.name]["model"], models[kind.name]["deep"]
            coserving_units.measure(report, kind, served, deep, _KINDS[kind.name])
        for kind in kinds[: 1 if quick else 2] if "real" in parts else []:  # a second fleet takes as long as all else
            run_async(coserving_real.measure(report, kind, models[kind.name]["model"], _KINDS[kind.name]))
    report.config["models"] = {name: size._asdict() for name, size in sizes.items()}


def _of_units(report: Report, prefix: str) -> Ratios:
    return {
        "units_over_monolithic": report.ratio(f"{prefix}units_s", f"{prefix}monolithic_s"),
        "recompute_over_monolithic": report.ratio(f"{prefix}recompute_s", f"{prefix}monolithic_s"),
        **{
            name: report.samples.get(f"{prefix}{name}", [])
            for name in ("saved_activations", "prediction_error_p50", "weights_error")
        },
    }


def _of_real(report: Report, prefix: str) -> Ratios:
    real = f"{prefix}real_"
    loads = [load for load in _GOALS if f"{real}ours_at_{load}_share" in report.samples]
    lost = [
        [
            without - with_it
            for without, with_it in zip(
                report.samples.get(f"{real}inference_at_{load}_attained", ()),
                report.samples.get(f"{real}ours_at_{load}_attained", ()),
                strict=False,
            )
        ]
        for load in loads
    ]
    return {
        "no_job_throughput": report.ratio(f"{real}no_job_tuned_per_s", f"{real}no_job_plain_per_s"),
        "no_job_p99": report.ratio(f"{real}no_job_tuned_p99_s", f"{real}no_job_plain_p99_s"),
        "memory_over_separate": report.ratio(f"{real}memory_ours_bytes", f"{real}memory_separate_bytes"),
        "real_attainment_loss_worst": max(lost, key=statistics.median, default=[]),
        **{f"real_share_at_{load}": report.ratio(f"{real}ours_at_{load}_share", f"{real}ours_alone") for load in loads},
    }


# ---- all of it ----


def _parts(report: Report) -> Sequence[str]:
    """Return what is to be measured. Workers, gateway and `fmplex fit` take longer to start than all else of the quick form."""
    given: Sequence[str] | None = report.options.more.parts
    return given or (_PARTS[:2] if report.options.quick else _PARTS)


def run(report: Report) -> None:
    """Measure the parts that were asked for."""
    parts = _parts(report)
    report.config |= {"parts": list(parts), "rounds": report.options.rounds, "loads": _GOALS, "threads": 1}
    if "simulated" in parts:
        _simulate(report)
    if "units" in parts or "real" in parts:
        _compute(report, parts)


def ratios(report: Report) -> Ratios:
    """Say for each kind what training gets and requests keep; of the parts that were asked for."""
    parts = _parts(report)
    of = {"units": _of_units, "simulated": _of_simulated, "real": _of_real}
    out: Ratios = {}
    for prefix in _KINDS.values():
        for part in parts:
            if not (part == "real" and prefix and report.options.quick):
                out |= {f"{prefix}{name}": values for name, values in of[part](report, prefix).items()}
    return out


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parts", choices=_PARTS, nargs="+", help="what to measure (default: all, --quick all but real)"
    )


if __name__ == "__main__":
    main(Benchmark("coserving", run, ratios, __doc__ or "", rounds=4, arguments=_arguments))
