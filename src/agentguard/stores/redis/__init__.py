"""Counters in a Redis or Valkey, shared by the hosts of a fleet."""

from agentguard.stores.redis._urls import servers
from agentguard.stores.redis.store import RedisStore

__all__ = ["RedisStore", "servers"]
