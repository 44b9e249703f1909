"""The files of a run: folders and identities, checkpoints, row logs, locks."""
