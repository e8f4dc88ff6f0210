"""The simulated data center: hardware on the wire and the ground truth that judges the platform.

It imports nothing else of ``dflare``: what judges must not share code with what is judged.
"""
