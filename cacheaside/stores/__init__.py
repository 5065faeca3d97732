"""What answers the engine's commands."""
