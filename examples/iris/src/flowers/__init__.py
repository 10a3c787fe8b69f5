"""What the components of this project share."""

from .measures import Standardised, by_organ
from .table import Table, read

__all__ = ["Standardised", "Table", "by_organ", "read"]
