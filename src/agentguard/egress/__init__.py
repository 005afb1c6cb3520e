"""Nothing gets out that the policy does not allow: by name, by connected address, and in kernel mode by the kernel itself."""
