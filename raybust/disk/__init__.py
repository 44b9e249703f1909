"""What a run leaves on disk: folders and identities, checkpoints, logs of rows, locks."""
