"""Flow-generation environments."""
