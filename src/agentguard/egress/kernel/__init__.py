"""Egress held by the kernel: a seccomp filter on a process tree, and a supervisor that connects on its behalf. Linux only."""
