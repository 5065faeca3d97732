"""The dashboards, one a module."""

from .coherence import coherence
from .namespace import namespace
from .overview import overview
from .toolkit import toolkit

__all__ = ["coherence", "namespace", "overview", "toolkit"]
