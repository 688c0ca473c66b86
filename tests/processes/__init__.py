"""Tests of processes that Trireme starts; those of the sandbox skip where the kernel lets nobody make namespaces."""
