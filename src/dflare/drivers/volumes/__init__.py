"""Where volumes are stored."""
