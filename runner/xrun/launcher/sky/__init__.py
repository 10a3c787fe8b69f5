"""Clouds, by way of SkyPilot."""
