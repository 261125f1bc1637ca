"""Tracing: from a module and its inputs to a graph."""
