"""Container images of tenants: the OCI distribution specification 1.1 over PostgreSQL and S3."""
