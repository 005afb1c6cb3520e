"""What happened, on disk: the event log of every process of the host, and the way to read it."""

from agentguard.audit.reader import follow, read_events
from agentguard.audit.record import EventLog
from agentguard.audit.schema import SCHEMA_VERSION, record_of

__all__ = ["SCHEMA_VERSION", "EventLog", "follow", "read_events", "record_of"]
