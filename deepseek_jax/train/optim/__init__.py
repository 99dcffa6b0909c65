"""The Optax chain, its schedules, and what they treat differently: groups of parameters, depths, moments, Muon."""
