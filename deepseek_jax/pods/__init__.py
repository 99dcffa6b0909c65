"""What an experiment would need on a pod, found out without one: bytes per device, a compiled step, estimated time."""
