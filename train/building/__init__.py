"""From settings to plain values: the only place that sees both."""
