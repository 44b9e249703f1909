"""Ray: sessions, training workers, sweeps. Nothing outside this package imports ray or optuna."""
