"""Environments that come with marl-tr. Usable alone; nothing here imports the trainer."""
