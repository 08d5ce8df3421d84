"""What the entry scripts do, one module each: a job ``(config, device, args) -> exit code``."""
