"""Checkpoints: Orbax behind one thin door."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

METRIC = "metric"
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of a run: the newest two and the best one are kept, written in the background.

    A checkpoint holds the whole state, the sums of an unfinished report, and a metric of which the highest is best.
    Use it as a context manager, or call ``close``, which waits for what is being written.
    """

    def __init__(self, folder: str | os.PathLike):
        best = lambda metrics: metrics[METRIC]
        policy = ocp.checkpoint_managers.AnyPreservationPolicy(
            [
                ocp.checkpoint_managers.LatestN(2),
                ocp.checkpoint_managers.BestN(get_metric_fn=best, reverse=False, n=1),
            ]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=best, best_mode="max")
        handlers = {"state": ocp.StandardCheckpointHandler(), "totals": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options, item_handlers=handlers)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written, and lets go of the folder."""
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """All steps that are kept, in order."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the highest metric, or None."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, totals: dict[str, Any], metric: float) -> None:
        """Saves a state in the background; a step that is there already is left as it is."""
        if step in self.steps:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), totals=ocp.args.JsonSave(totals))
        self._manager.save(step, args=args, metrics={METRIC: float(metric)})

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state of ``step`` and the sums saved with it, with the structure and placement of ``like``.

        Raises ValueError where the checkpoint is of another model.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        self._check_model(step, target)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), totals=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["totals"]

    def _check_model(self, step: int, target: Any) -> None:
        """Compares paths and shapes before anything is read, which says more than a failed restore does."""
        saved = self._manager.item_metadata(step)["state"].tree
        shapes = lambda tree: {
            "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): tuple(leaf.shape)
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        then, now = shapes(saved), shapes(target)
        differing = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        if differing:
            first = differing[0]
            raise ValueError(
                f"the checkpoint of step {step} is of another model: {len(differing)} arrays differ, the first is "
                f"{first}, {then.get(first, 'absent')} in the checkpoint and {now.get(first, 'absent')} here"
            )
