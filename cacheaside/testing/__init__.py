"""What tests need: real servers that start, freeze, crash and go away on demand."""

from .servers import ClusterServer, ReplicaSet, Server, available

__all__ = ["ClusterServer", "ReplicaSet", "Server", "available"]
