"""The site document: what an operator writes about one data center, read, checked and rendered.

The package is a pure library. It imports nothing else of ``dflare`` and does no network call.
"""
