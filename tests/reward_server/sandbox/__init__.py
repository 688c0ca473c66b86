"""Tests of the sandbox; they skip where the kernel or a container lets nobody make namespaces."""
