"""The kernel under every component: routes as tables, dispatch, one place that acks, drain."""

from workers.serving.context import Context
from workers.serving.host import Host
from workers.serving.route import Later, On, Serve, Worker, on, serve

__all__ = ["Context", "Host", "Later", "On", "Serve", "Worker", "on", "serve"]
