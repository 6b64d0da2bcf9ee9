"""Real kernel, real daemons, real packets between namespaces."""
