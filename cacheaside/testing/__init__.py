"""What tests need: real servers that start, freeze, crash and go away on demand, and a clock that obeys.

``chaos`` has trouble for the network and for stores, ``contract`` what every store must answer.
"""

from .clock import FakeClock
from .clusters import ClusterServer
from .servers import ReplicaSet, Server, available

__all__ = ["ClusterServer", "FakeClock", "ReplicaSet", "Server", "available"]
