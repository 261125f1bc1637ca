"""Tracing: from a module and its inputs to a graph."""

from fanin.tracing.tracer import trace
from fanin.tracing.vocabulary import register_op

__all__ = ["register_op", "trace"]
