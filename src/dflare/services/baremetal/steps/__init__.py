"""The steps of the bare-metal service: ``base`` is what they share, one file a group of states."""
