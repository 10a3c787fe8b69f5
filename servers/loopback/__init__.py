"""Loopback servers that the real clients accept: a Hugging Face Hub and a W&B, with faults on
demand."""
