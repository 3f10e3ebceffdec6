"""Work beside the requests: jobs, retention, capacity, shadow replay."""
