"""The daemon beside a production router: HTTP, jobs, metrics, and what keeps them honest."""
