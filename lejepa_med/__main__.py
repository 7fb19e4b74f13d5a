"""`python -m lejepa_med VERB`."""

from lejepa_med.cli.main import program

program()
