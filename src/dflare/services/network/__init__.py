"""Isolation: VRFs, VLANs, VNIs, PKeys, and what the fabrics were seen to hold."""
