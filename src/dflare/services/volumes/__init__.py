"""Volumes: shared filesystems of projects, who may mount them, and what they hold."""
