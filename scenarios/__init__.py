"""Shipped scenarios: YAML files that `marl-tr run NAME` finds by name."""
