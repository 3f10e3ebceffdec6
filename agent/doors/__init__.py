"""What meets the products that users already run, from their side.

Each file stands alone: it needs the peer, the standard library and `client`, and can be copied.
"""
