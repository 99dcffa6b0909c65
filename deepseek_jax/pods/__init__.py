"""What a pod would say of an experiment, without a pod: bytes a device, a compiled step, what it would cost."""
