"""The services: each owns a schema and is known to the others by its ``contract`` alone."""
