"""The stages behind the commands: train, tune, certify, attack, corrupt; each checks, then runs."""
