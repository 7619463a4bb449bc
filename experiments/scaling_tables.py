"""The results of ``scaling.py`` as tables, as sentences and as a picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.interconnects import all_reduce_seconds

HEADINGS = "scaling  mapping    devices  batch  ms a step [quartiles]   added  throughput"
Result = dict[str, Any]  # all that scaling.py writes as JSON


# Sentences


def statement(result: Result) -> list[str]:
    """What was measured and what it means, in sentences."""
    settings = result["settings"]
    said = [*_of_measurement(result), *map(_of_invariance, result["invariance"].items())]
    if result["machine"]["simulated"] and result["measurements"]:
        said += _of_simulation(result["machine"]["cpus"])
    said.append(
        f"The estimate is arithmetic: {settings['utilization']:.0%} of the vendors' peak in "
        f"{settings['precision']}, one ring, {settings['latency'] * 1e6:g} µs a hop, no computing "
        "while communicating. Small models reach less than that share of the peak, and a step has "
        "costs that neither term counts."
    )
    return said


def _of_measurement(result: Result) -> list[str]:
    if not result["measurements"]:
        return []
    machine, settings = result["machine"], result["settings"]
    kind = machine["device_kind"]
    if machine["simulated"]:
        kind = f"simulated devices on {machine['cpus']} CPU cores"
    return [
        f"Measured: the time of a training step on {', '.join(map(str, settings['devices']))} "
        f"{kind}, medians of {settings['rounds']} interleaved rounds of {settings['steps']} steps, "
        "next to the fewest devices in the same round."
    ]


def _of_invariance(item: tuple[str, dict[str, float]]) -> str:
    name, far = item
    return (
        f"Over {far['steps']} steps of Adam, the {name} model's losses differ by at most "
        f"{far['loss']:.1e} (relative) between device counts and mappings, its parameters after "
        f"them by {far['parameters']:.1e}."
    )


def _of_simulation(cpus: int) -> list[str]:
    return [
        "What simulation can say, exactly: which program every device runs, how many bytes it "
        "sends in a step, and that the result does not depend on the number of devices.",
        f"What it cannot say: how fast a pod is. Simulated devices share {cpus} cores and one "
        "memory, each makes the whole update of all parameters, and a message is a copy in "
        "memory. The best to hope for here is the throughput of one device, not n times that; the "
        "added time is what tests on such a machine pay, and measures no interconnect.",
    ]


# Tables


def show(result: Result) -> None:
    """Prints the tables and the statement."""
    if result["measurements"]:
        print(f"\n{'model':8}{HEADINGS}")
    for row in result["measurements"]:
        print(_measured_line(row))
    for name, sent in result["communication"].items():
        print(
            f"{name} model on {sent['devices']} devices: {sent['all_reduces']} all-reduces in a "
            f"step, of {sent['bytes']:,} bytes; {sent['gradient_bytes']:,} of them are gradients"
        )
    larger, settings = result["models"]["larger"], result["settings"]
    print(
        f"\nOn paper, in {settings['precision']}: {larger['parameters']:,} parameters, "
        f"{larger['step_flops']:.3g} operations in a step of {settings['global_batch']} examples.\n"
        "The all-reduce takes as long as computing on n* devices for this global batch, or with "
        "b* examples on each.\n"
        "                          TFLOP/s   GB/s      n*  b* (n = 8)  b* (n = 256)"
    )
    for row in result["estimate"]:
        print(_estimated_line(row))
    print("\n" + "\n".join(result["statement"]))


def _measured_line(row: dict[str, Any]) -> str:
    step, added, speed = row["step_ms"], row["added_ms"]["median"], row["throughput"]["median"]
    place = f"{row['model']:8}{row['scaling']:9}{row['mapping']:11}{row['devices']:7}"
    quartiles = f"[{step['q25']:.2f}, {step['q75']:.2f}]"
    times = f"{step['median']:6.2f} {quartiles:16}{added:7.2f}{speed:12.2f}"
    return f"{place}{row['batch']:7}  {times}"


def _estimated_line(row: dict[str, Any]) -> str:
    n, most = row["break_even_devices"], row["most_devices"]
    devices = f"{n:.1f}" if most is None or n <= most else f"> {most}"
    small, large = (
        f"{batch:,.0f}" if batch else "-"
        for batch in (row["break_even_batch_8"], row["break_even_batch_256"])
    )
    rates = f"{row['peak_flops'] / 1e12:7,.0f}{row['bandwidth'] / 1e9:7,.0f}"
    return f"{row['hardware']:26}{rates}{devices:>8}{small:>12}{large:>14}"


# Picture


def draw(path: Path, result: Result) -> None:
    """Writes the figure: strong scaling, weak scaling, and the estimate."""
    from matplotlib.figure import Figure

    kinds = ("strong", "weak") if result["measurements"] else ()
    figure = Figure(figsize=(3.5 * (len(kinds) + 1), 3.3), layout="constrained")
    *measured, estimated = np.ravel(figure.subplots(1, len(kinds) + 1))
    for axes, kind in zip(measured, kinds, strict=True):
        _draw_measured(axes, kind, result)
    _draw_estimate(estimated, result)
    figure.savefig(path, dpi=150)


def _draw_measured(axes: Any, kind: str, result: Result) -> None:
    """Medians and quartiles, over grey lines of what no cost at all would be."""
    from matplotlib.ticker import LogLocator

    settings, simulated = result["settings"], result["machine"]["simulated"]
    for (m, name), (k, mapping) in itertools.product(
        enumerate(result["models"]), enumerate(settings["mappings"])
    ):
        rows = [
            row
            for row in result["measurements"]
            if (row["scaling"], row["model"]) == (kind, name) and row["mapping"] in (mapping, "jit")
        ]
        n, batch = (np.array([row[field] for row in rows]) for field in ("devices", "batch"))
        low, middle, high = (
            np.array([row["step_ms"][key] for row in rows]) for key in ("q25", "median", "q75")
        )
        style = {
            "color": f"C{m}",
            "ls": ("-", ":", "--")[k],
            "marker": "os^"[k],
            "ms": 4,
            "lw": 1.2,
        }
        label = f"{name}, {mapping}"
        axes.errorbar(n, middle, [middle - low, high - middle], label=label, capsize=2, **style)
        work = batch if simulated else batch / n  # of the cores that do it
        ideal, once = middle[0] * work / work[0], None if m or k else "no overhead"
        axes.plot(n, ideal, color="0.7", lw=0.8, zorder=0, label=once)
    each = f"{settings['per_device_batch']} per device"
    of_batch = f"{settings['global_batch']} in all" if kind == "strong" else each
    axes.set_title(f"{kind} scaling: a batch of {of_batch}", fontsize=9)
    label = "simulated devices" if simulated else "devices"
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="ms per step")
    axes.set_xticks(settings["devices"], settings["devices"])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    if kind == "strong":
        axes.legend(fontsize=7, frameon=False)


def _draw_estimate(axes: Any, result: Result) -> None:
    """The share of a step that is not communication, t_compute / (t_compute + t_all_reduce)."""
    settings, model = result["settings"], result["models"]["larger"]
    size, latency = 4 * model["parameters"], settings["latency"]
    for i, row in enumerate(result["estimate"]):
        n = np.geomspace(1, min(row["most_devices"] or 256, 256), 200)
        compute = model["step_flops"] / (settings["utilization"] * row["peak_flops"] * n)
        reduce = all_reduce_seconds(n, size, row["bandwidth"], latency)  # type: ignore[arg-type]
        style = {"color": f"C{i}", "ls": "--" if row["most_devices"] == 8 else "-", "lw": 1.2}
        axes.plot(n, compute / (compute + reduce), label=row["hardware"], **style)
    axes.axhline(0.5, color="0.7", lw=0.8, zorder=0)
    millions = f"{model['parameters'] / 1e6:.3g} M parameters"
    axes.set_title(f"on paper: {millions}, batch of {settings['global_batch']}", fontsize=9)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="devices", ylabel="share of a step that computes")
    axes.set_xticks([1, 4, 16, 64, 256], [1, 4, 16, 64, 256])
    axes.minorticks_off()
    axes.legend(fontsize=6.5, frameon=False)
