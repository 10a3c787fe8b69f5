"""`Site`: the cluster with a Hub and a W&B, and a person who launches recipes/digits.yaml on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cluster.cluster import Cluster
from loopback.hub import Hub
from loopback.server import Refused
from loopback.wandb import Wandb

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
EPOCHS = "train.epochs=40"
"""920 steps: half of the recipe's, enough for two preemptions in mid-training."""
FREQUENT = {"XRUN_HUB_SPACING": "0", "XRUN_HUB_HOURLY": "1000000"}
"""A loopback Hub has no limit of commits, so a checkpoint can be committed every 100 steps, as the
recipe says."""


class Site:
    """A cluster, a Hub and a W&B, and a person who launches."""

    def __init__(self, cluster: Cluster, hub: Hub, wandb: Wandb) -> None:
        self.cluster, self.hub, self.wandb = cluster, hub, wandb
        self.secrets = [hub.environ()["HF_TOKEN"], wandb.environ()["WANDB_API_KEY"]]
        self.environment = (
            cluster.environment
            | hub.environ()
            | wandb.environ()
            | {"XRUN_HOME": str(cluster.root / "runs")}
        )

    def launch(
        self, run: str, *, nodes: int = 1, recipe: Path = RECIPE, epochs: str = EPOCHS
    ) -> None:
        """Launch a recipe as this run and leave it alone."""
        hardware = f"hardware={{any_of: [{{clouds: [slurm], spot: false, nodes: {nodes}}}]}}"
        settings = (
            hardware,
            f"checkpoint.store=hub://alice/{run}",
            "tracking.wandb={project: e2e, entity: alice}",
            epochs,
        )
        sets = [part for setting in settings for part in ("-s", setting)]
        self.xrun(str(recipe), "--run", run, "--yes", "--detach", "--no-rehearsal", *sets)

    def xrun(self, *arguments: str) -> str:
        """Run the `xrun` command as the person; what it printed."""
        return self.cluster.run(
            sys.executable, "-m", "xrun", *arguments, env=self.environment, cwd=RECIPE.parents[1]
        )

    def record(self, run: str) -> dict[str, Any]:
        """What is committed on the Hub now; empty before the first commit."""
        try:
            return dict(json.loads(self.hub.read(f"alice/{run}", "head.json", "state"))["record"])
        except Refused:
            return {}

    def committed(self, run: str) -> int:
        """The newest committed step; -1 if there is none."""
        return max(
            [manifest["step"] for manifest in self.record(run).get("checkpoints", [])], default=-1
        )

    def wait_for_step(self, run: str, step: int) -> None:
        """Wait until the run has committed this step in an attempt that is running."""
        self.cluster.until(
            run, lambda: self.committed(run) >= step, f"{run} committing step {step}", 600
        )

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The run's history at W&B."""
        return self.wandb.history("alice", "e2e", run)

    def weights(self, run: str) -> bytes:
        """The final weights, where people find them."""
        return self.hub.read(f"alice/{run}", "model.safetensors")
