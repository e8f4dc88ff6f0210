"""The Redfish driver: DSP0266 over TLS, following the service's own links."""
