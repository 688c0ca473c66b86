"""Processes that Trireme starts: how they end, and a jail of Linux namespaces for programs that nobody trusts.

`sandbox` is the side that hands programs over; `inside` is what runs beyond it, with the standard library alone. It
must not know what a program is worth. Invariant: nothing that would tell a program the right answer goes in.
"""
