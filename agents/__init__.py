"""Agents that come with marl-tr, found through the same entry points as anybody else's."""
