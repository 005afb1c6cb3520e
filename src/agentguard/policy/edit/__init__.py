"""Edits of a policy file: one entry at a time, everything else as it stands, and the result checked before it is written."""

from agentguard.policy.edit.revision import Learned, Revision, adopt, allow, deny

__all__ = ["Learned", "Revision", "adopt", "allow", "deny"]
