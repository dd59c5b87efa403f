"""Mutation testing; ``python -m tests.mutation --help`` says how."""
