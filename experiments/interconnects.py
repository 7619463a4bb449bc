"""On paper: where the all-reduce of a training step takes as long as its computation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxvae import costs


class Link(NamedTuple):
    """How devices of a kind of ``costs.PEAK_FLOPS`` are joined."""

    kind: str
    # bytes per second that a ring through the devices carries past any point, in one direction
    bandwidth: float
    most: int | None  # devices that it joins
    memory: float  # bytes of a device


# Half of what the vendors call bidirectional. 400 Gb/s InfiniBand is 50 GB/s each way; a DGX H100
# has eight such ports for its eight GPUs, and NCCL leaves the node through all of them at once.
# Memory is what the vendors state for a device.
# Sources: docs.cloud.google.com/tpu/docs/v5e; docs.cloud.google.com/tpu/docs/v5p, the largest job;
# the datasheets of A100 and H100, of which a DGX has 8; the DGX H100 user guide, table 6.
LINKS = {
    "TPU v5e slice": Link("TPU v5e", 400e9 / 2, 256, 16e9),
    "TPU v5p slice": Link("TPU v5p", 1200e9 / 2, 6144, 95e9),
    "A100 SXM, NVLink": Link("NVIDIA A100-SXM4-80GB", 600e9 / 2, 8, 80e9),
    "H100 SXM, NVLink": Link("NVIDIA H100 80GB HBM3", 900e9 / 2, 8, 80e9),
    "H100 nodes, 8 x 400 Gb/s": Link("NVIDIA H100 80GB HBM3", 8 * 50e9, None, 80e9),
    "H100 nodes, 1 x 400 Gb/s": Link("NVIDIA H100 80GB HBM3", 50e9, None, 80e9),
}


def all_reduce_seconds(
    devices: float, size: float, bandwidth: float, latency: float = 0.0
) -> float:
    """Time of a ring all-reduce (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    t = 2 (n - 1) (V / (n W) + a), for V bytes on each of n devices, W bytes/s from each to the
    next, a seconds a hop.
    """
    return 2 * (devices - 1) * (size / (devices * bandwidth) + latency)


def break_even_devices(
    flops: float, size: float, speed: float, bandwidth: float, latency: float = 0.0
) -> float:
    """The number of devices n* on which an all-reduce takes as long as the computation.

    F / (n s) = 2 (n - 1) (V / (n W) + a) has the root
    n* = 1 + C / (v + a + sqrt((v + a)^2 + 2 a C)), with C = F / s and v = V / W. n* devices that do
    not compute while they communicate lose half of the time. More devices lose most of it.

    Args:
      flops: operations F in a step of the global batch.
      size: bytes V that each device sends.
      speed: operations s of a device in a second.
      bandwidth: bytes W of a link in a second.
      latency: seconds a of a hop.
    """
    compute, passage = flops / speed, size / bandwidth
    fixed = passage + latency
    return 1 + compute / (fixed + math.sqrt(fixed**2 + 2 * latency * compute))


def break_even_batch(
    devices: float, flops: float, size: float, speed: float, bandwidth: float, latency: float = 0.0
) -> float:
    """The examples per device b* whose computation takes as long as the all-reduce.

    b* = t s / f, for the f operations of a step for one example. Fully connected layers of P
    parameters have f = 6 P and V = 4 P. So on many devices without latency b* = 4 s / (3 W),
    whatever the model.

    Args:
      devices: how many there are.
      flops: operations f of a step for one example.
      size: bytes V that each device sends.
      speed: operations s of a device in a second.
      bandwidth: bytes W of a link in a second.
      latency: seconds a of a hop.
    """
    return all_reduce_seconds(devices, size, bandwidth, latency) * speed / flops


def estimates(settings: Any, flops: float, size: int) -> list[dict[str, Any]]:
    """A row for each of ``LINKS``: n* of the global batch, and b* on 8 and 256 devices.

    b* is None if the link does not join as many devices. ``flops`` counts a step of the global
    batch, and ``size`` is the gradient's size in bytes.
    """
    rows = []
    for name, link in LINKS.items():
        peak = costs.PEAK_FLOPS[link.kind][settings.precision]
        cost = size, settings.utilization * peak, link.bandwidth, settings.latency
        row = {
            "hardware": name,
            "peak_flops": peak,
            "bandwidth": link.bandwidth,
            "most_devices": link.most,
            "break_even_devices": break_even_devices(flops, *cost),
        }
        for devices in (8, 256):
            joined = link.most is None or devices <= link.most
            batch = break_even_batch(devices, flops / settings.global_batch, *cost)
            row[f"break_even_batch_{devices}"] = batch if joined else None
        rows.append(row)
    return rows
