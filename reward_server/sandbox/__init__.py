"""Runs programs that nobody trusts, in a jail made of Linux namespaces, and tells what they wrote.

`sandbox` is the server's side; `inside` is what runs beyond it, with the standard library alone. It must not know what
a program is worth. Invariant: nothing that would tell a program the right answer goes in.
"""
