"""Many deciders, one authority: what each side does with the hub between them."""
