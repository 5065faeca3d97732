"""Grafana dashboards, Prometheus rules, and containers that show them; ``docs/how-to/dashboards.md``."""
