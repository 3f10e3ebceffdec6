"""HTTP without a subject: connection limits, ASGI pieces, endpoints, access."""
