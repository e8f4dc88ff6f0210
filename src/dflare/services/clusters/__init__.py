"""Clusters and their node pools, as tenants order them."""
