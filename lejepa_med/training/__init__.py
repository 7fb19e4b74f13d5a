"""The loop and what it needs: schedule, optimizer, checkpoints, logs, monitor."""
