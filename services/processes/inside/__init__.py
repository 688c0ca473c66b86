"""The side of the sandbox that runs in processes of its own: standard library only, and no secrets.

The launcher is started without site packages and imports this package alone, as `inside`; hence the relative imports.
It must not import anything else of Trireme.
"""
