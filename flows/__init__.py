"""Prefect flows, the runners and the command line."""
