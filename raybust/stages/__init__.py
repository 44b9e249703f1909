"""The stages behind the commands: train, tune, certify, attack, corrupt. Each checks, then runs."""
