"""What SkyPilot's plugins.yaml names: it registers the recovery strategy and its key of
`job_recovery`."""

from __future__ import annotations

from typing import Any

from sky.server.plugins import BasePlugin
from sky.utils import registry, schemas

from . import __version__


class XrunPlugin(BasePlugin):  # type: ignore[misc]  # sky has no types
    """Loads wherever SkyPilot reads tasks: its server, its executors and its controllers."""

    @property
    def name(self) -> str:
        """By which a launcher finds it."""
        return "xrun"

    @property
    def version(self) -> str:
        """Of this package."""
        return __version__

    def install(self, extension_context: Any) -> None:
        """See SkyPilot; several times in one process is as good as once."""
        from . import strategy  # takes the job controller's code along

        schemas.register_job_recovery_property(strategy.KEY, {"type": "object"})
        known = registry.JOBS_RECOVERY_STRATEGY_REGISTRY
        if strategy.NAME.lower() not in known:  # which writes names so
            known.type_register(name=strategy.NAME)(strategy.XrunStrategy)
