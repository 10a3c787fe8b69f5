"""xrun's plugin for SkyPilot: where a run goes next. See docs/decisions/0059."""

__version__ = "0.1.0"
