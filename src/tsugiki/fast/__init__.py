"""Parts of a forward that have a quicker equal: each stands beside its plain definition."""
