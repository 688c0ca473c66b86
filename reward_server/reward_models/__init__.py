"""Trained reward models, served: from a folder to scores, with new versions taken up while calls go on.

`loaded` alone imports torch and transformers, and is itself imported only when a model is loaded.
"""
